"""What is wrong with a machine, and what would fit: one line for each check."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from foley.errors import ConfigError
from foley.hardware.compatibility import (
    DISK_BYTES,
    DRIVERS,
    FLASH_CAPABILITY,
    FLASH_WHEEL,
    GPU_BYTES,
    PACKAGES,
    PYTHONS,
    REFUSED,
    SERVING_PACKAGES,
    TORCH_CUDA,
    Version,
    parse,
)
from foley.hardware.machine import Machine, look

State = Literal["ok", "warning", "error"]
# Without these nothing runs: what a start checks.
ESSENTIAL = ("python", "packages", "torch", "driver", "gpu", "media", "weights", "port")


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        state: error where the preset cannot run as asked.
        message: what is there; or what is wrong and what would fit.
    """

    check: str
    state: State
    message: str


def examine(machine: Machine, *, preset: str = "auto", device: str = "auto") -> list[Finding]:
    """All checks, for a preset on a device."""
    needs_gpu = device.startswith("cuda") or (device == "auto" and preset in GPU_BYTES)
    return [
        _python(machine),
        _packages(machine),
        _torch(machine),
        _driver(machine, needs_gpu),
        _gpu(machine, preset, needs_gpu),
        _flash(machine),
        _media(machine),
        _weights(machine, preset),
        _disk(machine, preset),
        _port(machine),
    ]


def refuse_unfit(*, preset: str, device: str, weights: Path | None, port: int = 0) -> None:
    """Nothing, where a model can start here.

    Args:
        preset: that is to run.
        device: on which.
        weights: their folder, where one is named.
        port: that is to be listened on; 0 where none is.

    Raises:
        ConfigError: the first thing that is wrong, in the line that `foley doctor` says.
    """
    for finding in examine(look(weights, port=port), preset=preset, device=device):
        if finding.check in ESSENTIAL and finding.state == "error":
            raise ConfigError(f"{finding.check}: {finding.message}")


def _python(machine: Machine) -> Finding:
    here = _text(machine.python)
    if machine.python in PYTHONS:
        return Finding("python", "ok", here)
    fitting = " or ".join(map(_text, PYTHONS))
    return Finding("python", "error", f"Python {here} is not supported; install Python {fitting}")


def _packages(machine: Machine) -> Finding:
    wrong = list(_package_troubles(machine))
    if not wrong:
        return Finding("packages", "ok", f"{len(machine.packages)} of known versions")
    # The service's packages are an extra: the command line works without them.
    only_serving = all(name in SERVING_PACKAGES for name, _ in wrong)
    state: State = "warning" if only_serving else "error"
    return Finding("packages", state, "; ".join(text for _, text in wrong))


def _package_troubles(machine: Machine) -> Iterator[tuple[str, str]]:
    for name, least in {**PACKAGES, **SERVING_PACKAGES}.items():
        found = machine.packages.get(name)
        if found is None:
            yield name, f"{name} is not installed; install {name}>={least}"
        elif parse(found) < parse(least):
            yield name, f"{name} {found} is too old; install {name}>={least}"
        elif found in REFUSED.get(name, {}):
            yield name, f"{name} {found}: {REFUSED[name][found]}"


def _torch(machine: Machine) -> Finding:
    version = machine.packages.get("torch", "?")
    if machine.torch_error:
        return Finding(
            "torch",
            "error",
            f"torch {version} cannot be imported ({machine.torch_error}); install it again for "
            f"Python {_text(machine.python)}, with nothing else of another CUDA beside it",
        )
    built = f"CUDA {machine.torch_cuda}" if machine.torch_cuda else "the CPU alone"
    return Finding("torch", "ok", f"{version}, built for {built}")


def _driver(machine: Machine, needs_gpu: bool) -> Finding:
    trouble: State = "error" if needs_gpu else "warning"
    if not machine.driver:
        if machine.gpus:
            return Finding("driver", "ok", "loaded, of unknown version")
        if needs_gpu:
            return Finding(
                "driver",
                "error",
                f"no NVIDIA driver is loaded; install one ({DRIVERS[12]} or later for CUDA 12), "
                "start the container with its GPUs, or choose the device cpu",
            )
        return Finding("driver", "ok", "none, and none is needed on the CPU")
    version = machine.packages.get("torch", "?")
    if not machine.torch_cuda:
        fitting = _fitting_torch(machine.driver)
        return Finding(
            "driver",
            trouble,
            f"driver {machine.driver} is there, but torch {version} is built for the CPU alone; "
            f"install {fitting}",
        )
    least = DRIVERS.get(int(machine.torch_cuda.split(".")[0]))
    if least and parse(machine.driver) < parse(least):
        return Finding(
            "driver",
            trouble,
            f"driver {machine.driver} is too old for torch {version}, built for CUDA "
            f"{machine.torch_cuda}, which needs {least} or later; update it, or install "
            f"{_fitting_torch(machine.driver)}",
        )
    return Finding("driver", "ok", f"{machine.driver}, enough for CUDA {machine.torch_cuda}")


def _fitting_torch(driver: str) -> str:
    """The PyTorch that a driver can run."""
    if parse(driver) >= parse(DRIVERS[13]):
        return "torch 2.8 or later in its CUDA build"
    if parse(driver) >= parse(DRIVERS[12]):
        above = next(first for first, cuda in TORCH_CUDA if cuda.startswith("13."))
        return f"a torch from 2.8 to before {_text(above)} in its CUDA 12.8 build"
    return f"driver {DRIVERS[12]} or later with torch 2.8"


def _gpu(machine: Machine, preset: str, needs_gpu: bool) -> Finding:
    if not machine.gpus:
        if needs_gpu:
            return Finding(
                "gpu", "error", "PyTorch sees no CUDA GPU; see driver, or choose the device cpu"
            )
        return Finding("gpu", "ok", "none: the CPU is used, which suits tiny")
    best = max(machine.gpus, key=lambda gpu: gpu.num_bytes)
    name = f"{best.name}, {best.num_bytes / 1e9:.1f} GB"
    fitting = [key for key, num_bytes in GPU_BYTES.items() if best.num_bytes >= num_bytes]
    if preset in GPU_BYTES and preset not in fitting:
        return Finding(
            "gpu",
            "error",
            f"{name}: {preset} needs {GPU_BYTES[preset] / 1e9:.1f} GB; use "
            f"{' or '.join(fitting) or 'tiny'}, or a larger GPU",
        )
    if best.capability < FLASH_CAPABILITY:
        return Finding(
            "gpu",
            "warning",
            f"{name}: compute capability {_text(best.capability)} has no fast bfloat16; "
            f"{_text(FLASH_CAPABILITY)} or later does",
        )
    return Finding("gpu", "ok", f"{name}; fits {', '.join(['tiny', *fitting])}")


def _flash(machine: Machine) -> Finding:
    version = machine.packages.get("flash-attn")
    torch = parse(machine.packages.get("torch", ""))
    if version is None:
        return Finding("flash-attention", "ok", f"not installed; used: {machine.attention}")
    if machine.flash_error:
        return Finding(
            "flash-attention",
            "warning",
            f"flash-attn {version} cannot be imported beside torch {_text(torch)} "
            f"({machine.flash_error}); {_flash_advice(torch, machine)}; used: {machine.attention}",
        )
    if "FlashAttention" not in machine.attention:
        return Finding(
            "flash-attention",
            "warning",
            f"flash-attn {version} is installed and not used; used: {machine.attention}",
        )
    return Finding("flash-attention", "ok", f"flash-attn {version}; used: {machine.attention}")


def _flash_advice(torch: Version, machine: Machine) -> str:
    wheel = FLASH_WHEEL
    if torch[:2] == wheel.torch and machine.python in wheel.pythons:
        return f"remove it, or install {wheel.name(machine.python)} with --no-deps"
    return (
        f"remove it: its project has wheels up to torch {_text(wheel.torch)} for Python "
        f"{' and '.join(map(_text, wheel.pythons))}"
    )


def _media(machine: Machine) -> Finding:
    if machine.media_error:
        return Finding(
            "media",
            "error",
            f"FFmpeg's libraries: {machine.media_error}; install PyAV again from its wheel "
            f"(av>={PACKAGES['av']})",
        )
    return Finding("media", "ok", f"PyAV {machine.packages.get('av', '?')} with all codecs")


def _weights(machine: Machine, preset: str) -> Finding:
    wanted = [preset] if preset in machine.present else list(machine.present)
    for name in wanted:
        if machine.present[name] == "partial":
            return Finding(
                "weights",
                "error" if preset == name else "warning",
                f"{name} in {machine.folder} is incomplete or changed; run: foley download {name}",
            )
    complete = [name for name in wanted if machine.present[name] == "complete"]
    if complete:
        return Finding("weights", "ok", f"{', '.join(complete)} in {machine.folder}, verified")
    if "other" in machine.present.values():
        return Finding("weights", "ok", f"files that were not downloaded here in {machine.folder}")
    if preset in machine.present:
        return Finding(
            "weights", "error", f"no {preset} in {machine.folder}; run: foley download {preset}"
        )
    return Finding("weights", "ok", f"none in {machine.folder}; tiny needs none")


def _disk(machine: Machine, preset: str) -> Finding:
    free = f"{machine.free_bytes / 1e9:.1f} GB free for {machine.folder}"
    needed = DISK_BYTES.get(preset, 0)
    if machine.present.get(preset) == "absent" and machine.free_bytes < needed:
        return Finding(
            "disk",
            "error",
            f"{free}, and {preset} takes {needed / 1e9:.1f} GB; free some, or download it --to "
            "another disk",
        )
    return Finding("disk", "ok", free)


def _port(machine: Machine) -> Finding:
    if machine.port_error:
        return Finding(
            "port",
            "error",
            f"port {machine.port} cannot be used: {machine.port_error}; stop what listens there, "
            "or serve with another --port",
        )
    return Finding("port", "ok", f"{machine.port} is free")


def _text(version: Version) -> str:
    return ".".join(map(str, version)) or "?"

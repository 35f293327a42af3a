"""Check a machine against a preset: one line for each check, with what would fit instead."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from foley.configs import PRESETS
from foley.errors import ConfigError
from foley.hardware.compatibility import (
    DRIVERS,
    FLASH_CAPABILITY,
    FLASH_WHEEL,
    LIMITS,
    PACKAGES,
    PYTHONS,
    REFUSED,
    SERVING_PACKAGES,
    TORCH_CUDA,
    Version,
    parse_version,
)
from foley.hardware.machine import Machine, inspect_machine
from foley.weights.sources import DISK_BYTES, GPU_BYTES, LEAST_GPU_BYTES

State = Literal["ok", "warning", "error"]
# The checks that a start of the service makes: without these nothing runs.
ESSENTIAL = ("python", "packages", "torch", "driver", "gpu", "media", "weights", "port")


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: the name of the check.
        state: error if the preset cannot run on the device.
        message: one line: what was found, or what is wrong and what would fit.
    """

    check: str
    state: State
    message: str


def check_machine(machine: Machine, *, preset: str = "auto", device: str = "auto") -> list[Finding]:
    """Make all checks; returns one finding for each, in a fixed order.

    Args:
        machine: the facts to check.
        preset: tiny, xl, xxl or auto.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        ConfigError: there is no such preset.
    """
    if preset not in ("auto", *PRESETS):
        raise ConfigError(f"preset {preset!r} is not known; use auto, {', '.join(PRESETS)}")
    needs_gpu = device.startswith("cuda") or (device == "auto" and preset in GPU_BYTES)
    return [
        _check_python(machine),
        _check_packages(machine),
        _check_torch(machine),
        _check_driver(machine, needs_gpu),
        _check_gpu(machine, preset, needs_gpu),
        _check_flash(machine),
        _check_media(machine),
        _check_weights(machine, preset),
        _check_disk(machine, preset),
        _check_port(machine),
    ]


def refuse_unfit(*, preset: str, device: str, weights: Path | None, port: int = 0) -> Machine:
    """Refuse a start that would fail on this machine; returns the machine of another one.

    Args:
        preset: tiny, xl, xxl or auto.
        device: auto, cpu, cuda or cuda:N.
        weights: folder of the weights; None for the one that `foley download` fills.
        port: the port to listen on; 0 for any free one.

    Raises:
        ConfigError: the first error among the `ESSENTIAL` checks, as `foley doctor` prints it.
    """
    machine = inspect_machine(weights, port=port)
    for finding in check_machine(machine, preset=preset, device=device):
        if finding.check in ESSENTIAL and finding.state == "error":
            raise ConfigError(f"{finding.check}: {finding.message}")
    return machine


def _check_python(machine: Machine) -> Finding:
    here = _join(machine.python)
    if machine.python in PYTHONS:
        return Finding("python", "ok", here)
    fitting = " or ".join(map(_join, PYTHONS))
    return Finding("python", "error", f"Python {here} is not supported; install Python {fitting}")


def _check_packages(machine: Machine) -> Finding:
    wrong = list(_find_package_problems(machine))
    if not wrong:
        return Finding("packages", "ok", f"{len(machine.packages)} of known versions")
    # The command line works without the packages of the service, which are an extra.
    only_serving = all(name in SERVING_PACKAGES for name, _ in wrong)
    state: State = "warning" if only_serving else "error"
    return Finding("packages", state, "; ".join(text for _, text in wrong))


def _find_package_problems(machine: Machine) -> Iterator[tuple[str, str]]:
    for name, least in {**PACKAGES, **SERVING_PACKAGES}.items():
        found = machine.packages.get(name)
        if found is None:
            yield name, f"{name} is not installed; install {name}>={least}"
        elif parse_version(found) < parse_version(least):
            yield name, f"{name} {found} is too old; install {name}>={least}"
        elif name in LIMITS and parse_version(found) >= parse_version(LIMITS[name]):
            yield name, f"{name} {found} is too new; install {name}>={least},<{LIMITS[name]}"
        elif found in REFUSED.get(name, {}):
            yield name, f"{name} {found}: {REFUSED[name][found]}"


def _check_torch(machine: Machine) -> Finding:
    version = machine.packages.get("torch", "?")
    if machine.torch_error:
        return Finding(
            "torch",
            "error",
            f"torch {version} cannot be imported ({machine.torch_error}); install it again for "
            f"Python {_join(machine.python)}, with nothing else of another CUDA beside it",
        )
    built = f"CUDA {machine.torch_cuda}" if machine.torch_cuda else "the CPU alone"
    return Finding("torch", "ok", f"{version}, built for {built}")


def _check_driver(machine: Machine, needs_gpu: bool) -> Finding:
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
        fitting = _advise_torch(machine.driver)
        return Finding(
            "driver",
            trouble,
            f"driver {machine.driver} is there, but torch {version} is built for the CPU alone; "
            f"install {fitting}",
        )
    least = DRIVERS.get(int(machine.torch_cuda.split(".")[0]))
    if least and parse_version(machine.driver) < parse_version(least):
        return Finding(
            "driver",
            trouble,
            f"driver {machine.driver} is too old for torch {version}, built for CUDA "
            f"{machine.torch_cuda}, which needs {least} or later; update it, or install "
            f"{_advise_torch(machine.driver)}",
        )
    return Finding("driver", "ok", f"{machine.driver}, enough for CUDA {machine.torch_cuda}")


def _advise_torch(driver: str) -> str:
    """Return which PyTorch a driver can run."""
    if parse_version(driver) >= parse_version(DRIVERS[13]):
        return "torch 2.8 or later in its CUDA build"
    if parse_version(driver) >= parse_version(DRIVERS[12]):
        above = next(first for first, cuda in TORCH_CUDA if cuda.startswith("13."))
        return f"a torch from 2.8 to before {_join(above)} in its CUDA 12.8 build"
    return f"driver {DRIVERS[12]} or later with torch 2.8"


def _check_gpu(machine: Machine, preset: str, needs_gpu: bool) -> Finding:
    if not machine.gpus:
        if needs_gpu:
            return Finding(
                "gpu", "error", "PyTorch sees no CUDA GPU; see driver, or choose the device cpu"
            )
        return Finding("gpu", "ok", "none: the CPU is used, which suits tiny")
    best = max(machine.gpus, key=lambda gpu: gpu.num_bytes)
    name = f"{best.name}, {best.num_bytes / 1e9:.1f} GB"
    fitting = list(GPU_BYTES) if best.num_bytes >= LEAST_GPU_BYTES else []
    if preset in GPU_BYTES and not fitting:
        return Finding(
            "gpu",
            "error",
            f"{name}: {preset} needs {LEAST_GPU_BYTES / 1e9:.1f} GB; use tiny, or a larger GPU",
        )
    if best.capability < FLASH_CAPABILITY:
        return Finding(
            "gpu",
            "warning",
            f"{name}: compute capability {_join(best.capability)} has no fast bfloat16; "
            f"{_join(FLASH_CAPABILITY)} or later does",
        )
    streamed = [key for key in fitting if best.num_bytes < GPU_BYTES[key]]
    note = f"; {' and '.join(streamed)} with a part of the weights in host memory"
    return Finding(
        "gpu", "ok", f"{name}; fits {', '.join(['tiny', *fitting])}{note if streamed else ''}"
    )


def _check_flash(machine: Machine) -> Finding:
    version = machine.packages.get("flash-attn")
    torch = parse_version(machine.packages.get("torch", ""))
    if version is None:
        return Finding("flash-attention", "ok", f"not installed; used: {machine.attention}")
    if machine.flash_error:
        return Finding(
            "flash-attention",
            "warning",
            f"flash-attn {version} cannot be imported beside torch {_join(torch)} "
            f"({machine.flash_error}); {_advise_flash(torch, machine)}; used: {machine.attention}",
        )
    if "FlashAttention" not in machine.attention:
        return Finding(
            "flash-attention",
            "warning",
            f"flash-attn {version} is installed and not used; used: {machine.attention}",
        )
    return Finding("flash-attention", "ok", f"flash-attn {version}; used: {machine.attention}")


def _advise_flash(torch: Version, machine: Machine) -> str:
    wheel = FLASH_WHEEL
    if torch[:2] == wheel.torch and machine.python in wheel.pythons:
        return f"remove it, or install {wheel.name(machine.python)} with --no-deps"
    return (
        f"remove it: its project has wheels up to torch {_join(wheel.torch)} for Python "
        f"{' and '.join(map(_join, wheel.pythons))}"
    )


def _check_media(machine: Machine) -> Finding:
    if machine.media_error:
        return Finding(
            "media",
            "error",
            f"FFmpeg's libraries: {machine.media_error}; install PyAV again from its wheel "
            f"(av>={PACKAGES['av']})",
        )
    return Finding("media", "ok", f"PyAV {machine.packages.get('av', '?')} with all codecs")


def _check_weights(machine: Machine, preset: str) -> Finding:
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


def _check_disk(machine: Machine, preset: str) -> Finding:
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


def _check_port(machine: Machine) -> Finding:
    if machine.port_error:
        return Finding(
            "port",
            "error",
            f"port {machine.port} cannot be used: {machine.port_error}; serve with another "
            "--port, or end what uses this one",
        )
    return Finding("port", "ok", f"{machine.port} is free")


def _join(version: Version) -> str:
    return ".".join(map(str, version)) or "?"

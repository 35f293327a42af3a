"""Gather what a machine has. What is missing or broken becomes a value, not an exception."""

import importlib
import importlib.metadata
import platform
import re
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

from foley.hardware.compatibility import PACKAGES, SERVING_PACKAGES, Version
from foley.weights.hub import default_folder
from foley.weights.manifest import MANIFEST_FILE, missing_files
from foley.weights.sources import FILES

DRIVER_FILE = Path("/proc/driver/nvidia/version")
# Codecs for the sound that is written and the video that is read.
CODECS = ("aac", "flac", "libopus", "pcm_s24le", "h264", "hevc", "vp9", "av1")


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A CUDA device, as PyTorch reports it.

    Attributes:
        name: for people.
        capability: CUDA compute capability, such as (9, 0).
        num_bytes: its memory.
    """

    name: str
    capability: Version
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Facts about a machine and what is installed on it.

    Attributes:
        python: major and minor version of this interpreter.
        packages: distribution name -> installed version; missing ones are left out.
        torch_error: why PyTorch cannot be imported; empty if it can.
        torch_cuda: the CUDA version that PyTorch was built for; empty for a CPU build.
        driver: version of NVIDIA's driver; empty if none is loaded.
        gpus: the CUDA devices.
        flash_error: why an installed flash-attn cannot be imported; empty if it can.
        attention: the attention kernel that is used.
        media_error: why FFmpeg's libraries cannot be used, or what they lack; empty if all is well.
        folder: the folder of weights.
        present: downloadable preset -> complete, partial, other (files that were not downloaded
            by `foley download`) or absent.
        free_bytes: free space on the folder's disk.
        port: the port that was tried.
        port_error: why the port cannot be used; empty if it can.
    """

    python: Version
    packages: dict[str, str]
    torch_error: str
    torch_cuda: str
    driver: str
    gpus: tuple[Gpu, ...]
    flash_error: str
    attention: str
    media_error: str
    folder: str
    present: dict[str, str]
    free_bytes: int
    port: int
    port_error: str


def inspect_machine(weights: Path | None, *, port: int = 0) -> Machine:
    """Gather the facts about the machine that this runs on.

    Args:
        weights: folder of the weights; None for the one that `foley download` fills.
        port: the port to try; 0 for any free one.
    """
    torch_error, torch_cuda, gpus, attention = _inspect_torch()
    packages = _find_versions([*PACKAGES, *SERVING_PACKAGES, "flash-attn"])
    has_flash = "flash-attn" in packages and not torch_error
    folder = weights or default_folder()
    return Machine(
        python=tuple(map(int, platform.python_version_tuple()[:2])),
        packages=packages,
        torch_error=torch_error,
        torch_cuda=torch_cuda,
        driver=_read_driver(),
        gpus=gpus,
        flash_error=_try_import("flash_attn") if has_flash else "",
        attention=attention,
        media_error=_try_media(),
        folder=str(folder),
        present={name: _find_presence(name, folder) for name in FILES},
        free_bytes=_measure_free_bytes(folder),
        port=port,
        port_error=_try_port(port),
    )


def _inspect_torch() -> tuple[str, str, tuple[Gpu, ...], str]:
    try:
        import torch

        from foley.attention_kernels import find_attention_kernel

        gpus = []
        for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            found = torch.cuda.get_device_properties(index)
            gpus.append(
                Gpu(
                    name=found.name,
                    capability=(found.major, found.minor),
                    num_bytes=found.total_memory,
                )
            )
        return "", torch.version.cuda or "", tuple(gpus), find_attention_kernel()
    except (ImportError, OSError, RuntimeError) as error:
        return _first_line(error), "", (), ""


def _find_versions(names: list[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _try_import(module: str) -> str:
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        return _first_line(error)
    return ""


def _try_media() -> str:
    try:
        import av
    except (ImportError, OSError) as error:
        return _first_line(error)
    known = av.codec.codecs_available
    lacking = [name for name in CODECS if name not in known]
    return f"no {', '.join(lacking)}" if lacking else ""


def _find_presence(name: str, folder: Path) -> str:
    """Return how much of a preset the folder holds, as in `Machine.present`."""
    files = FILES[name]
    missing = missing_files(files, folder)
    if not missing:
        return "complete"
    if (folder / MANIFEST_FILE).is_file():
        # The last file is the transformer, which no other preset has.
        was_begun = (folder / files[-1].place).is_file() or len(missing) == 1
        return "partial" if was_begun else "absent"
    has_others = folder.is_dir() and any(
        path.suffix in (".pth", ".safetensors") for path in folder.rglob("*")
    )
    return "other" if has_others else "absent"


def _measure_free_bytes(folder: Path) -> int:
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _try_port(port: int) -> str:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error.strerror or str(error)
        except OverflowError:
            return "ports go from 1 to 65535"
    return ""


def _read_driver() -> str:
    try:
        # "... x86_64 Kernel Module  535.183.01 ..." or "... Open Kernel Module for x86_64  580...".
        found = re.search(r"Module\b.*?\s(\d+(?:\.\d+)+)", DRIVER_FILE.read_text())
    except OSError:
        return ""
    return found[1] if found else ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

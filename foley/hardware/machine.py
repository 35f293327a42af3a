"""What this machine has: gathered without failing, so that what is broken can be told in a line."""

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
# Sound that is written, pictures that are read.
CODECS = ("aac", "flac", "libopus", "pcm_s24le", "h264", "hevc", "vp9", "av1")


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A CUDA device, as PyTorch sees it."""

    name: str
    capability: Version
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Facts about a machine and what is installed on it.

    Attributes:
        packages: installed versions by the names of distributions; absent ones are left out.
        torch_error: why PyTorch cannot be imported; empty where it can.
        torch_cuda: the CUDA that PyTorch was built for; empty for a CPU build.
        driver: NVIDIA's driver; empty where none is loaded.
        flash_error: why flash-attn, installed, cannot be imported.
        attention: the kernel that is used.
        media_error: why FFmpeg's libraries cannot be used, or what they lack.
        folder: of the weights.
        present: how each downloadable preset lies there: complete, partial, other, or absent.
        free_bytes: on the folder's disk.
        port_error: why the service's port cannot be had.
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


def look(weights: Path | None, *, port: int = 0) -> Machine:
    """The machine that this runs on.

    Args:
        weights: their folder; without it, the one that `foley download` fills.
        port: to try; 0 for none in particular.
    """
    torch_error, torch_cuda, gpus, attention = _look_at_torch()
    packages = _versions([*PACKAGES, *SERVING_PACKAGES, "flash-attn"])
    has_flash = "flash-attn" in packages and not torch_error
    folder = weights or default_folder()
    return Machine(
        python=tuple(map(int, platform.python_version_tuple()[:2])),
        packages=packages,
        torch_error=torch_error,
        torch_cuda=torch_cuda,
        driver=_driver(),
        gpus=gpus,
        flash_error=_import_error("flash_attn") if has_flash else "",
        attention=attention,
        media_error=_media_error(),
        folder=str(folder),
        present={name: _presence(name, folder) for name in FILES},
        free_bytes=_free_bytes(folder),
        port=port,
        port_error=_port_error(port),
    )


def _look_at_torch() -> tuple[str, str, tuple[Gpu, ...], str]:
    try:
        import torch

        from foley.models.attention import attention_kernel

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
        return "", torch.version.cuda or "", tuple(gpus), attention_kernel()
    except (ImportError, OSError, RuntimeError) as error:
        return _first_line(error), "", (), ""


def _versions(names: list[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _import_error(module: str) -> str:
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        return _first_line(error)
    return ""


def _media_error() -> str:
    try:
        import av
    except (ImportError, OSError) as error:
        return _first_line(error)
    known = av.codec.codecs_available
    lacking = [name for name in CODECS if name not in known]
    return f"no {', '.join(lacking)}" if lacking else ""


def _presence(name: str, folder: Path) -> str:
    """How a downloadable preset lies in a folder."""
    files = FILES[name]
    missing = missing_files(files, folder)
    if not missing:
        return "complete"
    if (folder / MANIFEST_FILE).is_file():
        # The transformer comes last, and no other preset has it.
        was_begun = (folder / files[-1].place).is_file() or len(missing) == 1
        return "partial" if was_begun else "absent"
    has_others = folder.is_dir() and any(
        path.suffix in (".pth", ".safetensors") for path in folder.rglob("*")
    )
    return "other" if has_others else "absent"


def _free_bytes(folder: Path) -> int:
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _port_error(port: int) -> str:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error.strerror or str(error)
    return ""


def _driver() -> str:
    try:
        # "... x86_64 Kernel Module  535.183.01 ..." or "... Open Kernel Module for x86_64  580...".
        found = re.search(r"Module\b.*?\s(\d+(?:\.\d+)+)", DRIVER_FILE.read_text())
    except OSError:
        return ""
    return found[1] if found else ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

"""`foley info`: what is installed, and what it would run on."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from foley.version import __version__

_PACKAGES = (
    "torch",
    "transformers",
    "diffusers",
    "accelerate",
    "safetensors",
    "av",
    "bentoml",
    "flash-attn",
)


def info(
    *,
    weights: Annotated[Path | None, Parameter(help="Folder to look for presets in.")] = None,
    as_json: Annotated[bool, Parameter(name="--json", negative=(), help="For programs.")] = False,
) -> None:
    """Show versions, device, attention kernel and the presets found."""
    facts = collect(weights)
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, item in value.items():
                print(f"  {key:14}{item}")
        else:
            print(f"{name + ':':16}{value}")


def collect(weights: Path | None) -> dict[str, Any]:
    """What `foley info` shows, as plain values."""
    import av
    import torch

    from foley.models.attention import attention_kernel

    ffmpeg = ".".join(map(str, av.library_versions["libavcodec"]))
    devices = [_gpu(index) for index in range(torch.cuda.device_count())]
    return {
        "foley": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "ffmpeg": f"libavcodec {ffmpeg}",
        "cuda": torch.version.cuda or "this PyTorch is built without CUDA",
        "devices": {"cpu": f"{torch.get_num_threads()} threads"}
        | {f"cuda:{index}": text for index, text in enumerate(devices)},
        "attention": attention_kernel(),
        "presets": _presets(weights),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _gpu(index: int) -> str:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    name = torch.cuda.get_device_name(index)
    return f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"


def _presets(weights: Path | None) -> dict[str, str]:
    from foley.checkpoints import read_description
    from foley.configs import PRESETS
    from foley.recognition import DESCRIPTION_FILE, has_official_files
    from foley.selection import EMBEDDED_WEIGHTS

    embedded = "trained" if (EMBEDDED_WEIGHTS / DESCRIPTION_FILE).is_file() else "untrained"
    found = {"tiny": f"in the package, {embedded}"}
    if weights and not weights.is_dir():
        return found | dict.fromkeys(("xl", "xxl"), f"not found: there is no folder {weights}")
    for name in ("xl", "xxl"):
        found[name] = "not found" if weights else "not looked for; name a folder with --weights"
        if weights and has_official_files(PRESETS[name], weights):
            found[name] = f"official files in {weights}"
    if weights and (weights / DESCRIPTION_FILE).is_file():
        preset, _ = read_description(weights)
        found[preset.name] = f"converted, in {weights}"
    return found

"""`foley info`: show versions, devices and presets."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from foley.quiet import silence_imports
from foley.version import __version__

_PACKAGES = (
    "torch",
    "transformers",
    "diffusers",
    "safetensors",
    "av",
    "bentoml",
    "flash-attn",
)


def info(
    *,
    weights: Annotated[
        Path | None,
        Parameter(
            env_var="FOLEY_WEIGHTS",
            help="Folder to search for presets. By default the folder of `foley download`.",
        ),
    ] = None,
    as_json: Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.")] = False,
) -> None:
    """Show versions, devices, the attention kernel, presets and licences."""
    with silence_imports():
        facts = collect_info(weights)
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


def collect_info(weights: Path | None) -> dict[str, Any]:
    """Return what `foley info` shows, as values that JSON can hold.

    Args:
        weights: folder to search for presets; None for the folder of `foley download`.
    """
    import av
    import torch

    from foley.attention_kernels import find_attention_kernel
    from foley.configs import PRESETS
    from foley.weights.hub import default_folder

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
        "attention": find_attention_kernel(),
        "presets": _presets(weights or default_folder()),
        "prompts": {name: "; ".join(preset.prompts) for name, preset in PRESETS.items()},
        "licences": {name: _terms(name) for name in PRESETS},
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


def _presets(weights: Path) -> dict[str, str]:
    from foley.configs import PRESETS, TINY
    from foley.weights.detection import DESCRIPTION_FILE, find_file
    from foley.weights.layout import read_description
    from foley.weights.manifest import find_revision
    from foley.weights.selection import EMBEDDED_WEIGHTS

    embedded = (EMBEDDED_WEIGHTS / DESCRIPTION_FILE).is_file()
    found = {
        "tiny": f"in the package: {TINY.about}" if embedded else "missing; install foley again"
    }
    for name in ("xl", "xxl"):
        path = find_file("dit", PRESETS[name], weights)
        if path is None:
            found[name] = f"not in {weights}; run: foley download {name}"
        else:
            revision = find_revision(weights, path) or "not known"
            found[name] = f"official files in {weights}, revision {revision}"
    if (weights / DESCRIPTION_FILE).is_file():
        preset, description = read_description(weights)
        revision = description.get("revision") or "not known"
        found[preset.name] = f"converted, in {weights}, revision {revision}"
    return found


def _terms(name: str) -> str:
    from foley.weights.licences import get_licence

    licence = get_licence(name)
    return f"{licence.name}; {licence.territory}"

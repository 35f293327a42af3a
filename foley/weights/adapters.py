"""Read and write files of low-rank adapters (LoRA): safetensors in the conventions of diffusers.

A layer's matrices are `LAYER.lora_A.weight` [R, C] and `LAYER.lora_B.weight` [F, R]; of a
convolution [R, C, K] and [F, R, 1]. `LAYER.alpha`, or `lora_alpha` in the metadata, gives the
factor alpha / R, which is 1 without either. The layer's name is that of `FoleyDiT`, or that of the
published checkpoint, which the rules of the weights translate.
"""

# R channels between the matrices, C inputs, F outputs, K taps of a convolution

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn

from foley.atomic import atomic_path
from foley.errors import CheckpointError
from foley.models.adapters import LowRank, list_layers
from foley.weights.key_maps import RULES
from foley.weights.tensors import read_weights
from foley.weights.translation import translate

MAX_RANK = 512
MAX_FILE_BYTES = 4_000_000_000
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_KEY = re.compile(
    r"(?:transformer\.|base_model\.model\.|diffusion_model\.)*(?P<layer>.+?)"
    r"\.(?P<part>lora_A|lora_B|lora_down|lora_up|alpha)(?:\.default)?(?:\.weight)?"
)
_PARTS = {"lora_A": "down", "lora_down": "down", "lora_B": "up", "lora_up": "up", "alpha": "alpha"}


class AdapterFile(NamedTuple):
    """What a file of an adapter holds.

    Attributes:
        layers: matrices on the CPU, by the layer's name in `FoleyDiT`.
        base: the preset that it was trained on; empty if the file does not say.
        rank: the largest R.
        about: a line for people; empty if the file has none.
        trigger: a prompt that suits it; empty if the file has none.
    """

    layers: dict[str, LowRank]
    base: str
    rank: int
    about: str
    trigger: str


def read_adapter(
    path: Path, dit: nn.Module, preset_name: str, dtype: torch.dtype = torch.float32
) -> AdapterFile:
    """Read an adapter, and check that it fits a transformer.

    Args:
        path: ends in .safetensors.
        dit: the `FoleyDiT` that it is for; only names and shapes are used.
        preset_name: of the model.
        dtype: of the matrices that are returned.

    Raises:
        CheckpointError: the file is missing, damaged, no adapter, or one of another model.
    """
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path} is no .safetensors file, and no other kind of adapter is read, since a file "
            "of another kind could run code; convert it"
        )
    if path.is_file() and path.stat().st_size > MAX_FILE_BYTES:
        raise CheckpointError(
            f"{path} has {path.stat().st_size / 1e9:.1f} GB, an adapter has at most "
            f"{MAX_FILE_BYTES / 1e9:g} GB; is it a whole model?"
        )
    tensors, metadata = read_weights(path)
    base = str(metadata.get("base_model", ""))
    if base and base != preset_name:
        raise CheckpointError(
            f"{path} is an adapter of {base[:60]}, but the model is {preset_name}; train one on "
            f"{preset_name}, or load {base[:60]}"
        )
    shapes = list_layers(dit)
    parts, alphas = _group(path, tensors, shapes)
    settings = _read_settings(path, metadata)
    layers = {
        layer: _assemble(path, layer, pair, alphas.get(layer), settings, shapes[layer], dtype)
        for layer, pair in parts.items()
    }
    return AdapterFile(
        layers=layers,
        base=base,
        rank=max(layer.up.shape[0] for layer in layers.values()),
        about=str(metadata.get("about", ""))[:300],
        trigger=str(metadata.get("trigger", ""))[:300],
    )


def write_adapter(
    path: Path,
    layers: Mapping[str, LowRank],
    *,
    base: str,
    rank: int,
    metadata: Mapping[str, str],
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write an adapter; the file appears whole, or not at all.

    Args:
        path: ends in .safetensors.
        layers: by the layer's name in `FoleyDiT`; alpha is R, so that the factor is 1.
        base: the preset that it was trained on.
        rank: R.
        metadata: further lines, such as `about` and `trigger`.
        dtype: of the file.
    """
    tensors = {}
    for name, (down, up) in layers.items():
        is_conv = down.shape[1] > 1
        a = down.permute(2, 0, 1) if is_conv else down[:, 0].t()  # [R, C, K] or [R, C]
        b = up.t()[..., None] if is_conv else up.t()
        for part, tensor in (("lora_A", a), ("lora_B", b)):
            key = f"{name}.{part}.weight"
            tensors[key] = tensor.detach().cpu().to(dtype).contiguous()
    settings = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(layers),
    }
    lines = {
        "format": "pt",
        "base_model": base,
        "lora_adapter_metadata": json.dumps(settings, sort_keys=True),
        **metadata,
    }
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, metadata=lines))


def _group(
    path: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, object]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, float]]:
    """Return the matrices of each layer, and its alpha where it has one."""
    parts: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise CheckpointError(
                f"{path} holds {key[:120]}, which is no part of a low-rank adapter (LoRA); its "
                "keys end in lora_A.weight, lora_B.weight or alpha"
            )
        part = _PARTS[match["part"]]
        layer, tensor = _translate(match["layer"], part, tensor)
        if layer not in shapes:
            raise CheckpointError(
                f"{path} changes {match['layer'][:120]}, a layer that this model does not have; "
                "the file is of another model"
            )
        if not tensor.dtype.is_floating_point:
            raise CheckpointError(f"{path}: {key[:120]} holds whole numbers; train it again")
        if part == "alpha":
            if tensor.numel() != 1:
                raise CheckpointError(f"{path}: {key[:120]} is not one number")
            alphas[layer] = float(tensor)
        else:
            parts.setdefault(layer, {})[part] = tensor
    if not parts:
        raise CheckpointError(f"{path} holds no layer of an adapter")
    return parts, alphas


def _translate(layer: str, part: str, tensor: Tensor) -> tuple[str, Tensor]:
    """Return this project's name of a layer, and the matrix in its arrangement.

    The rules know whole weights. Where they reorder a weight's outputs, they do so to `up`, whose
    outputs come first as well.
    """
    # The last dimension keeps a rule that drops a kernel's only tap from dropping R.
    outputs = tensor[..., None] if tensor.ndim == 2 else tensor
    found = translate(
        {f"{layer}.weight": outputs if part == "up" else torch.empty(3, 1, 1)}, RULES["dit"]
    )
    for name, arranged in found.weights.items():
        return name.removesuffix(".weight"), arranged if part == "up" else tensor
    return layer, tensor


def _read_settings(path: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return peft's settings, which diffusers puts into the metadata; empty without them."""
    try:
        settings = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path}: lora_adapter_metadata is not a JSON object; train it again")
    # diffusers puts the part's name before each setting.
    settings = {str(key).removeprefix("transformer."): value for key, value in settings.items()}
    for name in ("use_dora", "lora_bias"):
        if settings.get(name):
            raise CheckpointError(f"{path} uses {name}, which is not supported; train it without")
    return settings


def _assemble(
    path: Path,
    layer: str,
    pair: Mapping[str, Tensor],
    alpha: float | None,
    settings: Mapping[str, Any],
    shape: tuple[int, int, int],
    dtype: torch.dtype,
) -> LowRank:
    """Return the matrices in their own memory, each written once."""
    inputs, outputs, taps = shape
    if len(pair) != 2:
        raise CheckpointError(f"{path}: {layer} has one of its two matrices; the file is cut off")
    down, up = pair["down"], pair["up"]
    rank = down.shape[0] if down.ndim else 0
    if not 1 <= rank <= MAX_RANK:
        raise CheckpointError(f"{path}: {layer} has rank {rank}; a rank is 1 to {MAX_RANK}")
    down = down[..., None] if down.ndim == 2 else down
    up = up[..., None] if up.ndim == 2 else up
    if tuple(down.shape) != (rank, inputs, taps) or tuple(up.shape) != (outputs, rank, 1):
        raise CheckpointError(
            f"{path}: the matrices of {layer} have the shapes {list(pair['down'].shape)} and "
            f"{list(pair['up'].shape)}, but the layer has {inputs} inputs, {outputs} outputs and "
            f"{taps} taps; the file is of another model"
        )
    factor = (_find_alpha(path, layer, settings, rank) if alpha is None else alpha) / rank
    if settings.get("use_rslora") and alpha is None:
        factor *= math.sqrt(rank)
    if not math.isfinite(factor):
        raise CheckpointError(f"{path}: alpha of {layer} is not a finite number; train it again")
    up = up[..., 0].t()
    if factor != 1:
        up = factor * up.float()
    matrices = LowRank(
        torch.empty((inputs, taps, rank), dtype=dtype).copy_(down.permute(1, 2, 0)),
        torch.empty((rank, outputs), dtype=dtype).copy_(up),
    )
    for matrix in matrices:
        # Extremes are not finite where any value is not. They take one pass, isfinite() takes five.
        if not all(extreme.isfinite() for extreme in matrix.aminmax()):
            raise CheckpointError(
                f"{path}: {layer} has values that are not finite numbers; train it again"
            )
    return matrices


def _find_alpha(path: Path, layer: str, settings: Mapping[str, Any], rank: int) -> float:
    """Return the alpha of a layer, by the settings; the rank without any."""
    alpha: Any = settings.get("lora_alpha", rank)
    patterns = settings.get("alpha_pattern") or {}
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        if layer == pattern or layer.endswith(f".{pattern}"):
            alpha = value
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise CheckpointError(f"{path}: lora_alpha is not a number")
    return float(alpha)

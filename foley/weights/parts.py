"""Fill one network with tensors. Tensors that do not fit are refused by name.

A model with a missing or misshapen tensor would run, and generate noise.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from foley.configs import Preset
from foley.errors import CheckpointError
from foley.weights.components import build_on_meta
from foley.weights.detection import describe_fit
from foley.weights.key_maps import RULES, fuse_weight_norm
from foley.weights.translation import translate

logger = logging.getLogger(__name__)

_TOKENIZER_FILES = ("tokenizer_config.json", "vocab.json", "merges.txt")
_STORED_DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)
# Third-party files in eight bits may carry scales under several names. Weights read without their
# scales generate noise.
_SCALES = re.compile(r"(^|\.)(weight_scale|scale_weight|scale_input|input_scale|scaled_fp8)(_\d)?$")


def load_strict(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    origin: str,
    names: Mapping[str, str] | None = None,
) -> None:
    """Assign every tensor to the module without a copy, or refuse them all.

    Args:
        module: on the meta device or any other; it is set to evaluation, without gradients.
        weights: the tensors under the module's own names, in a floating type.
        origin: what to call the weights in messages.
        names: the module's names -> the names to show in messages.

    Raises:
        CheckpointError: names the first keys that are missing, unexpected, or of another shape or
            type.
    """
    names = names or {}
    expected = module.state_dict()
    missing = [key for key in expected if key not in weights]
    unexpected = [names.get(key, key) for key in weights if key not in expected]
    misshapen = [
        f"{names.get(key, key)} is {list(weights[key].shape)}, wanted {list(tensor.shape)}"
        for key, tensor in expected.items()
        if key in weights and weights[key].shape != tensor.shape
    ]
    mistyped = [
        f"{names.get(key, key)} is {str(tensor.dtype).removeprefix('torch.')}"
        for key, tensor in weights.items()
        if key in expected and tensor.dtype not in _STORED_DTYPES
    ]
    problems = [
        f"{len(keys)} {what} (first: {', '.join(keys[:3])})"
        for what, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshapen),
            ("of a type that is not read", mistyped),
        )
        if keys
    ]
    if problems:
        raise CheckpointError(
            f"{origin} does not fit {type(module).__name__}: {'; '.join(problems)}"
        )
    module.load_state_dict(weights, strict=True, assign=True)
    module.requires_grad_(False).eval()


def load_official(
    part: str, weights: Mapping[str, Tensor], preset: Preset, *, origin: str
) -> nn.Module:
    """Build one network from tensors under the official names.

    Unknown keys of a DiT are ignored with a warning, because the published file may hold tensors
    that only training uses.

    Args:
        part: a name in `components.PARTS`.
        weights: official names -> tensors.
        preset: the architecture to fit.
        origin: what to call the weights in messages.

    Raises:
        CheckpointError: the weights do not fit; the message says which part or preset they fit.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    if scales := [key for key in weights if _SCALES.search(key)]:
        raise CheckpointError(
            f"{origin} is quantised with scales, which are not read (first: {scales[0]}); use the "
            "plain fp8 file, the fp16 one, or the official one"
        )
    if part == "vae":
        weights = fuse_weight_norm(weights)
    translation = translate(weights, RULES[part])
    translated = translation.weights
    if part != "dit":
        # `load_strict` refuses these by name.
        translated = translated | {key: weights[key] for key in translation.unknown}
    module = build_on_meta(part, preset)
    try:
        load_strict(module, translated, origin=origin, names=translation.origins)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; wanted {preset.name}, and {describe_fit(part, shapes)}"
        ) from None
    if translation.unknown:
        listed = ", ".join(sorted(translation.unknown)[:3])
        count = len(translation.unknown)
        logger.warning("%s: %d unknown keys are ignored (first: %s)", origin, count, listed)
    return module


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the text encoder's tokenizer from local files.

    Raises:
        CheckpointError: the folder holds no tokenizer that can be read.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        # Without a class in its own file, transformers finds the tokenizer's in the model's.
        names = (_TOKENIZER_FILES, ("config.json",))
        absent = ([name for name in group if not (folder / name).is_file()] for group in names)
        missing = next(filter(None, absent), [])
        reason = f"{', '.join(missing)} missing" if missing else str(error).splitlines()[0]
        raise CheckpointError(
            f"no tokenizer in {folder}: {reason}; run `foley download`, or clone "
            "laion/larger_clap_general there"
        ) from error

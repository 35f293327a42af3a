"""Weights on disk -> modules. Strict: what does not fit is refused by name, never served as noise.

Three layouts are read: the official `.pth` files, third-party safetensors files under the official
tensor names, and our own directory, which `save_components` writes:

    DIR/foley.json                 preset, origin, and the index: the file of each part, its bytes
    DIR/{dit,vae,synchformer}/     diffusers layout: config.json and safetensors
    DIR/{vision,text}/             transformers layout; the tokenizer lies in text/
"""

import functools
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, ClapTextModel, PreTrainedTokenizerBase, SiglipVisionModel

from foley.configs import Preset, preset_from_dict
from foley.errors import CheckpointError, ConfigError, OutputError
from foley.models.dit import FoleyDiT, build_dit
from foley.models.encoders import build_text_encoder, build_vision_encoder, restore_buffers
from foley.models.synchformer import Synchformer, build_synchformer
from foley.models.vae import FoleyVAE, build_vae
from foley.weights import key_maps
from foley.weights.detection import DESCRIPTION_FILE, advice, find_official_file
from foley.weights.fp8 import Storage, pack, unpack
from foley.weights.licences import ACCEPTANCE_FILE, licence_of
from foley.weights.manifest import find_revision
from foley.weights.tensors import read_weights

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
# Copied along, so that the terms stay beside the weights.
TERMS = ("LICENSE", "NOTICE", ACCEPTANCE_FILE)
_STORED_DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)
# Others' files in eight bits may carry scales, under several names. Without them it is noise.
_SCALES = re.compile(r"(^|\.)(weight_scale|scale_weight|scale_input|input_scale|scaled_fp8)(_\d)?$")


@dataclass(frozen=True, kw_only=True)
class Components:
    """A complete model.

    Attributes:
        source: where the weights came from, for people.
        revision: of the repository that they came from; empty where it is not known.
    """

    preset: Preset
    dit: FoleyDiT
    vae: FoleyVAE
    synchformer: Synchformer
    vision: SiglipVisionModel
    text: ClapTextModel
    tokenizer: PreTrainedTokenizerBase
    source: str
    revision: str = ""

    def modules(self) -> dict[str, nn.Module]:
        """The parts that hold weights, by the name of their directory."""
        return {name: getattr(self, name) for name in _BUILDERS}


_BUILDERS: dict[str, Callable[[Preset], nn.Module]] = {
    "dit": lambda preset: build_dit(preset.dit),
    "vae": lambda preset: build_vae(preset.vae),
    "synchformer": lambda preset: build_synchformer(preset.synchformer),
    "vision": lambda preset: build_vision_encoder(preset.vision),
    "text": lambda preset: build_text_encoder(preset.text),
}

_RULES = {
    "dit": key_maps.DIT,
    "vae": key_maps.VAE,
    "synchformer": key_maps.SYNCHFORMER,
    "vision": key_maps.SIGLIP,
    "text": key_maps.CLAP,
}


def load_strict(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    origin: str,
    names: Mapping[str, str] | None = None,
) -> None:
    """Take every weight as it is, without copying, or refuse.

    Args:
        module: on the meta device, or any other.
        weights: under the module's own names.
        origin: what to call them in messages.
        names: our key -> the name to show in messages.

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
    foreign = [
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
            ("of a type that is not read", foreign),
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
    """One part of a model from tensors under the official names.

    Unknown keys of a DiT are tolerated with a warning, since the published file may hold
    training-only tensors; missing ones never are.

    Args:
        part: dit, vae, synchformer, vision or text.
        weights: official names -> tensors.
        preset: the architecture to fit.
        origin: what to call the weights in messages.

    Raises:
        CheckpointError: the weights do not fit; says which preset a DiT would fit.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in weights.items()}
    if scales := [key for key in weights if _SCALES.search(key)]:
        raise CheckpointError(
            f"{origin} is quantised with scales, which are not read (first: {scales[0]}); use the "
            "plain fp8 file, the fp16 one, or the official one"
        )
    if part == "vae":
        weights = key_maps.fuse_weight_norm(weights)
    translation = key_maps.translate(weights, _RULES[part])
    ours = translation.weights
    if part != "dit":
        ours = ours | {key: weights[key] for key in translation.unknown}  # refused by name below
    module = build_on_meta(part, preset)
    try:
        load_strict(module, ours, origin=origin, names=translation.origins)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; wanted {preset.name}, and {advice(part, shapes)}"
        ) from None
    if translation.unknown:
        listed = ", ".join(sorted(translation.unknown)[:3])
        count = len(translation.unknown)
        logger.warning("%s: %d unknown keys are ignored (first: %s)", origin, count, listed)
    return module


def build_on_meta(part: str, preset: Preset) -> nn.Module:
    """A part without memory for its weights."""
    with torch.device("meta"):
        module = _BUILDERS[part](preset)
    if isinstance(module, SiglipVisionModel | ClapTextModel):
        restore_buffers(module)
    return module


def load_components(root: Path, preset: Preset | None = None, *, device: str = "cpu") -> Components:
    """A complete model from our directory layout, or from a directory of official files.

    Args:
        root: the directory.
        preset: needed for official files; must agree with our own layout where given.
        device: where the weights are put, part by part; safetensors straight from the file's map.

    Raises:
        CheckpointError: something is missing or does not fit.
    """
    description = root / DESCRIPTION_FILE
    if description.is_file():
        return _load_own_layout(root, preset, device)
    if preset is None:
        raise CheckpointError(f"{root} holds no {DESCRIPTION_FILE}; name the preset of these files")
    parts: dict[str, Any] = {}
    paths = {part: find_official_file(part, preset, root) for part in _BUILDERS}
    for part, path in paths.items():
        is_used = functools.partial(key_maps.is_used, rules=_RULES[part])
        weights, _ = read_weights(path, device, is_used)
        module = load_official(part, weights, preset, origin=path.name)
        del weights
        # At once, so that the file's map goes before the next one is read.
        parts[part] = nn.Module.to(module, device)
    return Components(
        preset=preset,
        tokenizer=load_tokenizer(root / "larger_clap_general"),
        source=str(root),
        revision=find_revision(root, paths["dit"]),
        **parts,
    )


def _load_own_layout(root: Path, preset: Preset | None, device: str) -> Components:
    found, description = read_description(root)
    if preset is not None and preset != found:
        raise CheckpointError(
            f"{root} holds preset {found.name}, not {preset.name}, or another version of it; "
            "convert the original files again"
        )
    parts: dict[str, Any] = {}
    for part, path in _indexed(root, description).items():
        weights, _ = read_weights(path, device)
        module = build_on_meta(part, found)
        load_strict(module, unpack(weights), origin=f"{root.name}/{part}")
        del weights
        parts[part] = nn.Module.to(module, device)
    return Components(
        preset=found,
        tokenizer=load_tokenizer(root / "text"),
        source=str(root),
        revision=str(description.get("revision", "")),
        **parts,
    )


def _indexed(root: Path, description: Mapping[str, Any]) -> dict[str, Path]:
    """The file of each part, present and whole."""
    paths = {}
    for part in _BUILDERS:
        entry = description.get("files", {}).get(part)
        if entry is None:
            raise CheckpointError(f"{root / DESCRIPTION_FILE} names no file of the {part}")
        path = root / entry["path"]
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; copy the folder again, or convert again")
        if (found := path.stat().st_size) != entry["bytes"]:
            raise CheckpointError(
                f"{path} has {found} bytes, the index says {entry['bytes']}; copy the folder "
                "again, or convert again"
            )
        paths[part] = path
    return paths


def read_description(root: Path) -> tuple[Preset, dict[str, Any]]:
    """What `foley.json` in our own layout says.

    Raises:
        CheckpointError: unreadable, or written by a newer version.
    """
    path = root / DESCRIPTION_FILE
    try:
        description = json.loads(path.read_text())
        version = description["format"]
        preset = preset_from_dict(description["preset"])
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; convert again") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {version}, this version reads {FORMAT_VERSION}; convert again"
        )
    return preset, description


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The text encoder's tokenizer, from local files alone.

    Raises:
        CheckpointError: the folder holds none.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"no tokenizer in {folder}: {str(error).splitlines()[0]}") from error


def save_components(
    components: Components,
    destination: Path,
    *,
    source: str,
    storage: Storage = "bf16",
    terms: Path | None = None,
) -> None:
    """Write our directory layout, under a temporary name until it is complete.

    Args:
        components: what to write, in the dtypes that it has.
        destination: must not exist, or be empty.
        source: where the weights came from, for people.
        storage: fp8 halves the transformer's file.
        terms: folder whose licence files are copied along.

    Raises:
        OutputError: the destination holds something, or cannot be written.
    """
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise OutputError(f"{destination} exists and is not empty; name another folder")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    except OSError as error:
        raise OutputError(f"cannot write to {destination.parent}: {error.strerror}") from error
    try:
        files = {}
        for name, module in components.modules().items():
            # One file a part: the loader maps it whole, so shards would only be more names.
            module.save_pretrained(partial / name, max_shard_size="1TB")  # type: ignore[operator]
            (path,) = (partial / name).glob("*.safetensors")
            if name == "dit" and storage == "fp8":
                save_file(pack(module.state_dict()), path, metadata={"format": "pt"})
            place = path.relative_to(partial).as_posix()
            files[name] = {"path": place, "bytes": path.stat().st_size}
        components.tokenizer.save_pretrained(partial / "text")
        for name in TERMS:
            if terms is not None and (terms / name).is_file():
                shutil.copyfile(terms / name, partial / name)
        description = {
            "format": FORMAT_VERSION,
            "preset": components.preset.as_dict(),
            "source": source,
            "revision": components.revision,
            "licence": licence_of(components.preset.name).name,
            "storage": storage,
            "files": files,
        }
        (partial / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n")
        partial.chmod(0o755)
        if destination.exists():
            destination.rmdir()
        partial.rename(destination)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot write {destination}: {reason}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)

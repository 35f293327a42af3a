"""Weights on disk -> modules. Strict: what does not fit is refused by name, never served as noise.

Three layouts are read, recognised by their content: the official `.pth` files, third-party
safetensors files under the official names, and our own directory, which `save_components` writes:

    DIR/foley.json                 preset, whether trained, where the weights came from
    DIR/{dit,vae,synchformer}/     diffusers layout: config.json and safetensors
    DIR/{vision,text}/             transformers layout; the tokenizer lies in text/
"""

import json
import logging
import pickle
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoTokenizer, ClapTextModel, PreTrainedTokenizerBase, SiglipVisionModel

from foley import layouts
from foley.configs import PRESETS, Preset, preset_from_dict
from foley.errors import CheckpointError, ConfigError, OutputError
from foley.models.dit import FoleyDiT, build_dit
from foley.models.encoders import build_text_encoder, build_vision_encoder, restore_buffers
from foley.models.synchformer import Synchformer, build_synchformer
from foley.models.vae import FoleyVAE, build_vae

logger = logging.getLogger(__name__)

DESCRIPTION_FILE = "foley.json"
FORMAT_VERSION = 1

# Where each part may lie under a directory of downloaded files, the first that exists wins.
OFFICIAL_FILES: dict[str, dict[str, tuple[str, ...]]] = {
    "dit": {
        "xxl": ("hunyuanvideo_foley.safetensors", "hunyuanvideo_foley.pth"),
        "xl": ("hunyuanvideo_foley_xl.safetensors", "hunyuanvideo_foley_xl.pth"),
    },
    "vae": {"": ("vae_128d_48k.safetensors", "vae_128d_48k_fp16.safetensors", "vae_128d_48k.pth")},
    "synchformer": {
        "": (
            "synchformer_state_dict.safetensors",
            "synchformer_state_dict_fp16.safetensors",
            "synchformer_state_dict.pth",
        )
    },
    "vision": {"": ("siglip2-base-patch16-512/model.safetensors",)},
    "text": {
        "": (
            "larger_clap_general/model.safetensors",
            "larger_clap_general/pytorch_model.bin",
        )
    },
}

# What torch's restricted unpickler is seen to raise on bytes that are no pickle, among others.
_UNREADABLE = (
    SafetensorError,
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
)


@dataclass(frozen=True, kw_only=True)
class Components:
    """A complete model.

    Attributes:
        trained: False where the weights are seeded random numbers.
        source: where the weights came from, for people.
    """

    preset: Preset
    dit: FoleyDiT
    vae: FoleyVAE
    synchformer: Synchformer
    vision: SiglipVisionModel
    text: ClapTextModel
    tokenizer: PreTrainedTokenizerBase
    trained: bool
    source: str

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
    "dit": layouts.DIT,
    "vae": layouts.VAE,
    "synchformer": layouts.SYNCHFORMER,
    "vision": layouts.SIGLIP,
    "text": layouts.CLAP,
}


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of a checkpoint, mapped from the file where its format allows, and its metadata.

    Raises:
        CheckpointError: the file is missing, damaged, or holds more than tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; download the weights or name their folder")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                return tensors, file.metadata() or {}
        content = _unpickle(path)
    except _UNREADABLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {reason}; fetch the file again"
        ) from error
    metadata = {}
    if isinstance(content, Mapping) and "state_dict" in content:
        content, metadata = content["state_dict"], dict(content.get("metadata") or {})
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"{path} is not a dictionary of tensors; it is of another model")
    return dict(content), metadata


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):  # files written before PyTorch 1.6
            raise
        return torch.load(path, map_location="cpu", weights_only=True)


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
        CheckpointError: names the first keys that are missing, unexpected or of another shape.
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
    problems = [
        f"{len(keys)} {what} (first: {', '.join(keys[:3])})"
        for what, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshapen),
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
    if part == "vae":
        weights = layouts.fuse_weight_norm(weights)
    translation = layouts.translate(weights, _RULES[part])
    ours = translation.weights
    if translation.unknown and part == "dit":
        listed = ", ".join(sorted(translation.unknown)[:3])
        count = len(translation.unknown)
        logger.warning("%s: %d unknown keys are ignored (first: %s)", origin, count, listed)
    elif translation.unknown:
        ours = ours | {key: weights[key] for key in translation.unknown}  # refused by name below
    module = build_on_meta(part, preset)
    if part == "dit":
        _check_dit_size(ours, preset, origin)
    load_strict(module, ours, origin=origin, names=translation.origins)
    return module


def build_on_meta(part: str, preset: Preset) -> nn.Module:
    """A part without memory for its weights."""
    with torch.device("meta"):
        module = _BUILDERS[part](preset)
    if isinstance(module, SiglipVisionModel | ClapTextModel):
        restore_buffers(module)
    return module


def _check_dit_size(weights: Mapping[str, Tensor], preset: Preset, origin: str) -> None:
    """A clearer refusal where the file is simply of another size."""
    found = {
        "hidden_dim": len(weights["audio_in.weight"]) if "audio_in.weight" in weights else 0,
        "num_joint_blocks": len({k.split(".")[1] for k in weights if k.startswith("joint_blocks")}),
        "num_audio_blocks": len({k.split(".")[1] for k in weights if k.startswith("audio_blocks")}),
    }
    wanted = {key: getattr(preset.dit, key) for key in found}
    if found == wanted:
        return
    fits = [p.name for p in PRESETS.values() if {k: getattr(p.dit, k) for k in found} == found]
    advice = f"it fits preset {fits[0]}" if fits else "it fits no preset of this version"
    raise CheckpointError(
        f"{origin} does not fit preset {preset.name}: {found}, wanted {wanted}; {advice}"
    )


def has_official_files(preset: Preset, root: Path) -> bool:
    """Whether the transformer of `preset` lies under `root` in an official or third-party file."""
    return any((root / name).is_file() for name in OFFICIAL_FILES["dit"].get(preset.name, ()))


def find_official_file(part: str, preset: Preset, root: Path) -> Path:
    """Where a part of the official model lies under `root`.

    Raises:
        CheckpointError: nowhere; names every place that was looked at.
    """
    by_preset = OFFICIAL_FILES[part]
    candidates = by_preset.get(preset.name, by_preset.get("", ()))
    for candidate in candidates:
        if (root / candidate).is_file():
            return root / candidate
    raise CheckpointError(
        f"no {part} weights for preset {preset.name} in {root}; "
        f"looked for {', '.join(candidates)} and for {DESCRIPTION_FILE}"
    )


def load_components(root: Path, preset: Preset | None = None) -> Components:
    """A complete model from our directory layout, or from a directory of official files.

    Args:
        root: the directory.
        preset: needed for official files; must agree with our own layout where given.

    Raises:
        CheckpointError: something is missing or does not fit.
    """
    description = root / DESCRIPTION_FILE
    if description.is_file():
        return _load_own_layout(root, preset)
    if preset is None:
        raise CheckpointError(f"{root} holds no {DESCRIPTION_FILE}; name the preset of these files")
    parts: dict[str, Any] = {}
    for part in _BUILDERS:
        path = find_official_file(part, preset, root)
        weights, _ = read_weights(path)
        parts[part] = load_official(part, weights, preset, origin=path.name)
    tokenizer = load_tokenizer(root / "larger_clap_general")
    return Components(preset=preset, tokenizer=tokenizer, trained=True, source=str(root), **parts)


def _load_own_layout(root: Path, preset: Preset | None) -> Components:
    found, description = read_description(root)
    if preset is not None and preset != found:
        raise CheckpointError(
            f"{root} holds preset {found.name}, not {preset.name}, or another version of it; "
            "convert the original files again"
        )
    parts: dict[str, Any] = {}
    for part in _BUILDERS:
        paths = sorted((root / part).glob("*.safetensors"))
        if not paths:
            raise CheckpointError(f"{root / part} holds no safetensors file; convert again")
        weights: dict[str, Tensor] = {}
        for path in paths:
            weights |= read_weights(path)[0]
        module = build_on_meta(part, found)
        load_strict(module, weights, origin=f"{root.name}/{part}")
        parts[part] = module
    return Components(
        preset=found,
        tokenizer=load_tokenizer(root / "text"),
        trained=bool(description["trained"]),
        source=str(root),
        **parts,
    )


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


def save_components(components: Components, destination: Path, *, source: str) -> None:
    """Write our directory layout, under a temporary name until it is complete.

    Args:
        components: what to write, in the dtypes that it has.
        destination: must not exist, or be empty.
        source: where the weights came from, for people.

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
        for name, module in components.modules().items():
            # One file a part: the loader maps it whole, so shards would only be more names.
            module.save_pretrained(partial / name, max_shard_size="1TB")  # type: ignore[operator]
        components.tokenizer.save_pretrained(partial / "text")
        description = {
            "format": FORMAT_VERSION,
            "preset": components.preset.as_dict(),
            "trained": components.trained,
            "source": source,
        }
        (partial / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n")
        partial.chmod(0o755)
        if destination.exists():
            destination.rmdir()
        partial.rename(destination)
    except OSError as error:
        raise OutputError(f"cannot write {destination}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def random_components(preset: Preset, tokenizer: PreTrainedTokenizerBase, seed: int) -> Components:
    """A model of seeded random numbers: for tests, timing, and presets that are not trained yet."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts: dict[str, Any] = {name: build(preset) for name, build in _BUILDERS.items()}
        for module in parts.values():
            module.requires_grad_(False).eval()
            for parameter in module.parameters():
                if not parameter.any():  # learned tokens and positions start at zero
                    parameter.normal_(std=0.02)
    return Components(
        preset=preset,
        tokenizer=tokenizer,
        trained=False,
        source=f"random numbers, seed {seed}",
        **parts,
    )

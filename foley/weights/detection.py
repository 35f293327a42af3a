"""Find the file of each part in a folder: by the published names, then by the content."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from foley.configs import PRESETS, Preset
from foley.errors import CheckpointError
from foley.weights.tensors import Outline, read_outline

DESCRIPTION_FILE = "foley.json"

# Part -> preset (empty for all) -> places in a folder of downloaded files. The first that exists is
# used.
_PLACES: dict[str, dict[str, tuple[str, ...]]] = {
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

# Parts that are published in repositories of their own.
_ENCODERS = {"vision": "google/siglip2-base-patch16-512", "text": "laion/larger_clap_general"}

# A key that only this part's file has. It is the beginning of a key if it ends in a dot.
_SIGNS = {
    "dit": "audio_embedder.proj.weight",
    "vae": "decoder.model.0.",
    "synchformer": "vfeat_extractor.",
    "vision": "vision_model.embeddings.patch_embedding.weight",
    "text": "text_model.embeddings.word_embeddings.weight",
}


def identify_part(keys: Iterable[str]) -> str | None:
    """Return the part that a file holds; None if it holds none.

    Args:
        keys: the official keys in the file.
    """
    keys = list(keys)
    for part, sign in _SIGNS.items():
        if any(key.startswith(sign) if sign.endswith(".") else key == sign for key in keys):
            return part
    return None


def measure_dit(shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Return the width and depths of a transformer, by the names of `DiTConfig`.

    Args:
        shapes: official keys -> shapes.
    """

    def count(name: str) -> int:
        return len({key.split(".")[1] for key in shapes if key.startswith(f"{name}.")})

    return {
        "hidden_dim": shapes.get("audio_embedder.proj.weight", (0,))[0],
        "num_joint_blocks": count("triple_blocks"),
        "num_audio_blocks": count("single_blocks"),
    }


def fits_preset(sizes: Mapping[str, int], preset: Preset) -> bool:
    """Return whether a transformer of these sizes is the preset's.

    Args:
        sizes: from `measure_dit`.
        preset: the preset to compare with.
    """
    return sizes == {
        "hidden_dim": preset.dit.hidden_dim,
        "num_joint_blocks": preset.dit.num_joint_blocks,
        "num_audio_blocks": preset.dit.num_audio_blocks,
    }


def describe_fit(part: str, shapes: Mapping[str, Sequence[int]]) -> str:
    """Return what a file that does not fit as `part` holds, as a clause of a message.

    Args:
        part: the part that the file was read as.
        shapes: official keys -> shapes.
    """
    found = identify_part(shapes)
    if found is None:
        return "it holds no part of this model under the official names"
    if found != part:
        return f"it holds the {found}"
    if part != "dit":
        return "it is of another version of this part"
    sizes = measure_dit(shapes)
    names = [preset.name for preset in PRESETS.values() if fits_preset(sizes, preset)]
    return f"it fits preset {names[0]}" if names else f"it fits no preset of this version: {sizes}"


def has_official_files(preset: Preset, root: Path) -> bool:
    """Return whether the transformer of `preset` is under `root`, official or third-party."""
    return find_file("dit", preset, root) is not None


def find_file(part: str, preset: Preset, root: Path) -> Path | None:
    """Return the file of a part of the official model; None if there is none.

    Args:
        part: a name in `components.PARTS`.
        preset: decides which transformer is meant.
        root: the folder. Published names are tried first, then the content of every safetensors
            file; of several, the one with the most bits per number is returned.
    """
    for candidate in _candidates(part, preset):
        if (root / candidate).is_file():
            return root / candidate
    found = []
    for path in sorted(root.rglob("*.safetensors")):
        outline = read_outline(path)
        shapes = {key: entry.shape for key, entry in outline.items()}
        if identify_part(shapes) == part and (
            part != "dit" or fits_preset(measure_dit(shapes), preset)
        ):
            found.append((_mean_bytes(outline), path))
    # By name if several have as many bits per number.
    return min(found, key=lambda item: (-item[0], item[1]))[1] if found else None


def find_official_file(part: str, preset: Preset, root: Path) -> Path:
    """Return the file of a part of the official model, as `find_file`.

    Raises:
        CheckpointError: there is none; the message names every place that was tried.
    """
    path = find_file(part, preset, root)
    if path is None:
        advice = ""
        if repository := _ENCODERS.get(part):
            advice = (
                f"; the official repository does not hold this part: run `foley download "
                f"{preset.name}`, or clone {repository} into {root}"
            )
        raise CheckpointError(
            f"no {part} weights for preset {preset.name} in {root}; looked for "
            f"{', '.join(_candidates(part, preset))}, for {DESCRIPTION_FILE}, and into every "
            f"safetensors file{advice}"
        )
    return path


def _candidates(part: str, preset: Preset) -> tuple[str, ...]:
    by_preset = _PLACES[part]
    return by_preset.get(preset.name, by_preset.get("", ()))


def _mean_bytes(outline: Mapping[str, Outline]) -> float:
    width = {"F32": 4, "F16": 2, "BF16": 2}
    return sum(width.get(entry.dtype, 1) for entry in outline.values()) / len(outline)

"""Which file of a folder holds which part: by the published names, else by what is in it."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from foley.configs import PRESETS, Preset
from foley.errors import CheckpointError
from foley.weights.tensors import Outline, read_outline

DESCRIPTION_FILE = "foley.json"

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

# A key that a file of each part has and no other: whole, or the beginning where it ends in a dot.
_SIGNS = {
    "dit": "audio_embedder.proj.weight",
    "vae": "decoder.model.0.",
    "synchformer": "vfeat_extractor.",
    "vision": "vision_model.embeddings.patch_embedding.weight",
    "text": "text_model.embeddings.word_embeddings.weight",
}


def part_of(keys: Iterable[str]) -> str | None:
    """The part that official keys belong to."""
    keys = list(keys)
    for part, sign in _SIGNS.items():
        if any(key.startswith(sign) if sign.endswith(".") else key == sign for key in keys):
            return part
    return None


def dit_sizes(shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Width and depths of a transformer, from its official keys."""

    def count(name: str) -> int:
        return len({key.split(".")[1] for key in shapes if key.startswith(f"{name}.")})

    return {
        "hidden_dim": shapes.get("audio_embedder.proj.weight", (0,))[0],
        "num_joint_blocks": count("triple_blocks"),
        "num_audio_blocks": count("single_blocks"),
    }


def fits(sizes: Mapping[str, int], preset: Preset) -> bool:
    """Whether a transformer of these sizes is the preset's."""
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
    found = part_of(shapes)
    if found is None:
        return "it holds no part of this model under the official names"
    if found != part:
        return f"it holds the {found}"
    if part != "dit":
        return "it is of another version of this part"
    sizes = dit_sizes(shapes)
    names = [preset.name for preset in PRESETS.values() if fits(sizes, preset)]
    return f"it fits preset {names[0]}" if names else f"it fits no preset of this version: {sizes}"


def has_official_files(preset: Preset, root: Path) -> bool:
    """Whether the transformer of `preset` lies under `root` in an official or third-party file."""
    return find_file("dit", preset, root) is not None


def find_file(part: str, preset: Preset, root: Path) -> Path | None:
    """Where a part of the official model lies under `root`; the names come before the content."""
    for candidate in _candidates(part, preset):
        if (root / candidate).is_file():
            return root / candidate
    found = []
    for path in sorted(root.rglob("*.safetensors")):
        outline = read_outline(path)
        shapes = {key: entry.shape for key, entry in outline.items()}
        if part_of(shapes) == part and (part != "dit" or fits(dit_sizes(shapes), preset)):
            found.append((_mean_bytes(outline), path))
    # The one that kept most of each number; by name where that leaves a choice.
    return min(found, key=lambda item: (-item[0], item[1]))[1] if found else None


def find_official_file(part: str, preset: Preset, root: Path) -> Path:
    """Where a part of the official model lies under `root`.

    Raises:
        CheckpointError: nowhere; names every place that was looked at.
    """
    path = find_file(part, preset, root)
    if path is None:
        raise CheckpointError(
            f"no {part} weights for preset {preset.name} in {root}; looked for "
            f"{', '.join(_candidates(part, preset))}, for {DESCRIPTION_FILE}, and into every "
            "safetensors file"
        )
    return path


def _candidates(part: str, preset: Preset) -> tuple[str, ...]:
    by_preset = OFFICIAL_FILES[part]
    return by_preset.get(preset.name, by_preset.get("", ()))


def _mean_bytes(outline: Mapping[str, Outline]) -> float:
    width = {"F32": 4, "F16": 2, "BF16": 2}
    return sum(width.get(entry.dtype, 1) for entry in outline.values()) / len(outline)

"""Make a state folder to resume from: the package's weights and what only training needs.

    python -m training.unpack --out STATE

This is the inverse of `training.export`, which keeps the heads in `checkpoints/heads.safetensors`.
The trained weights are therefore in the repository only once.
"""

import argparse
import shutil
from pathlib import Path

from foley.weights.loading import load_components
from foley.weights.selection import EMBEDDED_WEIGHTS
from training.settings import TRAINED, load_state, save_state

CHECKPOINTS = Path(__file__).parent / "checkpoints"
HEADS = "heads.safetensors"
# For each file of a state: the prefixes of its names, and the part of the model that each holds.
FILES = {
    "vae": {"": "vae"},
    "encoders": {"sync.": "synchformer", "vision.": "vision"},
    "dit": {"dit.": "dit", "text.": "text"},
}


def unpack_state(
    state: Path, weights: Path = EMBEDDED_WEIGHTS, checkpoints: Path = CHECKPOINTS
) -> None:
    """Write a state folder.

    Args:
        state: the folder.
        weights: folder of the exported model.
        checkpoints: folder with the heads, the analysis and the judge.
    """
    state.mkdir(parents=True, exist_ok=True)
    parts = load_components(weights, TRAINED)
    heads = load_state(checkpoints / HEADS)
    for name, members in FILES.items():
        values = {
            k.removeprefix(f"{name}/"): v for k, v in heads.items() if k.startswith(f"{name}/")
        }
        for prefix, part in members.items():
            module = getattr(parts, part)
            values |= {prefix + key: value for key, value in module.state_dict().items()}
        save_state(state / f"{name}.safetensors", values)
    for name in ("analysis", "judge"):
        shutil.copy(checkpoints / f"{name}.safetensors", state)
    (state / "tokenizer").mkdir(exist_ok=True)
    for file in (weights / "text").glob("tokenizer*.json"):
        shutil.copy(file, state / "tokenizer")


def main() -> None:
    """Unpack the package's weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    unpack_state(parser.parse_args().out)


if __name__ == "__main__":
    main()

"""Add missing blocks to the sync encoder of a state, without a change of its output.

    python -m training.grow --state STATE --out STATE

This is for a preset that became deeper. A new block is a copy of the last one whose residual
outputs are zero. The tokens stay the same, and the gradients of the block are not zero.
"""

import argparse
from pathlib import Path

from torch import Tensor

from training.settings import TRAINED, load_state, save_state

_BLOCKS = "sync.blocks."
_ADDITIONS = (".time_attention.proj.", ".space_attention.proj.", ".mlp.2.")


def grow_encoders(encoders: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """The weights of the encoders with `num_layers` blocks in the sync encoder.

    Args:
        encoders: weights by their names in a state, unchanged by the call.
        num_layers: at least the number of blocks that there are.
    """
    last = max(int(name.split(".")[2]) for name in encoders if name.startswith(_BLOCKS))
    old = f"{_BLOCKS}{last}."
    held = dict(encoders)
    for new in (f"{_BLOCKS}{i}." for i in range(last + 1, num_layers)):
        for name in (name for name in encoders if name.startswith(old)):
            value = encoders[name].clone()
            if any(part in name for part in _ADDITIONS):
                value.zero_()
            held[name.replace(old, new)] = value
    return held


def main() -> None:
    """Grow the encoders of a state folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    encoders = load_state(args.state / "encoders.safetensors")
    layers = TRAINED.synchformer.num_layers
    save_state(args.out / "encoders.safetensors", grow_encoders(encoders, layers))


if __name__ == "__main__":
    main()

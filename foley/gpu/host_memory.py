"""Weights one after another in one piece of memory, so that one copy moves them all."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Each weight begins at a multiple of this.
_ALIGNMENT = 256


def hold_on_host(weights: Sequence[Tensor], *, pinned: bool) -> Tensor:
    """Return host memory, uint8, with copies of the weights as `lay_out` finds them.

    Args:
        weights: on any device.
        pinned: whether a GPU copies from there.
    """
    num_bytes = sum(_round_up(weight.nbytes) for weight in weights)
    memory = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=pinned)
    for weight, view in zip(weights, lay_out(memory, weights), strict=True):
        view.copy_(weight.detach())
    return memory


def lay_out(memory: Tensor, weights: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield views of memory in the shapes and types of the weights, contiguous, in their order.

    Args:
        memory: uint8, on any device, as large as that of `hold_on_host` or larger.
        weights: whose values are not read.
    """
    start = 0
    for weight in weights:
        yield memory[start : start + weight.nbytes].view(weight.dtype).view(weight.shape)
        start += _round_up(weight.nbytes)


def _round_up(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT

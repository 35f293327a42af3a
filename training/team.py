"""One training on several GPUs: the same model on each, clips of its own, the mean of gradients.

Started by `torchrun --nproc-per-node N -m training.train_dit ...`; alone, nothing is exchanged.
"""

import os
from dataclasses import dataclass

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Team:
    """This process among those that train together."""

    rank: int
    size: int

    @classmethod
    def join(cls) -> "Team":
        """As the environment of `torchrun` says; alone without it."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        rank = int(os.environ.get("RANK", "0"))
        if size > 1:
            torch.cuda.set_device(rank)
            distributed.init_process_group("nccl", device_id=torch.device("cuda", rank))
        return cls(rank, size)

    @property
    def leads(self) -> bool:
        """Whether this one writes and prints."""
        return self.rank == 0

    def average(self, tensors: list[Tensor]) -> None:
        """Replace each by its mean over all."""
        if self.size > 1:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            distributed.all_reduce(flat, distributed.ReduceOp.AVG)
            parts = flat.split([tensor.numel() for tensor in tensors])
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def mean(self, value: float) -> float:
        """Of a number that each has: the same everywhere, so that all decide alike."""
        if self.size == 1:
            return value
        held = torch.tensor([value], device="cuda")
        self.average([held])
        return held.item()

    def leave(self) -> None:
        """The end."""
        if self.size > 1:
            distributed.destroy_process_group()

"""One training on several GPUs: the same model on each, clips of its own, the mean of gradients.

Started by `torchrun --nproc-per-node N -m training.train_dit ...`, train_encoders likewise; alone,
nothing is exchanged. Without GPUs the processes share the CPU, to try a run before it costs one.
"""

import os
from dataclasses import dataclass

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those that train together."""

    rank: int
    size: int

    @classmethod
    def join(cls) -> "ProcessGroup":
        """As the environment of `torchrun` says; alone without it."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        rank = int(os.environ.get("RANK", "0"))
        if size > 1 and torch.cuda.is_available():
            torch.cuda.set_device(rank)
            distributed.init_process_group("nccl", device_id=torch.device("cuda", rank))
        elif size > 1:
            distributed.init_process_group("gloo")
        return cls(rank, size)

    @property
    def is_main(self) -> bool:
        """Whether this one writes and prints."""
        return self.rank == 0

    def average(self, tensors: list[Tensor]) -> None:
        """Replace each by its mean over all."""
        if self.size > 1:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            distributed.all_reduce(flat)
            parts = flat.div_(self.size).split([tensor.numel() for tensor in tensors])
            means = [part.view_as(tensor) for tensor, part in zip(tensors, parts, strict=True)]
            torch._foreach_copy_(tensors, means)

    def mean(self, value: float) -> float:
        """Of a number that each has: the same everywhere, so that all decide alike."""
        if self.size == 1:
            return value
        held = torch.tensor([float(value)], device="cuda" if torch.cuda.is_available() else "cpu")
        self.average([held])
        return held.item()

    def leave(self) -> None:
        """The end."""
        if self.size > 1:
            distributed.destroy_process_group()

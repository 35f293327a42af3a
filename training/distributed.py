"""Data-parallel training on several GPUs: each process has its own clips, gradients are averaged.

Start it by `torchrun --nproc-per-node N -m training.train_dit ...` (or `training.train_encoders`).
A single process exchanges nothing. Without GPUs the processes share the CPU, to try a run.
"""

import os
from dataclasses import dataclass

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class ProcessGroup:
    """This process's place among those that train together.

    Attributes:
        rank: 0 to size - 1.
        size: number of processes.
    """

    rank: int
    size: int

    @classmethod
    def join(cls) -> "ProcessGroup":
        """Join the group that `torchrun` describes; without it, a group of one."""
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
        """Whether this process writes files and prints."""
        return self.rank == 0

    def average(self, tensors: list[Tensor]) -> None:
        """Replace each tensor, in place, by its mean over all processes."""
        if self.size > 1:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            distributed.all_reduce(flat)
            parts = flat.div_(self.size).split([tensor.numel() for tensor in tensors])
            means = [part.view_as(tensor) for tensor, part in zip(tensors, parts, strict=True)]
            torch._foreach_copy_(tensors, means)

    def mean(self, value: float) -> float:
        """The mean of a number over all processes, so that all take the same decision."""
        if self.size == 1:
            return value
        held = torch.tensor([float(value)], device="cuda" if torch.cuda.is_available() else "cpu")
        self.average([held])
        return held.item()

    def leave(self) -> None:
        """End the communication with the other processes."""
        if self.size > 1:
            distributed.destroy_process_group()

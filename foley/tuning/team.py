"""The processes that train one adapter together, one for each GPU of a host.

`torchrun` and `accelerate launch` start them. All draw the same clips and noise, each computes its
share of a step's clips, and the gradients are added up: the result is that of one process, but for
the order of sums.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor, distributed

# The first process may compute what is read of the clips for a long time.
_LONGEST_WAIT = timedelta(hours=12)


class Team:
    """One process alone, or one of several.

    Attributes:
        rank: of this process, from 0.
        size: number of processes.
    """

    def __init__(self) -> None:
        is_many = distributed.is_available() and distributed.is_initialized()
        self.rank = distributed.get_rank() if is_many else 0
        self.size = distributed.get_world_size() if is_many else 1

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Return which of so many items are this process's."""
        return range(self.rank, count, self.size)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over all processes, in place.

        Args:
            tensors: of the same sizes in all processes.
        """
        if self.size > 1:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            distributed.all_reduce(flat)
            for tensor, summed in zip(
                tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True
            ):
                tensor.copy_(summed.view_as(tensor))

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """Let the first process do what is inside before the others do it."""
        if not self.leads:
            distributed.barrier()
        yield
        if self.leads and self.size > 1:
            distributed.barrier()


@contextmanager
def join_team(device: torch.device) -> Iterator[tuple[Team, torch.device]]:
    """Meet the processes that were started together; yields the team and this process's device.

    Args:
        device: where a process alone would train.
    """
    if not (distributed.is_available() and distributed.is_torchelastic_launched()):
        yield Team(), device
        return
    is_gpu = device.type == "cuda"
    if is_gpu:
        device = torch.device("cuda", distributed.get_node_local_rank())
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if is_gpu else "gloo", timeout=_LONGEST_WAIT)
    try:
        yield Team(), device
    finally:
        distributed.destroy_process_group()

"""Matrices of a step that lie in pinned host memory, and are copied while others compute.

The copies are part of the step. They begin after what comes before it and end before it does, so a
CUDA graph of the step holds them too.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from foley.gpu.host_memory import hold_on_host, lay_out
from foley.gpu.matrix import Matrix
from foley.models.dit import FoleyDiT


class HostedBlock:
    """A block's matrices, one after another in host memory.

    Args:
        matrices: on any device. Their weights become views of that memory.
        pinned: whether a GPU copies from there.

    Attributes:
        memory: uint8, of all their weights.
    """

    def __init__(self, matrices: Sequence[Matrix], *, pinned: bool) -> None:
        self._matrices = matrices
        self.memory = hold_on_host(self._list_rows(), pinned=pinned)
        self.use(self.memory)

    def use(self, memory: Tensor) -> None:
        """Let the matrices' weights be those in `memory`, laid out as in its own."""
        views = list(lay_out(memory, self._list_rows()))
        for matrix, rows in zip(self._matrices, views, strict=True):
            matrix.weight = rows.t()

    def _list_rows(self) -> list[Tensor]:
        """Return the weights [out, in], of which those of a matrix are transposed views."""
        return [matrix.weight.t() for matrix in self._matrices]


class MatrixStream:
    """Two places on the GPU, in which the streamed blocks of a step take turns.

    A block's matrices are copied to its place when the block that had it before has computed. So
    the copy runs beside the streamed block between the two, and all blocks that stay on the GPU.

    Args:
        blocks: in the order of their turns; none for a step that has all matrices at hand.
        device: where the step runs.
    """

    def __init__(self, blocks: Sequence[HostedBlock], device: torch.device) -> None:
        self._blocks = blocks
        self._stream = torch.cuda.Stream(device) if blocks and device.type == "cuda" else None
        self._arrived: list[torch.cuda.Event | None] = [None] * len(blocks)
        num_bytes = max((block.memory.nbytes for block in blocks), default=0)
        self._places = [
            torch.empty(num_bytes, dtype=torch.uint8, device=device) for _ in blocks[:2]
        ]
        for index, block in enumerate(blocks):
            block.use(self._places[index % 2])

    def begin_step(self) -> None:
        """Start the copies of the first two blocks; whatever used the places comes before."""
        self._fetch(0)
        self._fetch(1)

    @contextmanager
    def turn(self, index: int | None) -> Iterator[None]:
        """The context in which a block computes.

        Args:
            index: of the block in `blocks`; None for one that is not streamed.
        """
        if index is None:
            yield
            return
        arrived = self._arrived[index]
        if arrived is not None:
            torch.cuda.current_stream(arrived.device).wait_event(arrived)
        yield
        self._fetch(index + 2)

    def _fetch(self, index: int) -> None:
        """Start the copy of a block, if there is one, after all that has been launched."""
        if index >= len(self._blocks):
            return
        memory = self._blocks[index].memory
        place = self._places[index % 2][: memory.nbytes]
        if self._stream is None:
            place.copy_(memory)
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            place.copy_(memory, non_blocking=True)
            self._arrived[index] = self._stream.record_event()


def choose_streamed_blocks(
    dit: FoleyDiT, bytes_per_weight: int, resident_bytes: int
) -> list[nn.Module]:
    """Return the blocks of a transformer that are streamed, so that the others fit a budget.

    They are spread evenly over the order, so that the copy of each has the time of its neighbours.
    The first audio block always stays; see `foley.gpu.fused_step.FusedDiT`.

    Args:
        dit: with at least one audio block.
        bytes_per_weight: as they lie on the GPU.
        resident_bytes: the most that the blocks that stay, and the places of the others, may take.
    """
    first = dit.audio_blocks[0]
    others = [block for block in (*dit.joint_blocks, *dit.audio_blocks) if block is not first]
    sizes = [_count_bytes(block, bytes_per_weight) for block in others]
    budget = resident_bytes - _count_bytes(first, bytes_per_weight)
    if sum(sizes) <= budget:
        return []
    budget = max(0, budget - 2 * max(sizes))
    streamed, kept, seen = list[nn.Module](), 0, 0
    for block, size in zip(others, sizes, strict=True):
        seen += size
        if kept + size <= budget * seen / sum(sizes):
            kept += size
        else:
            streamed.append(block)
    return streamed


def _count_bytes(block: nn.Module, bytes_per_weight: int) -> int:
    return bytes_per_weight * sum(weight.numel() for weight in block.parameters())

"""Matrices of a step that lie in pinned host memory, and are copied while others compute.

The copies are part of the step. They begin after what comes before it and end before it does, so a
CUDA graph of the step holds them too.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from foley.gpu.matrix import Matrix
from foley.models.dit import FoleyDiT

# Each matrix begins at a multiple of this in the memory that it shares with others.
_ALIGNMENT = 256


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
        num_bytes = sum(_round_up(matrix.weight.nbytes) for matrix in matrices)
        self.memory = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=pinned)
        for matrix, view in zip(matrices, self._view(self.memory), strict=True):
            view.copy_(matrix.weight.data)
        self.use(self.memory)

    def use(self, memory: Tensor) -> None:
        """Let the matrices' weights be those in `memory`, laid out as in its own."""
        for matrix, view in zip(self._matrices, self._view(memory), strict=True):
            matrix.weight = view

    def _view(self, memory: Tensor) -> Iterator[Tensor]:
        start = 0
        for matrix in self._matrices:
            weight = matrix.weight  # [in, out], a transposed view
            flat = memory[start : start + weight.nbytes].view(weight.dtype)
            yield flat.view(weight.shape[::-1]).t()
            start += _round_up(weight.nbytes)


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


def _round_up(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT

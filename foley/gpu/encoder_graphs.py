"""A function run from CUDA graphs for a few sizes of its inputs, captured before requests come."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from foley.gpu.cuda_graphs import Capture


class GraphInput(NamedTuple):
    """An input that a graph reads from a fixed place.

    Attributes:
        shape: with -1 for the dimension that grows.
        dtype: of its values.
        padding: the value that fills it up to the size of a graph.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    padding: int

    def allocate(self, size: int, device: torch.device) -> Tensor:
        """Return memory for an input, filled with the padding.

        Args:
            size: of the dimension that grows.
            device: of the memory.
        """
        shape = [size if length < 0 else length for length in self.shape]
        return torch.full(shape, self.padding, dtype=self.dtype, device=device)


class SizedGraphs:
    """Runs a function of a few tensors that grow together, from a graph where one is large enough.

    Smaller inputs are padded up to a graph's size, and as much is dropped from the end of the
    result as was added: so the rest of the function's result must not depend on the padding. It
    is for one stream, because each call writes to the graph's places anew.

    Args:
        run: of tensors on one device, without anything that waits for it. Its result grows along
            the same dimension as the first input, by the same number.
        inputs: of `run`.
        sizes: of the graphs.
        device: of the graphs.
    """

    def __init__(
        self,
        run: Callable[..., Tensor],
        inputs: Sequence[GraphInput],
        sizes: Sequence[int],
        device: torch.device,
    ) -> None:
        self._run, self._inputs, self._device = run, inputs, device
        self._sizes = sorted(sizes)
        self._graphs: dict[int, _SizedGraph] = {}

    def prepare(self, capture: Capture) -> None:
        """Capture a graph for each size.

        Args:
            capture: captures graphs.

        Raises:
            torch.OutOfMemoryError: only some of the graphs were captured.
        """
        for size in reversed(self._sizes):  # the others find room in the memory of the largest
            self._graphs[size] = _SizedGraph(self._run, self._inputs, size, self._device, capture)

    def release(self) -> None:
        """Free all graphs and their memory: the function runs as it is from now on."""
        self._graphs.clear()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return what the function returns.

        Args:
            *inputs: as described to the constructor.
        """
        (dim,) = (d for d, length in enumerate(self._inputs[0].shape) if length < 0)
        count = inputs[0].shape[dim]
        for size in self._sizes:
            if size >= count and (graph := self._graphs.get(size)) is not None:
                result = graph(inputs, dim, size - count)
                return result.narrow(dim, 0, result.shape[dim] - (size - count)).clone()
        return self._run(*inputs)


class _SizedGraph:
    def __init__(
        self,
        run: Callable[..., Tensor],
        inputs: Sequence[GraphInput],
        size: int,
        device: torch.device,
        capture: Capture,
    ) -> None:
        self._inputs = inputs
        self._places = [expected.allocate(size, device) for expected in inputs]
        self._replay, self._result = capture(lambda: run(*self._places))

    def __call__(self, inputs: Sequence[Tensor], dim: int, missing: int) -> Tensor:
        """Return the tensor that holds the result, until the next call."""
        for expected, place, given in zip(self._inputs, self._places, inputs, strict=True):
            count = place.shape[dim] - missing
            place.narrow(dim, 0, count).copy_(given)
            if missing:  # it may hold an earlier call's values
                place.narrow(dim, count, missing).fill_(expected.padding)
        self._replay()
        return self._result

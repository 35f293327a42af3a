"""A function from CUDA graphs for few sizes of its inputs, all there before a request comes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from foley.gpu.step_graphs import Capture


class Input(NamedTuple):
    """What a graph reads from a fixed place.

    Attributes:
        shape: with -1 for the dimension that grows.
        dtype: of its values.
        filling: the value that fills it up to the size of a graph.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    filling: int

    def place(self, size: int, device: torch.device) -> Tensor:
        """Memory for an input of that size."""
        shape = [size if length < 0 else length for length in self.shape]
        return torch.full(shape, self.filling, dtype=self.dtype, device=device)


class SizedGraphs:
    """Runs a function of a few tensors that grow together, from a graph where one is large enough.

    Smaller inputs are filled up to a graph's size, and as much is dropped from the end of the
    result as was filled in: so what the function makes of the rest must not depend on that. It is
    for one stream, since a graph's place is written anew for each call.

    Args:
        run: of tensors on one device, without anything that waits for it. Its result grows along
            the same dimension as the first input, one for one.
        inputs: of `run`.
        sizes: of the graphs.
        device: where they lie.
    """

    def __init__(
        self,
        run: Callable[..., Tensor],
        inputs: Sequence[Input],
        sizes: Sequence[int],
        device: torch.device,
    ) -> None:
        self._run, self._inputs, self._device = run, inputs, device
        self._sizes = sorted(sizes)
        self._graphs: dict[int, _SizedGraph] = {}

    def prepare(self, capture: Capture) -> None:
        """Capture a graph for each size.

        Raises:
            torch.OutOfMemoryError: some are there.
        """
        for size in reversed(self._sizes):  # the others find room in the memory of the largest
            self._graphs[size] = _SizedGraph(self._run, self._inputs, size, self._device, capture)

    def release(self) -> None:
        """Let go of all graphs and their memory: the function runs as it is from now on."""
        self._graphs.clear()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """What the function gives."""
        (dim,) = (d for d, length in enumerate(self._inputs[0].shape) if length < 0)
        count = inputs[0].shape[dim]
        for size in self._sizes:
            if size >= count and (graph := self._graphs.get(size)) is not None:
                made = graph(inputs, dim, size - count)
                return made.narrow(dim, 0, made.shape[dim] - (size - count)).clone()
        return self._run(*inputs)


class _SizedGraph:
    def __init__(
        self,
        run: Callable[..., Tensor],
        inputs: Sequence[Input],
        size: int,
        device: torch.device,
        capture: Capture,
    ) -> None:
        self._inputs = inputs
        self._places = [wanted.place(size, device) for wanted in inputs]
        self._replay, self._result = capture(lambda: run(*self._places))

    def __call__(self, inputs: Sequence[Tensor], dim: int, missing: int) -> Tensor:
        """The result's place: it is the next call's too."""
        for wanted, place, given in zip(self._inputs, self._places, inputs, strict=True):
            count = place.shape[dim] - missing
            place.narrow(dim, 0, count).copy_(given)
            if missing:  # an earlier call's, else
                place.narrow(dim, count, missing).fill_(wanted.filling)
        self._replay()
        return self._result

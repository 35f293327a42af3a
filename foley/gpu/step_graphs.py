"""A transformer step as a CUDA graph: one launch in place of a thousand.

A graph has its inputs at fixed places in memory. So there is one graph for each combination of
lengths, with places of its own. A request's context is copied there once, its latents at every
evaluation.
"""

# N audio tokens of all clips together

import dataclasses
import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from foley.gpu.compilation import Pointwise
from foley.gpu.cuda_graphs import Capture, count_free_bytes
from foley.gpu.fused_context import FusedContext
from foley.gpu.fused_step import FusedDiT
from foley.gpu.matrix import Precision
from foley.models.adapters import find_adapters
from foley.models.context import DiTContext
from foley.models.dit import FoleyDiT
from foley.models.modulation import TimeModulation

logger = logging.getLogger(__name__)

# Up to so many audio tokens the host needs longer to launch a step than the GPU to compute it. Such
# a step is captured as soon as its batch comes a second time.
_SMALL_TOKENS = 6000
# Above, capturing costs about two steps: one that runs as it is, one for the capture, and memory
# that is given back and requested again. A replay then saves up to 45 % of a step (16 clips in fp8,
# where the host needs 190 ms for 107 ms of the GPU) or next to nothing. A rule that waits until as
# much time is lost as a capture costs takes at most twice the best time: in fp8 that is the fifth
# evaluation. The members of a full batch change every few steps, and a batch that has lasted for
# eight evaluations is likely to stay.
LARGE_EVALUATIONS = 8
# Large steps are captured only with so much free memory: such a graph keeps the intermediate values
# of its layers (an estimate for 16 clips of xxl: 1.5 GB, for 64 clips four times that).
_LARGE_FREE_BYTES = 8_000_000_000
_MOST_GRAPHS = 8

Nest = TypeVar("Nest")
StepFunction = Callable[[Tensor, TimeModulation, FusedContext], Tensor]


class FusedStep:
    """`FusedDiT` behind graphs; a `foley.denoise.Step`.

    Args:
        dit: see `FusedDiT`.
        precision: of the products.
        ops: the functions between products, for the same precision.
        capture: see `StepGraphs`.
        streamed: see `FusedDiT`.
    """

    def __init__(
        self,
        dit: FoleyDiT,
        precision: Precision,
        ops: Pointwise,
        capture: Capture,
        streamed: Collection[nn.Module] = (),
    ) -> None:
        self.fused = FusedDiT(dit, precision, ops, streamed)
        self._graphs = StepGraphs(self.fused, capture)
        self._context: DiTContext | None = None
        self._fused_context: FusedContext | None = None

    def __call__(self, latents: Tensor, time: TimeModulation, context: DiTContext) -> Tensor:
        """Return the velocities of packed clips, float32 [N, latent_dim].

        Args:
            latents: [N, latent_dim], clip after clip.
            time: one row for each clip.
            context: of the same clips. It is converted once while it is the same object.
        """
        if self._fused_context is None or context is not self._context:
            self._context, self._fused_context = context, FusedContext.of(context)
        return self._graphs(latents, time, self._fused_context)

    def forget(self) -> None:
        """Free the memory of the last batch."""
        self._context, self._fused_context = None, None

    def release(self) -> None:
        """Free all memory that earlier steps left, the graphs too."""
        self.forget()
        self._graphs.forget()


class StepGraphs:
    """Runs a step, from a graph where its lengths came before.

    The first evaluation of a context runs as it is, which also lets kernels be compiled and loaded.
    The second is captured, or a later one where steps are large. A batch whose members change at
    each step never pays for a capture. A graph needs memory of its own, beside the memory that
    steps use; where there is too little, steps run as they are.

    Args:
        step: of tensors on a GPU, without anything that waits for it.
        capture: captures graphs.
    """

    def __init__(self, step: StepFunction, capture: Capture) -> None:
        self._step = step
        self._capture = capture
        self._graphs: OrderedDict[tuple[Any, ...], _StepGraph] = OrderedDict()
        self._last: FusedContext | None = None
        self._evaluations = 0  # of the last context
        self._too_large: FusedContext | None = None

    def __call__(self, latents: Tensor, time: TimeModulation, context: FusedContext) -> Tensor:
        """Return what the step returns.

        Args:
            latents: [N, latent_dim].
            time: one row for each clip.
            context: of the same clips; the same object while the batch stays the same.
        """
        # Adapters change in their own places (`foley.models.adapters`), which a graph reads.
        key = (*_shapes_of((latents, time, context)), find_adapters())
        graph = self._graphs.get(key)
        if graph is None:
            if context is not self._last:
                self._last, self._evaluations = context, 0
            self._evaluations += 1
            if context is self._too_large or not self._is_worth_a_graph(latents):
                return self._step(latents, time, context)
            graph = self._try_to_capture(latents, time, context)
            if graph is None:
                return self._step(latents, time, context)
            self._graphs[key] = graph
            if len(self._graphs) > _MOST_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        return graph(latents, time, context)

    def _is_worth_a_graph(self, latents: Tensor) -> bool:
        if len(latents) <= _SMALL_TOKENS:
            return self._evaluations > 1
        if self._evaluations < LARGE_EVALUATIONS:
            return False
        return count_free_bytes(latents.device) >= _LARGE_FREE_BYTES

    def _try_to_capture(
        self, latents: Tensor, time: TimeModulation, context: FusedContext
    ) -> "_StepGraph | None":
        """Return a graph, or None with too little memory; then this context is not tried again."""
        try:
            return _StepGraph(self._step, self._capture, latents, time, context)
        except torch.OutOfMemoryError:
            self._too_large = context
        # Outside the handler, because its traceback holds the tensors that did not fit.
        logger.warning("too little memory for a graph of %d tokens", len(latents))
        self._drop_graphs()
        torch.cuda.empty_cache()
        return None

    def forget(self) -> None:
        """Free all graphs and their memory."""
        self._drop_graphs()
        self._last, self._too_large, self._evaluations = None, None, 0

    def _drop_graphs(self) -> None:
        if self._graphs and torch.cuda.is_initialized():
            torch.cuda.synchronize()  # the last one may still run
        self._graphs.clear()


class _StepGraph:
    """A captured step, and the places of its inputs."""

    def __init__(
        self,
        step: StepFunction,
        capture: Capture,
        latents: Tensor,
        time: TimeModulation,
        context: FusedContext,
    ) -> None:
        self._changing = _clone((latents, time))
        self._places = _clone(context)
        self._context = context
        self._replay, self._result = capture(lambda: step(*self._changing, self._places))

    def __call__(self, latents: Tensor, time: TimeModulation, context: FusedContext) -> Tensor:
        if context is not self._context:
            _fill(self._places, context)
            self._context = context
        _fill(self._changing, (latents, time))
        self._replay()
        return self._result.clone()


def _iterate_tensors(value: Any) -> Iterator[Tensor]:
    """Yield all tensors in nested dataclasses and tuples, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _iterate_tensors(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _iterate_tensors(getattr(value, field.name))


def _clone(value: Nest) -> Nest:
    """Return the same nest of dataclasses and plain tuples, with copies of its tensors."""
    if isinstance(value, Tensor):
        return value.clone()  # type: ignore[return-value]
    if isinstance(value, tuple):
        return tuple(map(_clone, value))  # type: ignore[return-value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _clone(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return type(value)(**fields)
    return value


def _fill(places: Any, value: Any) -> None:
    """Copy the tensors of a nest into those of another nest of the same shapes."""
    torch._foreach_copy_(list(_iterate_tensors(places)), list(_iterate_tensors(value)))


def _shapes_of(value: Any) -> tuple[Any, ...]:
    """Return what a graph is tied to: the shapes of a nest's tensors, and its other values."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, tuple):
        return tuple(map(_shapes_of, value))
    if dataclasses.is_dataclass(value):
        return tuple(_shapes_of(getattr(value, field.name)) for field in dataclasses.fields(value))
    return (value,)

"""A step as a CUDA graph: one launch in place of a thousand.

A graph has its inputs at fixed places in memory. So there is one for each combination of lengths,
with places of its own; a request's context is copied there once, its latents at every evaluation.
"""

import dataclasses
import logging
import math
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from foley.gpu.fused_step import FusedContext
from foley.models.dit import TimeModulation

logger = logging.getLogger(__name__)

# Up to so many audio tokens the host needs longer to launch a step than the GPU to compute it, and
# a step is captured as soon as its batch comes again.
_SMALL_TOKENS = 6000
# Above, capturing costs about two steps: one as it is, one in capturing, and memory that is given
# back and asked for anew. A replay then saves up to 45 % of a step (16 clips in fp8, where the host
# needs 190 ms for 107 of the GPU) or next to nothing. Whoever waits until as much is lost as
# capturing costs, pays twice the best at most: in fp8 that is the fifth evaluation. The members of
# a full batch change every few steps, and a batch that has lasted for eight evaluations is likely
# to stay.
LARGE_EVALUATIONS = 8
# Free beside all else, or large steps are not captured: such a graph keeps what lies between its
# layers (an estimate for 16 clips of xxl: 1.5 GB, for 64 four times that).
_LARGE_FREE_BYTES = 8_000_000_000
_MOST_GRAPHS = 8

# PyTorch allows one capture at a time in a process, and a process may have several GPUs.
_CAPTURING = threading.Lock()

T = TypeVar("T")
Step = Callable[[Tensor, TimeModulation, FusedContext], Tensor]
Replay = Callable[[], None]
Capture = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]


class StepGraphs:
    """Runs a step, from a graph where its lengths came before.

    The first evaluation of a context runs as it is, which also lets kernels be compiled and
    loaded; the second is captured, or one later where steps are large. A batch whose members change
    at each step never pays for that. A graph wants memory of its own, beside what steps use: where
    there is too little, steps run as they are.

    Args:
        step: of tensors on a GPU, without anything that waits for it.
        capture: makes a graph of a function without arguments; returns how to replay it, and
            where its result lies.
    """

    def __init__(self, step: Step, capture: Capture) -> None:
        self._step = step
        self._capture = capture
        self._graphs: OrderedDict[tuple[Any, ...], _Graph] = OrderedDict()
        self._last: FusedContext | None = None
        self._evaluations = 0  # of the last context
        self._too_large: FusedContext | None = None

    def __call__(self, latents: Tensor, time: TimeModulation, context: FusedContext) -> Tensor:
        """What the step gives."""
        key = _shapes((latents, time, context))
        graph = self._graphs.get(key)
        if graph is None:
            if context is not self._last:
                self._last, self._evaluations = context, 0
            self._evaluations += 1
            if context is self._too_large or not self._is_worth_a_graph(latents):
                return self._step(latents, time, context)
            graph = self._captured(latents, time, context)
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
        return free_bytes(latents.device) >= _LARGE_FREE_BYTES

    def _captured(
        self, latents: Tensor, time: TimeModulation, context: FusedContext
    ) -> "_Graph | None":
        """None where there is too little memory; not tried again for this context."""
        try:
            return _Graph(self._step, self._capture, latents, time, context)
        except torch.OutOfMemoryError:
            self._too_large = context
        # Outside the handler, whose traceback holds what did not fit.
        logger.warning("too little memory for a graph of %d tokens", len(latents))
        self._graphs.clear()
        torch.cuda.empty_cache()
        return None

    def forget(self) -> None:
        """Let go of all graphs and their memory."""
        self._graphs.clear()
        self._last, self._too_large, self._evaluations = None, None, 0


class _Graph:
    def __init__(
        self,
        step: Step,
        capture: Capture,
        latents: Tensor,
        time: TimeModulation,
        context: FusedContext,
    ) -> None:
        self._changing = _copied((latents, time))
        self._places = _copied(context)
        self._context = context
        self._replay, self._result = capture(lambda: step(*self._changing, self._places))

    def __call__(self, latents: Tensor, time: TimeModulation, context: FusedContext) -> Tensor:
        if context is not self._context:
            _fill(self._places, context)
            self._context = context
        _fill(self._changing, (latents, time))
        self._replay()
        return self._result.clone()


class CudaCapture:
    """Makes CUDA graphs that share the memory of their intermediate values.

    They may, because one is replayed after another, and results are copied out before the next.

    Args:
        priority: that kernels get for good, whichever stream replays them.
    """

    def __init__(self, priority: int = 0) -> None:
        self._priority = priority
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None
        self._graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        """A graph of `run`, and where its result lies."""
        device = run().device  # compiles and loads what is missing for these; capturing cannot
        if not self._graphs:  # memory whose last graph is gone is no longer anybody's to share
            self._pool = torch.cuda.graph_pool_handle()
        if self._stream is None:  # PyTorch's own belongs to the GPU of whoever captured first
            self._stream = torch.cuda.Stream(device, priority=self._priority)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on using the GPU.
        with (
            _CAPTURING,
            torch.cuda.device(device),
            torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ),
        ):
            result = run()
        self._graphs.add(graph)
        return graph.replay, result


def free_bytes(device: torch.device) -> float:
    """Memory that PyTorch holds without using it, or could still get; without end on the CPU."""
    if device.type != "cuda":
        return math.inf
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested dataclasses and tuples, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _tensors(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))


def _copied(value: T) -> T:
    """The same nest around copies of its tensors."""
    if isinstance(value, Tensor):
        return value.clone()  # type: ignore[return-value]
    if isinstance(value, tuple):
        return tuple(map(_copied, value))  # type: ignore[return-value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _copied(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return type(value)(**fields)
    return value


def _fill(places: Any, value: Any) -> None:
    torch._foreach_copy_(list(_tensors(places)), list(_tensors(value)))


def _shapes(value: Any) -> tuple[Any, ...]:
    """What a graph is tied to: shapes, and the lengths of the segments."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, tuple):
        return tuple(map(_shapes, value))
    if dataclasses.is_dataclass(value):
        return tuple(_shapes(getattr(value, field.name)) for field in dataclasses.fields(value))
    return (value,)

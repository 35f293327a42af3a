"""Capturing CUDA graphs: one launch in place of hundreds."""

import math
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# PyTorch allows one capture at a time in a process, and a process may have several GPUs.
_CAPTURING = threading.Lock()

# Runs a captured function again.
Replay = Callable[[], None]
# Captures a function without arguments; returns its replay, and the tensor that holds its result.
Capture = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]


class CudaCapture:
    """Captures CUDA graphs that share the memory of their intermediate values.

    They may share it, because one graph is replayed after another, and a result is copied before
    the next replay.

    Args:
        priority: of the graphs' kernels, for good, on any stream that replays them; lower numbers
            run first.
    """

    def __init__(self, priority: int = 0) -> None:
        self._priority = priority
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None
        self._graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        """Return the replay of a new graph, and the tensor that holds its result.

        Args:
            run: work on one GPU, without anything that waits for it. It is called twice.

        Raises:
            torch.OutOfMemoryError: the GPU has too little memory for the graph.
        """
        # The first call compiles and loads what is missing, which a capture cannot do.
        device = run().device
        if not self._graphs:  # a pool whose last graph is gone cannot be shared any more
            self._pool = torch.cuda.graph_pool_handle()
        if self._stream is None:  # PyTorch's own stream is on the GPU of the first capture
            self._stream = torch.cuda.Stream(device, priority=self._priority)
        graph = torch.cuda.CUDAGraph()
        # In the mode thread_local, other threads may use the GPU during the capture.
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


def count_free_bytes(device: torch.device) -> float:
    """Return the memory that PyTorch holds unused or could still get; infinity on a CPU."""
    if device.type != "cuda":
        return math.inf
    index = torch.cuda.current_device() if device.index is None else device.index
    reserved = torch.cuda.memory_reserved(index)
    free, total = torch.cuda.mem_get_info(index)
    allowed = torch.cuda.get_per_process_memory_fraction(index) * total - reserved
    return min(free, allowed) + reserved - torch.cuda.memory_allocated(index)

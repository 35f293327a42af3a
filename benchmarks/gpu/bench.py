"""The state and the measuring functions that the parts of the GPU benchmark share."""

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.records import percentile
from foley.conditioning import Encoding
from foley.configs import Preset


@dataclass
class Bench:
    """The options, the device, the preset, and the record that the parts fill.

    Attributes:
        args: of the command.
        device: cpu or cuda.
        preset: the model's size.
        record: results of the parts that have run.
    """

    args: argparse.Namespace
    device: torch.device
    preset: Preset
    record: dict[str, Any]

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def half(self) -> torch.dtype:
        """The type of the transformer: bfloat16 on a GPU, float32 on the CPU."""
        return torch.bfloat16 if self.on_gpu else torch.float32

    def wait(self) -> None:
        """Wait until the device has finished its work."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def measure_seconds(
        self, run: Callable[[], object], repeats: int, warm_up: int = 2
    ) -> list[float]:
        """Seconds of each run, measured until the device has finished.

        Args:
            run: the work.
            repeats: number of measured runs.
            warm_up: number of runs before them.
        """
        for _ in range(warm_up):
            run()
        self.wait()
        samples = []
        for _ in range(repeats):
            start = time.perf_counter()
            run()
            self.wait()
            samples.append(time.perf_counter() - start)
        return samples

    def measure_kernel_seconds(self, run: Callable[[], object], repeats: int = 20) -> float:
        """Median seconds of a short run on the device, without the host's time for the launches.

        Args:
            run: launches kernels.
            repeats: number of measured runs.
        """
        if not self.on_gpu:
            return percentile(self.measure_seconds(run, 3, 1), 50)
        for _ in range(3):
            run()
        pairs = [
            (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            for _ in range(repeats)
        ]
        # A long kernel runs first, so that the launches queue up behind it.
        torch.cuda._sleep(20_000_000)
        for begin, end in pairs:
            begin.record()
            run()
            end.record()
        self.wait()
        return percentile([begin.elapsed_time(end) / 1000 for begin, end in pairs], 50)

    def reset_peak(self) -> None:
        """Free unused memory and start a new measurement of its peak."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_bytes(self) -> int:
        """The peak of the allocated GPU memory since `reset_peak`; 0 on the CPU."""
        return torch.cuda.max_memory_allocated(self.device) if self.on_gpu else 0

    def allocated_bytes(self) -> int:
        """The GPU memory that is allocated now; 0 on the CPU."""
        gc.collect()
        return torch.cuda.memory_allocated(self.device) if self.on_gpu else 0

    @contextmanager
    def limit_memory(self, num_bytes: int | None) -> Iterator[None]:
        """Limit the GPU memory that the process may reserve inside the block; None for no limit."""
        if not self.on_gpu or num_bytes is None:
            yield
            return
        total = torch.cuda.mem_get_info(self.device)[1]
        torch.cuda.set_per_process_memory_fraction(min(1.0, num_bytes / total), self.device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, self.device)

    def peak_reserved_bytes(self) -> int:
        """The peak of the reserved GPU memory since `reset_peak`; 0 on the CPU."""
        return torch.cuda.max_memory_reserved(self.device) if self.on_gpu else 0

    def ceiling(self, precision: str = "bf16") -> float | None:
        """The measured rate of a large product in operations per second; None if not measured."""
        rate: float | None = self.record.get("ceilings", {}).get(f"matrix_{precision}")
        return rate


def drain(encoding: Encoding) -> Tensor:
    """Run an encoding to its end and return its result."""
    while True:
        try:
            next(encoding)
        except StopIteration as stop:
            tokens: Tensor = stop.value
            return tokens


@contextmanager
def freeze_collector(bench: Bench) -> Iterator[dict[str, Any]]:
    """Freeze the existing objects for the garbage collector, as the service's GPU process does.

    Yields:
        The collector's remaining cost: how often it ran inside the block (`count`), how often over
        all generations (`full`), and the longest and the total time in seconds.
    """
    bench.wait()
    gc.collect()
    gc.freeze()
    pauses: dict[str, Any] = {"frozen": gc.get_freeze_count(), "count": 0, "longest": 0.0}
    pauses |= {"total": 0.0, "full": 0}
    begun = 0.0

    def watch(phase: str, info: dict[str, int]) -> None:
        nonlocal begun
        if phase == "start":
            begun = time.perf_counter()
            return
        seconds = time.perf_counter() - begun
        pauses["count"] += 1
        pauses["full"] += info["generation"] == 2
        pauses["longest"] = max(pauses["longest"], seconds)
        pauses["total"] += seconds

    gc.callbacks.append(watch)
    try:
        yield pauses
    finally:
        gc.callbacks.remove(watch)
        gc.unfreeze()


def print_step(name: str, row: dict[str, Any]) -> None:
    """Print one line about a measured step.

    Args:
        name: of the step.
        row: its row of the record, see `benchmarks.gpu.parts`.
    """
    text = f"{name:38}{1000 * row['step_seconds']:9.2f} ms"
    text += f"{row['flop_per_second'] / 1e12:8.0f} TFLOP/s"
    if "efficiency" in row:
        text += (
            f"{100 * row['efficiency']:5.0f} % of the ceiling"
            f" ({100 * row['computed_efficiency']:.0f} % computed),"
            f" floor {1000 * row['floor_seconds']:.2f} ms"
        )
    if "times_bf16" in row:
        text += f", {row['times_bf16']:.2f} times bf16"
    if "efficiency_of_equal" in row:
        text += f", {100 * row['efficiency_of_equal']:.0f} % of equal lengths"
    print(f"{text}, peak {row['peak_bytes'] / 1e9:.2f} GB", flush=True)

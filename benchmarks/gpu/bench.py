"""What the parts of the GPU benchmark share: the device, the clock, and how results are told."""

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
    """What all parts share."""

    args: argparse.Namespace
    device: torch.device
    preset: Preset
    record: dict[str, Any]

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def half(self) -> torch.dtype:
        return torch.bfloat16 if self.on_gpu else torch.float32

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def timed(self, run: Callable[[], object], repeats: int, warm_up: int = 2) -> list[float]:
        """Seconds of each of several runs, the device waited for after each."""
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

    def kernel_seconds(self, run: Callable[[], object], repeats: int = 20) -> float:
        """Median seconds of a short run on the device, without what the host needs to launch it."""
        if not self.on_gpu:
            return percentile(self.timed(run, 3, 1), 50)
        for _ in range(3):
            run()
        pairs = [
            (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            for _ in range(repeats)
        ]
        # A long kernel first, behind which the launches queue up.
        torch.cuda._sleep(20_000_000)
        for begin, end in pairs:
            begin.record()
            run()
            end.record()
        self.wait()
        return percentile([begin.elapsed_time(end) / 1000 for begin, end in pairs], 50)

    def reset_peak(self) -> None:
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.device) if self.on_gpu else 0

    def held(self) -> int:
        """Bytes that other parts have left allocated."""
        gc.collect()
        return torch.cuda.memory_allocated(self.device) if self.on_gpu else 0

    @contextmanager
    def limited_to(self, num_bytes: int | None) -> Iterator[None]:
        """Within, the process may reserve no more of the GPU than this; None: all of it."""
        if not self.on_gpu or num_bytes is None:
            yield
            return
        total = torch.cuda.mem_get_info(self.device)[1]
        torch.cuda.set_per_process_memory_fraction(min(1.0, num_bytes / total), self.device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, self.device)

    def peak_reserved(self) -> int:
        return torch.cuda.max_memory_reserved(self.device) if self.on_gpu else 0

    def ceiling(self, precision: str = "bf16") -> float | None:
        return self.record.get("ceilings", {}).get(f"matrix_{precision}")


def drained(encoding: Encoding) -> Tensor:
    """What an encoding returns at its end."""
    try:
        while True:
            next(encoding)
    except StopIteration as stop:
        return stop.value


@contextmanager
def settled(bench: Bench) -> Iterator[dict[str, Any]]:
    """In which the garbage collector passes over what was there before, as in the runner's process;
    what it costs nevertheless: how often it ran, the longest time and the sum, in seconds.
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


def show(name: str, made: dict[str, Any]) -> None:
    text = f"{name:38}{1000 * made['step_seconds']:9.2f} ms"
    text += f"{made['flop_per_second'] / 1e12:8.0f} TFLOP/s"
    if "efficiency" in made:
        text += (
            f"{100 * made['efficiency']:5.0f} % of the ceiling"
            f" ({100 * made['computed_efficiency']:.0f} % computed),"
            f" floor {1000 * made['floor_seconds']:.2f} ms"
        )
    if "times_bf16" in made:
        text += f", {made['times_bf16']:.2f} times bf16"
    if "efficiency_of_equal" in made:
        text += f", {100 * made['efficiency_of_equal']:.0f} % of equal lengths"
    print(f"{text}, peak {made['peak_bytes'] / 1e9:.2f} GB", flush=True)

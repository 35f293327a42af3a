"""Measurement of a server under load: CPU time, GPU utilization and the server's own metrics."""

import threading
import time
from typing import Any

import psutil

from tests.server import Server

GPU_PERIOD_SECONDS = 0.1


class Meter:
    """Measures CPU time, GPU utilization and the server's metrics from its creation to `read`.

    `others_cpu_seconds` shows whether other processes used the machine. If it is high, the CPU
    time of the server is a better measure than elapsed time.

    Args:
        server: a running server.
        on_gpu: whether to sample the first GPU.
    """

    def __init__(self, server: Server, on_gpu: bool) -> None:
        self._server = server
        self._gpu = GpuMeter() if on_gpu else None
        self._counts = self._count()
        self._began = self._now()

    def read(self, num_requests: int) -> dict[str, Any]:
        """The figures since the meter was created. It cannot be read again.

        Args:
            num_requests: that were served in this time, for means.
        """
        machine, bench, server, seconds = (
            now - then for now, then in zip(self._now(), self._began, strict=True)
        )
        count = {name: now - self._counts.get(name, 0) for name, now in self._count().items()}
        evaluations = count.get("foley_step_seconds_count", 0)
        stages = {
            name.partition('stage="')[2].partition('"')[0]: total / max(1, num_requests)
            for name, total in count.items()
            if name.startswith("foley_stage_seconds_sum")
        }
        return {
            "server_cpu_seconds": round(server, 1),
            "others_cpu_seconds": round(machine - bench - server, 1),
            "evaluating_share": count.get("foley_step_seconds_sum", 0) / seconds,
            "requests_per_evaluation": count.get("foley_batch_size_sum", 0) / max(1, evaluations),
            "mean_stage_seconds": stages,
            **(self._gpu.read() if self._gpu else {}),
        }

    def _now(self) -> tuple[float, float, float, float]:
        machine = psutil.cpu_times()
        busy = sum(machine) - machine.idle - machine.iowait - machine.guest - machine.guest_nice
        server = sum(sum(process.cpu_times()[:4]) for process in self._server.family())
        return busy, sum(psutil.Process().cpu_times()[:2]), server, time.perf_counter()

    def _count(self) -> dict[str, float]:
        lines = self._server.client.get("/metrics").text.splitlines()
        pairs = (line.rpartition(" ") for line in lines if line.startswith("foley_"))
        return {name: float(value) for name, _, value in pairs}


class GpuMeter:
    """Samples the first GPU's utilization and memory in a thread until `read` is called."""

    def __init__(self) -> None:
        self._samples: list[tuple[int, int]] = []
        self._error = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def read(self) -> dict[str, Any]:
        """The mean utilization (0 to 1) and the peak memory in bytes, or the error."""
        self._ended.set()
        self._thread.join()
        if not self._samples:
            return {"gpu_busy_share": None, "gpu_error": self._error}
        shares = [share for share, _ in self._samples]
        return {
            "gpu_busy_share": sum(shares) / len(shares) / 100,
            "gpu_used_bytes": max(used for _, used in self._samples),
            "num_gpu_samples": len(shares),
        }

    def _sample(self) -> None:
        try:
            import pynvml  # of nvidia-ml-py, a dependency of BentoML

            pynvml.nvmlInit()
            gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
            while not self._ended.wait(GPU_PERIOD_SECONDS):
                share = pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu
                self._samples.append((share, pynvml.nvmlDeviceGetMemoryInfo(gpu).used))
        except Exception as error:  # noqa: BLE001 - the other figures are valid without the GPU
            self._error = repr(error)

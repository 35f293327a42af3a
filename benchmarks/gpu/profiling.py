"""The kernels of a run and their times."""

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity
from torch.profiler import profile as record

from benchmarks.gpu.bench import Bench
from benchmarks.records import percentile


def profile_run(
    bench: Bench, name: str, run: Callable[[], object], *, warm_up: int = 3, rows_shown: int = 16
) -> dict[str, Any]:
    """The kernels of one run, the longest first, and the elapsed time without the profiler.

    If the elapsed time is well above the kernels' sum, the device waits for the host.

    Args:
        bench: the shared state.
        name: for the printed table.
        run: the work.
        warm_up: number of runs before the measurement.
        rows_shown: number of kernels to print.
    """
    wall = percentile(bench.measure_seconds(run, 5 if bench.on_gpu else 1, warm_up=warm_up), 50)
    activity = ProfilerActivity.CUDA if bench.on_gpu else ProfilerActivity.CPU
    with record(activities=[activity]) as recorded:
        run()
        bench.wait()
    rows: list[dict[str, Any]] = []
    for event in recorded.key_averages():
        micros = event.self_device_time_total if bench.on_gpu else event.self_cpu_time_total
        if micros:
            rows.append({"name": event.key, "count": event.count, "seconds": micros / 1e6})
    rows.sort(key=lambda row: -row["seconds"])
    total = sum(row["seconds"] for row in rows)
    num_kernels = sum(row["count"] for row in rows)
    print(f"{name}: {1000 * wall:.2f} ms, its {num_kernels} kernels {1000 * total:.2f} ms")
    for row in rows[:rows_shown]:
        share = 100 * row["seconds"] / total if total else 0
        text = f"  {1000 * row['seconds']:8.3f} ms {share:5.1f} % {row['count']:5}"
        print(f"{text}  {row['name'][:100]}")
    return {"wall_seconds": wall, "total_seconds": total, "kernels": rows[:40]}

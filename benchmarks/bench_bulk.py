"""Measure what `foley bulk` costs beside the model alone, on the same clips in the same batches.

    python -m benchmarks.bench_bulk [--rows 40] [--cases 1:mp4 5:mp4 5:wav] [--rounds 3] [--record]

Both sides are driven by the same code. One is the process of `foley bulk`: clips are decoded, and
results are measured, marked, encoded and published. The other (`model_alone.py`) is given decoded
frames, and drops the waveforms. They take turns. The overhead is the quotient of their medians,
less 1, of processor time and of time; loading the model and the first rows are left out.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.records import environment, finish
from foley.bulk import BulkStart, BulkTask
from foley.cli.bulk.station import COMMAND
from foley.cli.bulk.stations import Stations
from foley.request import GenerationRequest
from tests.server import draw_clip

ALONE = (sys.executable, "-m", "benchmarks.model_alone")
SIDES = {"alone": ALONE, "bulk": COMMAND}
FPS = 25
PARTS = ("model", "media", "driver")  # the process with the model, what is below it, this one


def count_seconds(process: psutil.Process) -> tuple[float, float]:
    """Return the processor time of a process, and of all below it that live or were waited for."""
    below = 0.0
    for one in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            below += sum(one.cpu_times()[:4])
    own = process.cpu_times()
    return own.user + own.system, below + own.children_user + own.children_system


def make_tasks(
    clip: Path, output: Path, count: int, num_steps: int | None, name: str, suffix: str
) -> list[BulkTask]:
    """Return rows of one clip, with equal work and seeds of their own."""
    return [
        BulkTask(
            id=f"{name}-{index}",
            clip=str(clip),
            request=GenerationRequest.parse(
                prompt="taps", seed=index, num_inference_steps=num_steps
            ),
            output=str(output),
            names=(f"{name}-{index}.{suffix}",),
        )
        for index in range(count)
    ]


def measure(stations: Stations, tasks: list[BulkTask]) -> dict[str, float]:
    """Return the seconds that rows take, and the processor time of the processes."""
    driver, worker = psutil.Process(), psutil.Process(stations.processes[0].pid)
    before = *count_seconds(worker), sum(driver.cpu_times()[:2])
    began = time.perf_counter()
    outcomes = list(stations.work(tasks))
    seconds = time.perf_counter() - began
    after = *count_seconds(worker), sum(driver.cpu_times()[:2])
    assert all(one.state == "done" for one in outcomes), outcomes
    return {
        "seconds": seconds,
        "model_cpu_seconds": after[0] - before[0],
        "media_cpu_seconds": after[1] - before[1],
        "driver_cpu_seconds": after[2] - before[2],
        "device_seconds": sum(one.device_seconds for one in outcomes),
        "sound_seconds": sum(one.duration_seconds for one in outcomes),
    }


def summarise(runs: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Return the overhead of `foley bulk`, from runs of both sides."""
    cpu = {
        side: median(sum(run[f"{part}_cpu_seconds"] for part in PARTS) for run in taken)
        for side, taken in runs.items()
    }
    wall = {side: median(run["seconds"] for run in taken) for side, taken in runs.items()}
    return {
        "cpu_overhead": cpu["bulk"] / cpu["alone"] - 1,
        "wall_overhead": wall["bulk"] / wall["alone"] - 1,
        "media_cpu_seconds": median(run["media_cpu_seconds"] for run in runs["bulk"]),
        **{f"{side}_cpu_seconds": value for side, value in cpu.items()},
        **{f"{side}_seconds": value for side, value in wall.items()},
    }


def main() -> None:
    """Print a table, and the record."""
    parser = argparse.ArgumentParser(description="the overhead of foley bulk")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--weights")
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=6, help="rows at once")
    parser.add_argument(
        "--cases", nargs="+", default=["1:mp4", "5:mp4", "5:wav"], help="seconds and format"
    )
    parser.add_argument("--steps", type=int, help="the model's own by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", default="320x240")
    parser.add_argument("--hardware", default="epyc")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the entry point of `foley bulk` does
    start = BulkStart(
        preset=options.preset, device=options.device, weights=options.weights, jobs=options.jobs
    )
    record: dict[str, Any] = {"what": "bulk", **environment(), "options": vars(options)}
    record["results"] = []
    with tempfile.TemporaryDirectory(prefix="foley-") as scratch:
        folder = Path(scratch)
        stations = {side: Stations(start, [{}], command=command) for side, command in SIDES.items()}
        try:
            for case in options.cases:
                length, _, suffix = case.partition(":")
                clip = folder / f"{length}.mp4"
                draw_clip(clip, num_frames=round(FPS * float(length)), size=(width, height))
                runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
                for number in range(-1, options.rounds):  # the first round warms up
                    for side, station in stations.items():
                        count = options.rows if number >= 0 else options.jobs
                        name = f"{length}-{suffix}-{number}"
                        tasks = make_tasks(clip, folder / "out", count, options.steps, name, suffix)
                        measured = measure(station, tasks)
                        if number >= 0:
                            runs[side].append(measured)
                found = {"clip_seconds": float(length), "format": suffix}
                found |= {**summarise(runs), "load_average": psutil.getloadavg(), "runs": runs}
                record["results"].append(found)
                print(
                    f"{options.rows} clips of {length} s to {suffix}: processor time "
                    f"{found['alone_cpu_seconds']:.1f} s alone, {found['bulk_cpu_seconds']:.1f} s "
                    f"in bulk ({found['cpu_overhead']:+.1%}), {found['media_cpu_seconds']:.1f} s "
                    f"of it for media; time {found['alone_seconds']:.1f} s, "
                    f"{found['bulk_seconds']:.1f} s ({found['wall_overhead']:+.1%})",
                    flush=True,
                )
        finally:
            for station in stations.values():
                station.close()
    finish(record, hardware=options.hardware, write=options.record)


if __name__ == "__main__":
    main()

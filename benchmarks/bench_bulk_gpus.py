"""Measure `foley bulk` on the GPUs of one machine: each of them alone, and all together.

    python -m benchmarks.bench_bulk_gpus --preset xxl --weights DIR [--rows 64] [--record]

Rows go from clips to files, through the processes of `foley bulk`, which are loaded once. In each
round every process works on its rows while the others idle, and then all work on as many rows each.
The share is the rate of all together over the sum of the rates of each alone. A run on CPUs
(`--device cpu --workers 2`) shows that the command works, and no more: they share cores.
"""

import argparse
import copy
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.bench_bulk import FPS, make_tasks
from benchmarks.records import environment, finish
from foley.bulk import BulkStart
from foley.cli.bulk.stations import Stations, plan_environments
from foley.hardware.doctor import refuse_unfit
from tests.server import draw_clip


def measure(stations: Stations, clip: Path, output: Path, name: str, options: Any) -> float:
    """Return the rows a second of some processes, with equal work for each of them."""
    count = int(options.rows) * len(stations.processes)
    tasks = make_tasks(clip, output, count, options.steps, name, options.format)
    began = time.perf_counter()
    outcomes = list(stations.work(tasks))
    seconds = time.perf_counter() - began
    assert all(one.state == "done" for one in outcomes), outcomes
    return count / seconds


def choose(stations: Stations, index: int) -> Stations:
    """Return one of the processes as if it were the only one."""
    alone = copy.copy(stations)
    alone.processes = (stations.processes[index],)
    return alone


def main() -> None:
    """Print a table, and the record."""
    parser = argparse.ArgumentParser(description="foley bulk on several GPUs")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--weights")
    parser.add_argument("--workers", type=int, help="one a GPU by default")
    parser.add_argument("--jobs", type=int, help="rows at once in each process")
    parser.add_argument("--rows", type=int, default=64, help="for each process, in each round")
    parser.add_argument("--seconds", type=float, default=8.0, help="of the clip")
    parser.add_argument("--format", default="mp4")
    parser.add_argument("--steps", type=int, help="the model's own by default")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--size", default="1280x720")
    parser.add_argument("--hardware", default="h200")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the entry point of `foley bulk` does
    weights = Path(options.weights).absolute() if options.weights else None
    machine = refuse_unfit(preset=options.preset, device=options.device, weights=weights)
    start = BulkStart(
        preset=options.preset,
        device=options.device,
        weights=str(weights) if weights else None,
        jobs=options.jobs,
    )
    began = time.perf_counter()
    stations = Stations(
        start, plan_environments(options.device, len(machine.gpus), options.workers), print
    )
    record: dict[str, Any] = {"what": "bulk_gpus", **environment(), "options": vars(options)}
    record["load_seconds"] = time.perf_counter() - began
    record["description"] = stations.processes[0].ready.description
    record["jobs"] = stations.processes[0].ready.jobs
    count = len(stations.processes)
    print(f"{count} processes loaded in {record['load_seconds']:.1f} s", flush=True)
    alone: list[list[float]] = [[] for _ in range(count)]
    together: list[float] = []
    with tempfile.TemporaryDirectory(prefix="foley-") as scratch:
        clip, output = Path(scratch, "clip.mp4"), Path(scratch, "out")
        draw_clip(clip, num_frames=round(FPS * options.seconds), size=(width, height))
        try:
            measure(stations, clip, output, "warm", options)  # all sizes of batches
            for number in range(options.rounds):
                for index, rates in enumerate(alone):
                    name = f"alone-{number}-{index}"
                    rates.append(measure(choose(stations, index), clip, output, name, options))
                    print(f"process {index} alone: {rates[-1]:.3f} rows a second", flush=True)
                together.append(measure(stations, clip, output, f"all-{number}", options))
                print(f"all together: {together[-1]:.3f} rows a second", flush=True)
        finally:
            stations.close()
    record["rows_per_second_alone"] = alone
    record["rows_per_second_together"] = together
    record["share"] = median(together) / sum(map(median, alone))
    record["load_average"] = psutil.getloadavg()
    print(f"{count} together make {record['share']:.1%} of the sum of each alone")
    finish(record, hardware=options.hardware, write=options.record)


if __name__ == "__main__":
    main()

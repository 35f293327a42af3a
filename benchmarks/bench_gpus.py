"""Measure the GPU process alone, without HTTP and media, on one GPU and on several.

    python -m benchmarks.random_model /dev/shm/xxl --preset xxl
    python -m benchmarks.bench_gpus --preset xxl --weights /dev/shm/xxl --gpus 1 2 [--record]

Each number of GPUs gets a fresh program and an empty cache of compiled code (`--cache DIR` takes a
filled one). It notes the seconds until the model is ready, then those of one request alone, and
then those of as many requests for each GPU, submitted at once. Their frames are there already. The
share is the rate of all GPUs over so many times the rate of one.

A run on a CPU (`--device cpu --preset tiny --seconds 1 --steps 2`) shows that the command works,
and no more: its processes share the cores.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.records import environment, finish, percentile
from foley.configs import PRESETS, SYNC_FPS, VISUAL_FPS
from foley.request import GenerationRequest
from foley.types import VideoFrames
from runners.handoff import FRAMES, FrameCounts, save_frames
from runners.logs import configure_logging
from runners.messages import RunnerRequest
from runners.settings import Settings, plan_model_environments
from runners.worker.loading import ModelChoice
from runners.worker.process_device import ProcessDevice
from runners.worker.startup import start_worker
from runners.worker.worker import Worker

TIMEOUT_SECONDS = 3600.0
ALONE = 5  # requests one after another; the first ones are slower


def start(options: argparse.Namespace, count: int) -> Worker:
    """Return the worker of a service with so many GPUs, or of as many processes on a CPU."""
    capacity = max(2, options.jobs * count)
    if options.device == "cpu" and count > 1:
        choice = ModelChoice(options.preset, "cpu", options.weights)
        environments = plan_model_environments(count)
        return Worker(
            lambda: [ProcessDevice(f"cpu:{i}", choice, env) for i, env in enumerate(environments)],
            capacity=capacity,
        )
    given = {"preset": options.preset, "device": options.device, "weights": options.weights}
    settings = Settings().model_copy(update={**given, "max_concurrency": capacity})
    return start_worker(settings)


def draw_frames(preset: str, seconds: float, folder: Path) -> FrameCounts:
    """Write frames of noise, at the sizes of the model's encoders."""
    sizes = PRESETS[preset].vision.image_size, PRESETS[preset].synchformer.image_size
    counts = round(VISUAL_FPS * seconds), round(SYNC_FPS * seconds)
    visual, sync = (
        torch.randint(256, (count, size, size, 3), dtype=torch.uint8)
        for count, size in zip(counts, sizes, strict=True)
    )
    frames = VideoFrames(
        visual=visual, sync=sync, num_picked=counts[1], source_seconds=float(seconds)
    )
    return save_frames(frames, folder)


class Client:
    """Submits requests of one clip.

    Args:
        worker: ready.
        folder: for the files of requests.
        options: of the command.
    """

    def __init__(self, worker: Worker, folder: Path, options: argparse.Namespace) -> None:
        self._worker = worker
        self._folder = folder
        self._options = options
        self._counts = draw_frames(worker.status.preset, options.seconds, folder)
        self._num_sent = 0

    def run(self, count: int) -> dict[str, Any]:
        """Return the seconds of so many requests that are submitted at once."""
        program = psutil.Process()
        before, began = count_cpu_seconds(program), time.perf_counter()
        ended: list[float] = []
        jobs = []
        for _ in range(count):
            self._num_sent += 1
            folder = Path(tempfile.mkdtemp(dir=self._folder))
            os.link(self._folder / FRAMES, folder / FRAMES)
            request = RunnerRequest(
                id=folder.name,
                folder=str(folder),
                options=GenerationRequest(
                    prompt="rain",
                    seed=self._num_sent,
                    num_inference_steps=self._options.steps,
                ),
                timeout_seconds=TIMEOUT_SECONDS,
            )
            job = self._worker.admit(request)
            job.outcome.add_done_callback(lambda _: ended.append(time.perf_counter() - began))
            self._worker.queue(job, self._counts)
            jobs.append((job, folder))
        for job, folder in jobs:
            job.outcome.result()
            shutil.rmtree(folder)
        seconds = time.perf_counter() - began
        cpu = {pid: s - before.get(pid, 0.0) for pid, s in count_cpu_seconds(program).items()}
        return {
            "seconds": seconds,
            "clips_per_second": count / seconds,
            "p50": percentile(ended, 50),
            "worker_cpu_share": cpu.pop(program.pid) / seconds,
            "device_cpu_shares": [spent / seconds for spent in cpu.values()],
        }


def count_cpu_seconds(program: psutil.Process) -> dict[int, float]:
    """Return the processor time of a process, and of each of its children."""
    return {one.pid: sum(one.cpu_times()[:2]) for one in (program, *program.children())}


def measure(options: argparse.Namespace, count: int) -> dict[str, Any]:
    """Return the row of so many GPUs, measured in this program."""
    configure_logging("error")
    began = time.perf_counter()
    worker = start(options, count)
    while worker.status.state == "loading":
        time.sleep(0.05)
    assert worker.status.state == "ready", worker.status
    row: dict[str, Any] = {"gpus": count, "ready_seconds": time.perf_counter() - began}
    with tempfile.TemporaryDirectory(prefix="foley-", dir=options.scratch) as folder:
        client = Client(worker, Path(folder), options)
        row["alone_seconds"] = [client.run(1)["seconds"] for _ in range(ALONE)]
        row["rounds"] = [client.run(options.jobs * count) for _ in range(options.rounds)]
    row["worker_has_cuda"] = torch.cuda.is_initialized()
    worker.stop(10)
    return row


def measure_apart(count: int, cache: Path | None) -> dict[str, Any]:
    """Return the row of so many GPUs, measured in a program of its own."""
    folder = tempfile.mkdtemp(prefix="foley-compiled-")
    places = {
        "TORCHINDUCTOR_CACHE_DIR": str(cache or folder),
        "TRITON_CACHE_DIR": str((cache or Path(folder)) / "triton"),
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(count))),
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_gpus", *sys.argv[1:], "--row", str(count)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, **places},
    )
    shutil.rmtree(folder)
    row: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return row


def main() -> None:
    """Print a line for each number of GPUs, and the record."""
    parser = argparse.ArgumentParser(description="the GPU process alone, on several GPUs")
    parser.add_argument("--preset", default="xxl")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--jobs", type=int, default=16, help="for each GPU, at once")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0, help="of the clip")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--cache", type=Path, help="of compiled code; an empty one each by default")
    parser.add_argument("--scratch", help="for frames and sounds", default="/dev/shm")
    parser.add_argument("--hardware", default="h200")
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    if options.row:
        print(json.dumps(measure(options, options.row)), flush=True)
        os._exit(0)  # the threads of the model end with the process
    record: dict[str, Any] = {"what": "gpus", **environment()}
    record["options"] = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(options).items()
    }
    record["rows"] = []
    for count in options.gpus:
        row = measure_apart(count, options.cache)
        record["rows"].append(row)
        first = record["rows"][0]
        best, best_of_first = (
            max(one["clips_per_second"] for one in each["rounds"]) for each in (row, first)
        )
        row["share"] = best / row["gpus"] / (best_of_first / first["gpus"])
        print(
            f"{count} GPUs: ready in {row['ready_seconds']:.1f} s, one request "
            f"{row['alone_seconds'][-1]:.3f} s, {best:.3f} clips a second, {row['share']:.1%} of "
            f"so many times {first['gpus']}; the worker's processor "
            f"{row['rounds'][-1]['worker_cpu_share']:.0%}",
            flush=True,
        )
    finish(record, hardware=options.hardware, write=options.record)


if __name__ == "__main__":
    main()

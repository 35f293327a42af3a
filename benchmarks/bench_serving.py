"""A started server under load, over loopback: open-loop arrivals of mixed requests, then callers
who each wait for their answer.

    python -m benchmarks.bench_serving [--requests 64] [--rate 1.5] [--protocol grpc] [--record]
    python -m benchmarks.bench_serving --whole-requests     whole-request batching alone

On a GPU, after `python -m benchmarks.random_model DIR --preset xxl`:

    python -m benchmarks.bench_serving --preset xxl --device cuda --weights DIR --step-only
        --closed-seconds 8 --closed-steps 50 --picture 1280x720 320x240 --api-workers 4

The same arrivals are served with step-level and with whole-request batching (`whole_requests.py`),
one after the other on servers of their own; then one caller and sixteen callers work through the
same list of requests, or with --closed-seconds through equal ones. The quality number is the
largest difference between a request's sound alone and among others. On a GPU, its busy share is the
driver's: of short periods, the part in which any kernel ran.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import io
import itertools
import os
import random
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import grpc
import httpx
import numpy as np

from benchmarks.meters import Meter
from benchmarks.records import environment, finish, percentile
from foley.v1.foley_pb2 import GenerateOptions, GenerateRequest
from foley.v1.foley_pb2_grpc import FoleyServiceStub
from runners.process import free_port
from tests.server import Server, draw_clip

STEP, WHOLE = "service:FoleyApi", "benchmarks.whole_requests:FoleyApi"
LENGTHS_SECONDS = tuple(range(1, 11))
SHORT_SECONDS = 3  # and shorter clips are called short
STEPS = (10, 20, 30)
PATIENCE_SECONDS = 600
READY_SECONDS = 400  # a GPU's kernels are compiled at the first start
GPU_THREADS = 4  # for each clip that is decoded, as the service has it where nothing is set
COLUMNS = (
    "requests_per_second",
    "p50_seconds",
    "p95_seconds",
    "short_p50_seconds",
    "server_cpu_seconds",
    "others_cpu_seconds",
)
# Of each server, before its load: (seconds of clip, steps).
WARM_UP = ((1, 5), (10, 5), (3, 5), (6, 5))


@dataclass(frozen=True)
class Wanted:
    """A request of the load."""

    at: float  # seconds from the beginning
    seconds: int
    steps: int
    seed: int
    format: str = "mp4"

    @property
    def fields(self) -> dict[str, str]:
        return {
            "num_inference_steps": str(self.steps),
            "seed": str(self.seed),
            "format": self.format,
        }


@dataclass(frozen=True)
class Served:
    """What came of it."""

    wanted: Wanted
    sent: float  # seconds from the beginning
    latency_seconds: float
    error: str  # empty where there was none
    sound: bytes = b""


Clips = dict[int, bytes]  # by seconds
Call = Callable[[bytes, dict[str, str]], Awaitable[bytes]]


@contextlib.asynccontextmanager
async def http_calls(server: Server) -> AsyncIterator[Call]:
    """POST /v1/generate."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=server.client.base_url, timeout=PATIENCE_SECONDS, trust_env=False, limits=limits
    ) as client:

        async def call(clip: bytes, fields: dict[str, str]) -> bytes:
            response = await client.post("/v1/generate", files={"clip": clip}, data=fields)
            if response.status_code != 200:
                raise RuntimeError(f"{response.status_code} {response.text[:200]}")
            return response.content

        yield call


@contextlib.asynccontextmanager
async def grpc_calls(server: Server) -> AsyncIterator[Call]:
    """foley.v1.FoleyService/Generate."""
    address = f"127.0.0.1:{server.settings['FOLEY_GRPC_PORT']}"
    async with grpc.aio.insecure_channel(
        address, options=[("grpc.max_receive_message_length", -1)]
    ) as channel:
        generate = FoleyServiceStub(channel).Generate

        async def call(clip: bytes, fields: dict[str, str]) -> bytes:
            options = GenerateOptions(
                num_inference_steps=int(fields["num_inference_steps"]),
                seed=int(fields["seed"]),
                format=fields["format"],
            )

            def parts() -> Iterator[GenerateRequest]:
                yield GenerateRequest(options=options)
                for start in range(0, len(clip), 1 << 20):
                    yield GenerateRequest(chunk=clip[start : start + (1 << 20)])

            received = bytearray()
            async for message in generate(parts(), timeout=PATIENCE_SECONDS):
                received += message.chunk.data
            return bytes(received)

        yield call


PROTOCOLS = {"http": http_calls, "grpc": grpc_calls}


def draw_load(num_requests: int, rate: float, seed: int, steps: Sequence[int]) -> list[Wanted]:
    """Requests of random lengths and steps, arriving at random: a Poisson process."""
    draw = random.Random(seed)
    times = itertools.accumulate(draw.expovariate(rate) for _ in range(num_requests))
    return [
        Wanted(at, draw.choice(LENGTHS_SECONDS), draw.choice(steps), seed)
        for seed, at in enumerate(times)
    ]


def closed_load(arguments: argparse.Namespace) -> list[Wanted]:
    """What the callers work through."""
    if not arguments.closed_seconds:
        return draw_load(arguments.closed_requests, 1, arguments.seed + 1, arguments.steps)
    size = arguments.closed_seconds, arguments.closed_steps
    return [Wanted(0, *size, seed) for seed in range(arguments.closed_requests)]


class Load:
    """Sends requests to one server, and keeps what came of them."""

    def __init__(self, call: Call, clips: Clips) -> None:
        self._call = call
        self._clips = clips
        self._began = time.perf_counter()

    async def send(self, wanted: Wanted, *, keep: bool = False) -> Served:
        sent = time.perf_counter() - self._began
        error, sound = "", b""
        try:
            sound = await self._call(self._clips[wanted.seconds], wanted.fields)
        except (RuntimeError, httpx.HTTPError, grpc.RpcError) as failure:
            error = repr(failure)[:300]
        latency = time.perf_counter() - self._began - sent
        return Served(wanted, sent, latency, error, sound if keep else b"")

    async def send_openly(self, load: Sequence[Wanted]) -> list[Served]:
        """Each at its time, whatever the others do."""

        async def at_its_time(wanted: Wanted) -> Served:
            await asyncio.sleep(wanted.at - (time.perf_counter() - self._began))
            return await self.send(wanted)

        self._began = time.perf_counter()
        return list(await asyncio.gather(*map(at_its_time, load)))

    async def send_closed(
        self, load: Sequence[Wanted], num_callers: int, *, keep: bool = False
    ) -> list[Served]:
        """From so many callers, each of whom waits for an answer before the next request."""
        left, served = iter(load), []

        async def caller() -> None:
            for wanted in left:
                served.append(await self.send(wanted, keep=keep))

        self._began = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(num_callers)))
        return served


def summary(served: Sequence[Served]) -> dict[str, Any]:
    """Latencies in seconds, throughput, errors."""
    good = [one for one in served if not one.error]
    short = [one.latency_seconds for one in good if one.wanted.seconds <= SHORT_SECONDS]
    latencies = [one.latency_seconds for one in good]
    ended = max(one.sent + one.latency_seconds for one in served)
    return {
        "num_requests": len(served),
        "errors": [one.error for one in served if one.error],
        "seconds": ended,
        "requests_per_second": len(good) / ended,
        "sound_seconds_per_second": sum(one.wanted.seconds for one in good) / ended,
        "p50_seconds": share_below(latencies, 50),
        "p95_seconds": share_below(latencies, 95),
        "num_short": len(short),
        "short_p50_seconds": share_below(short, 50),
        "short_p95_seconds": share_below(short, 95),
        "samples": [
            [
                round(one.sent, 3),
                one.wanted.seconds,
                one.wanted.steps,
                round(one.latency_seconds, 3),
            ]
            for one in served
        ],
    }


def share_below(samples: Sequence[float], percent: float) -> float | None:
    """The percentile, where there are samples."""
    return percentile(samples, percent) if samples else None


def waveform(media: bytes) -> np.ndarray:
    """The sound of a file in [-1, 1]."""
    with av.open(io.BytesIO(media)) as reader:
        blocks = [frame.to_ndarray().ravel() for frame in reader.decode(audio=0)]
    return np.concatenate(blocks) / 2**31  # 24 bits come in the upper part of 32


async def difference(load: Load, clips: Clips) -> float | None:
    """The largest difference between the sound of a request alone and among others.

    None where a request failed.
    """
    wanted = [Wanted(0, seconds, 6, seconds, "wav") for seconds in sorted(clips)]
    alone = await load.send_closed(wanted, 1, keep=True)
    among = await load.send_closed(wanted, len(wanted), keep=True)
    if any(one.error for one in (*alone, *among)):
        return None
    among.sort(key=lambda one: one.wanted.seconds)
    pairs = zip(alone, among, strict=True)
    return max(float(np.abs(waveform(a.sound) - waveform(b.sound)).max()) for a, b in pairs)


@contextlib.contextmanager
def started(arguments: argparse.Namespace, target: str, folder: Path) -> Iterator[Server]:
    """A server that is ready, and is stopped."""
    grpc_port = free_port()
    settings = {
        "FOLEY_PRESET": arguments.preset,
        "FOLEY_DEVICE": arguments.device,
        "FOLEY_MAX_CONCURRENCY": "64",
        "FOLEY_REQUEST_TIMEOUT_SECONDS": str(PATIENCE_SECONDS),
        "FOLEY_API_WORKERS": str(arguments.api_workers),
        "FOLEY_GRPC_PORT": str(grpc_port) if arguments.protocol == "grpc" else "0",
        "FOLEY_SCRATCH_DIR": "",  # the service's own choice: shared memory where there is enough
        "OMP_NUM_THREADS": str(GPU_THREADS if on_gpu(arguments) else os.cpu_count()),
    }
    if on_gpu(arguments):
        settings["FOLEY_PRECISION"] = arguments.precision
    if arguments.weights:
        settings["FOLEY_WEIGHTS"] = str(arguments.weights.absolute())
    folder.mkdir()
    server = Server(folder, settings, ready_seconds=READY_SECONDS, target=target)
    try:
        server.wait_until_ready()
        yield server
    finally:
        if arguments.log:
            shutil.copyfile(server.log, arguments.log)
        server.stop()


def on_gpu(arguments: argparse.Namespace) -> bool:
    return bool(arguments.device != "cpu")


async def serve(
    arguments: argparse.Namespace, target: str, clips: dict[str, Clips], folder: Path
) -> dict[str, Any]:
    """The open load, and with step-level batching the closed ones, on a server of their own."""
    open_load = draw_load(arguments.requests, arguments.rate, arguments.seed, arguments.steps)
    one_after_another = closed_load(arguments)
    started_at = time.perf_counter()
    with started(arguments, target, folder) as server:
        results: dict[str, Any] = {"ready_seconds": time.perf_counter() - started_at}
        async with PROTOCOLS[arguments.protocol](server) as call:
            loads = {picture: Load(call, clips[picture]) for picture in clips}
            load = loads[arguments.picture[0]]
            await load.send_closed([Wanted(0, s, n, 0) for s, n in WARM_UP], 2)

            async def measured(sending: Awaitable[list[Served]]) -> dict[str, Any]:
                meter = Meter(server, on_gpu(arguments))
                row = summary(await sending)
                return row | meter.read(row["num_requests"])

            if open_load:
                results["open"] = await measured(load.send_openly(open_load))
            if target == STEP and one_after_another:
                await warm_up_together(load, one_after_another, arguments.concurrency)
                for picture, callers in loads.items():
                    for num_callers in (1, arguments.concurrency):
                        part = one_after_another
                        if num_callers == 1 and arguments.closed_seconds:
                            part = part[: arguments.alone_requests]  # they are all alike
                        name = closed_name(arguments, picture, num_callers)
                        results[name] = await measured(callers.send_closed(part, num_callers))
                        tell(name, results[name])
            if target == STEP:
                results["sound_max_difference"] = await difference(
                    load, clips[arguments.picture[0]]
                )
        results["gpu_memory_bytes"] = server.metric("foley_gpu_memory_bytes")
        results["num_evaluations"] = server.metric("foley_step_seconds_count")
        results["evaluation_seconds"] = server.metric("foley_step_seconds_sum")
        results["evaluation_requests"] = server.metric("foley_batch_size_sum")
        results["budget"] = next(
            (line for line in server.log.read_text().splitlines() if "budget_measured" in line), ""
        )
    return results


async def warm_up_together(load: Load, wanted: Sequence[Wanted], num_callers: int) -> None:
    """One caller and then all, of few steps: a GPU keeps what it prepared for such a batch."""
    few = [dataclasses.replace(one, steps=WARM_UP[0][1]) for one in wanted[:num_callers]]
    await load.send_closed(few[:2], 1)
    await load.send_closed(few, num_callers)


def closed_name(arguments: argparse.Namespace, picture: str, num_callers: int) -> str:
    """The first picture's loads have no addition."""
    addition = "" if picture == arguments.picture[0] else f"_{picture}"
    return f"callers_{num_callers}{addition}"


def tell(name: str, row: dict[str, Any]) -> None:
    """On the way, so that a run that is cut short has said something."""
    print(
        f"{name}: {row['requests_per_second']:.3f} requests a second, p50 "
        f"{told(row['p50_seconds'])} s, p95 {told(row['p95_seconds'])} s, GPU busy "
        f"{told(row.get('gpu_busy_share'))}, errors {row['errors'][:3]}, seconds by stage: "
        + ", ".join(f"{stage} {s:.3f}" for stage, s in row["mean_stage_seconds"].items()),
        flush=True,
    )


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The record."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = {picture: draw_clips(arguments, folder, picture) for picture in arguments.picture}
        record = environment() | {
            "what": "serving",
            "preset": arguments.preset,
            "device": arguments.device,
            "precision": arguments.precision if on_gpu(arguments) else "float32",
            "protocol": arguments.protocol,
            "api_workers": arguments.api_workers,
            "rate_per_second": arguments.rate,
            "lengths_seconds": LENGTHS_SECONDS,
            "steps": arguments.steps,
            "closed_seconds": arguments.closed_seconds,
            "closed_steps": arguments.closed_steps if arguments.closed_seconds else None,
            "pictures": arguments.picture,
            "short_seconds": SHORT_SECONDS,
            "warmup": len(WARM_UP),
        }
        if not arguments.step_only:
            record["whole"] = await serve(arguments, WHOLE, clips, folder / "whole")
        if not arguments.whole_requests:
            record["step"] = await serve(arguments, STEP, clips, folder / "step")
    return record | ratios(record, arguments)


def draw_clips(arguments: argparse.Namespace, folder: Path, picture: str) -> Clips:
    """A clip of each length that the picture's loads ask for."""
    lengths: Sequence[int] = LENGTHS_SECONDS
    if arguments.closed_seconds:
        first = picture == arguments.picture[0]
        lengths = sorted({arguments.closed_seconds, *(LENGTHS_SECONDS if first else ())})
    width, height = map(int, picture.split("x"))
    return {
        seconds: draw_clip(
            folder / f"{picture}-{seconds}.mp4", num_frames=25 * seconds, size=(width, height)
        )
        for seconds in lengths
    }


def ratios(record: dict[str, Any], arguments: argparse.Namespace) -> dict[str, float]:
    """What the records are compared by."""
    found = {}
    step, whole = record.get("step"), record.get("whole")
    if step and whole and "open" in step:
        for key in ("short_p50_seconds", "requests_per_second", "server_cpu_seconds"):
            found[f"{key}_step_over_whole"] = step["open"][key] / whole["open"][key]
    for picture in arguments.picture if step and "callers_1" in step else ():
        one = step[closed_name(arguments, picture, 1)]
        name = closed_name(arguments, picture, arguments.concurrency)
        if not one["requests_per_second"]:
            continue  # all failed
        ratio = step[name]["requests_per_second"] / one["requests_per_second"]
        found[name.replace("callers", "throughput") + "_over_1"] = ratio
    return found


def told(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def show(record: dict[str, Any]) -> None:
    """A table for people."""
    names = ("errors", "req/s", "p50 s", "p95 s", "short p50 s", "own cpu s", "others s")
    print(f"{'load':26}" + "".join(f"{name:>12}" for name in names))
    for batching in ("step", "whole"):
        for name, row in record.get(batching, {}).items():
            if isinstance(row, dict) and "errors" in row:
                values = "".join(f"{told(row[key]):>12}" for key in COLUMNS)
                print(f"{batching + ' ' + name:26}{len(row['errors']):12}{values}")
    for name, value in record.items():
        if "_over_" in name:
            print(f"{name}: {value:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--protocol", choices=tuple(PROTOCOLS), default="http")
    parser.add_argument("--requests", type=int, default=64, help="of the open load")
    parser.add_argument("--rate", type=float, default=1.5, help="arrivals a second")
    parser.add_argument("--closed-requests", type=int, default=32, help="of the closed loads")
    parser.add_argument("--concurrency", type=int, default=16, help="callers, against one")
    parser.add_argument(
        "--closed-seconds", type=int, choices=LENGTHS_SECONDS, help="all of one length and steps"
    )
    parser.add_argument("--closed-steps", type=int, default=50, help="with --closed-seconds")
    parser.add_argument(
        "--alone-requests", type=int, default=10, help="of one caller, with --closed-seconds"
    )
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="to draw from")
    parser.add_argument(
        "--picture", nargs="+", default=["320x240"], help="sizes of the clips; the first for all"
    )
    parser.add_argument("--precision", choices=("bf16", "fp8"), default="bf16", help="on a GPU")
    parser.add_argument("--api-workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--whole-requests", action="store_true", help="that batching alone")
    parser.add_argument("--step-only", action="store_true", help="step-level batching alone")
    parser.add_argument("--log", type=Path, help="where the server's log is kept")
    parser.add_argument("--hardware", default="cpu", help="short name for the record's file")
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    record = asyncio.run(measure(arguments))
    show(record)
    finish(record, hardware=arguments.hardware, write=arguments.record)


if __name__ == "__main__":
    main()

"""Measure a server under load over loopback: an open loop of mixed requests, then closed loops.

    python -m benchmarks.bench_serving [--requests 64] [--rate 1.5] [--protocol grpc] [--record]
    python -m benchmarks.bench_serving --whole-requests     only whole-request batching

On a GPU, after `python -m benchmarks.random_model DIR --preset xxl`:

    python -m benchmarks.bench_serving --preset xxl --device cuda --weights DIR --step-only
        --closed-seconds 8 --closed-steps 50 --picture 1280x720 320x240 --api-workers 4

In the open loop, requests arrive at random times. The same arrivals are sent to a server with
step-level batching and then to one with whole-request batching (`whole_requests.py`). In a closed
loop, each caller waits for a response before its next request. One caller and then sixteen callers
send the same list of requests or, with --closed-seconds, equal requests. The quality figure is the
largest difference between the sound of a request that ran alone and one that ran among others. The
GPU utilization is the driver's: the share of short periods in which any kernel ran.
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
import numpy.typing as npt

from benchmarks.meters import Meter
from benchmarks.records import environment, finish, percentile
from foley.v1.foley_pb2 import GenerateOptions, GenerateRequest
from foley.v1.foley_pb2_grpc import FoleyServiceStub
from tests.server import Server, draw_clip

STEP, WHOLE = "service:FoleyApi", "benchmarks.whole_requests:FoleyApi"
LENGTHS_SECONDS = tuple(range(1, 11))
SHORT_SECONDS = 3  # clips up to this length are called short
STEPS = (10, 20, 30)
TIMEOUT_SECONDS = 600
READY_SECONDS = 400  # kernels for a GPU are compiled at the first start
GPU_THREADS = 4  # for decoding a clip; the default of the service
COLUMNS = (
    "requests_per_second",
    "p50_seconds",
    "p95_seconds",
    "short_p50_seconds",
    "server_cpu_seconds",
    "others_cpu_seconds",
)
# Requests to each server before its load: (seconds of clip, steps).
WARM_UP = ((1, 5), (10, 5), (3, 5), (6, 5))


@dataclass(frozen=True)
class LoadRequest:
    """A request of a load.

    Attributes:
        at: when to send it, in seconds from the load's beginning.
        seconds: length of its clip.
        steps: sampling steps.
        seed: of the noise.
        format: of the result.
    """

    at: float
    seconds: int
    steps: int
    seed: int
    format: str = "mp4"

    @property
    def fields(self) -> dict[str, str]:
        """The form fields of `POST /v1/generate`."""
        return {
            "num_inference_steps": str(self.steps),
            "seed": str(self.seed),
            "format": self.format,
        }


@dataclass(frozen=True)
class LoadResponse:
    """The outcome of a request.

    Attributes:
        request: that was sent.
        sent: when it was sent, in seconds from the load's beginning.
        latency_seconds: until the whole response had arrived.
        error: empty without one.
        sound: the response's content, if it was kept.
    """

    request: LoadRequest
    sent: float
    latency_seconds: float
    error: str
    sound: bytes = b""


Clips = dict[int, bytes]  # files by their length in seconds
Call = Callable[[bytes, dict[str, str]], Awaitable[bytes]]


@contextlib.asynccontextmanager
async def open_http(server: Server) -> AsyncIterator[Call]:
    """Yield a function that sends a clip and form fields to `POST /v1/generate`."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=server.client.base_url, timeout=TIMEOUT_SECONDS, trust_env=False, limits=limits
    ) as client:

        async def call(clip: bytes, fields: dict[str, str]) -> bytes:
            response = await client.post("/v1/generate", files={"clip": clip}, data=fields)
            if response.status_code != 200:
                raise RuntimeError(f"{response.status_code} {response.text[:200]}")
            return response.content

        yield call


@contextlib.asynccontextmanager
async def open_grpc(server: Server) -> AsyncIterator[Call]:
    """Yield a function that sends a clip and options to `foley.v1.FoleyService/Generate`."""
    async with grpc.aio.insecure_channel(
        server.grpc_address,
        options=[("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)],
    ) as channel:
        generate = FoleyServiceStub(channel).Generate

        async def call(clip: bytes, fields: dict[str, str]) -> bytes:
            options = GenerateOptions(
                num_inference_steps=int(fields["num_inference_steps"]),
                seed=int(fields["seed"]),
                format=fields["format"],
            )

            def messages() -> Iterator[GenerateRequest]:
                yield GenerateRequest(options=options)
                for start in range(0, len(clip), 1 << 20):
                    yield GenerateRequest(chunk=clip[start : start + (1 << 20)])

            received = bytearray()
            async for message in generate(messages(), timeout=TIMEOUT_SECONDS):
                received += message.chunk.data
            return bytes(received)

        yield call


PROTOCOLS = {"http": open_http, "grpc": open_grpc}


def draw_load(num_requests: int, rate: float, seed: int, steps: Sequence[int]) -> list[LoadRequest]:
    """Requests of random lengths and steps that arrive in a Poisson process.

    Args:
        num_requests: of the load.
        rate: mean arrivals per second.
        seed: of the random numbers.
        steps: from which each request's number of steps is drawn.
    """
    draw = random.Random(seed)
    times = itertools.accumulate(draw.expovariate(rate) for _ in range(num_requests))
    return [
        LoadRequest(at, draw.choice(LENGTHS_SECONDS), draw.choice(steps), seed)
        for seed, at in enumerate(times)
    ]


def make_closed_load(arguments: argparse.Namespace) -> list[LoadRequest]:
    """The requests of the closed loops."""
    if not arguments.closed_seconds:
        return draw_load(arguments.closed_requests, 1, arguments.seed + 1, arguments.steps)
    size = arguments.closed_seconds, arguments.closed_steps
    return [LoadRequest(0, *size, seed) for seed in range(arguments.closed_requests)]


class Load:
    """Sends requests to one server and returns their outcomes.

    Args:
        call: sends a clip and form fields, and returns the content of the response.
        clips: by length in seconds.
    """

    def __init__(self, call: Call, clips: Clips) -> None:
        self._call = call
        self._clips = clips
        self._began = time.perf_counter()

    async def send(self, request: LoadRequest, *, keep: bool = False) -> LoadResponse:
        """Send one request now; with `keep`, the outcome holds the response's content."""
        sent = time.perf_counter() - self._began
        error, sound = "", b""
        try:
            sound = await self._call(self._clips[request.seconds], request.fields)
        except (RuntimeError, httpx.HTTPError, grpc.RpcError) as failure:
            error = repr(failure)[:300]
        latency = time.perf_counter() - self._began - sent
        return LoadResponse(request, sent, latency, error, sound if keep else b"")

    async def send_open(self, load: Sequence[LoadRequest]) -> list[LoadResponse]:
        """Send each request at its time, without waiting for the others."""

        async def send_at_its_time(request: LoadRequest) -> LoadResponse:
            await asyncio.sleep(request.at - (time.perf_counter() - self._began))
            return await self.send(request)

        self._began = time.perf_counter()
        return list(await asyncio.gather(*map(send_at_its_time, load)))

    async def send_closed(
        self, load: Sequence[LoadRequest], num_callers: int, *, keep: bool = False
    ) -> list[LoadResponse]:
        """Send all requests from concurrent callers.

        Args:
            load: whose times are ignored.
            num_callers: each waits for a response before it sends the next request.
            keep: whether the outcomes hold the content of the responses.
        """
        left = iter(load)
        responses: list[LoadResponse] = []

        async def caller() -> None:
            for request in left:
                responses.append(await self.send(request, keep=keep))

        self._began = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(num_callers)))
        return responses


def summarise(responses: Sequence[LoadResponse]) -> dict[str, Any]:
    """The latencies in seconds, the throughput and the errors of a load."""
    good = [one for one in responses if not one.error]
    short = [one.latency_seconds for one in good if one.request.seconds <= SHORT_SECONDS]
    latencies = [one.latency_seconds for one in good]
    ended = max(one.sent + one.latency_seconds for one in responses)
    return {
        "num_requests": len(responses),
        "errors": [one.error for one in responses if one.error],
        "seconds": ended,
        "requests_per_second": len(good) / ended,
        "sound_seconds_per_second": sum(one.request.seconds for one in good) / ended,
        "p50_seconds": percentile_or_none(latencies, 50),
        "p95_seconds": percentile_or_none(latencies, 95),
        "num_short": len(short),
        "short_p50_seconds": percentile_or_none(short, 50),
        "short_p95_seconds": percentile_or_none(short, 95),
        "samples": [
            [
                round(one.sent, 3),
                one.request.seconds,
                one.request.steps,
                round(one.latency_seconds, 3),
            ]
            for one in responses
        ],
    }


def percentile_or_none(samples: Sequence[float], percent: float) -> float | None:
    """The percentile of the samples; None without samples."""
    return percentile(samples, percent) if samples else None


def read_samples(media: bytes) -> npt.NDArray[np.float64]:
    """The samples of a 24-bit sound file in [-1, 1]."""
    with av.open(io.BytesIO(media), "r") as reader:
        blocks = [frame.to_ndarray().ravel() for frame in reader.decode(audio=0)]
    samples = np.concatenate(blocks).astype(np.float64)
    return samples / 2**31  # 24-bit samples are the upper bits of 32


async def measure_difference(load: Load, clips: Clips) -> float | None:
    """The largest difference between the samples of a request alone and among others.

    It is None if a request failed.
    """
    requests = [LoadRequest(0, seconds, 6, seconds, "wav") for seconds in sorted(clips)]
    alone = await load.send_closed(requests, 1, keep=True)
    among = await load.send_closed(requests, len(requests), keep=True)
    if any(one.error for one in (*alone, *among)):
        return None
    among.sort(key=lambda one: one.request.seconds)
    pairs = zip(alone, among, strict=True)
    return max(float(np.abs(read_samples(a.sound) - read_samples(b.sound)).max()) for a, b in pairs)


@contextlib.contextmanager
def run_server(arguments: argparse.Namespace, target: str, folder: Path) -> Iterator[Server]:
    """Yield a ready server, which is stopped in the end.

    Args:
        arguments: of the command.
        target: the service to serve, as BentoML names it.
        folder: a new folder for the server's files.
    """
    settings = {
        "FOLEY_PRESET": arguments.preset,
        "FOLEY_DEVICE": arguments.device,
        "FOLEY_MAX_CONCURRENCY": "64",
        "FOLEY_REQUEST_TIMEOUT_SECONDS": str(TIMEOUT_SECONDS),
        "FOLEY_API_WORKERS": str(arguments.api_workers),
        "FOLEY_SCRATCH_DIR": "",  # the service's default: shared memory if there is enough
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
    """Whether the server runs on a GPU."""
    return bool(arguments.device != "cpu")


async def serve(
    arguments: argparse.Namespace, target: str, clips: dict[str, Clips], folder: Path
) -> dict[str, Any]:
    """Start a server and run its loads; returns their figures.

    Args:
        arguments: of the command.
        target: the service to serve. The closed loops run only with step-level batching.
        clips: by size of the picture, such as 320x240.
        folder: a new folder for the server's files.
    """
    open_load = draw_load(arguments.requests, arguments.rate, arguments.seed, arguments.steps)
    closed_load = make_closed_load(arguments)
    started_at = time.perf_counter()
    with run_server(arguments, target, folder) as server:
        results: dict[str, Any] = {"ready_seconds": time.perf_counter() - started_at}
        async with PROTOCOLS[arguments.protocol](server) as call:
            loads = {picture: Load(call, clips[picture]) for picture in clips}
            load = loads[arguments.picture[0]]
            await load.send_closed([LoadRequest(0, s, n, 0) for s, n in WARM_UP], 2)

            async def measure_load(sending: Awaitable[list[LoadResponse]]) -> dict[str, Any]:
                meter = Meter(server, on_gpu(arguments))
                row = summarise(await sending)
                return row | meter.read(row["num_requests"])

            if open_load:
                results["open"] = await measure_load(load.send_open(open_load))
            if target == STEP and closed_load:
                await warm_up_closed(load, closed_load, arguments.concurrency)
                for picture, callers in loads.items():
                    for num_callers in (1, arguments.concurrency):
                        part = closed_load
                        if num_callers == 1 and arguments.closed_seconds:
                            part = part[: arguments.alone_requests]  # all are equal
                        name = name_closed_load(arguments, picture, num_callers)
                        results[name] = await measure_load(callers.send_closed(part, num_callers))
                        print_progress(name, results[name])
            if target == STEP:
                results["sound_max_difference"] = await measure_difference(
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


async def warm_up_closed(load: Load, requests: Sequence[LoadRequest], num_callers: int) -> None:
    """Send requests of few steps from one caller and then from all.

    On a GPU, the server captures graphs for such batches and keeps them.
    """
    few = [dataclasses.replace(one, steps=WARM_UP[0][1]) for one in requests[:num_callers]]
    await load.send_closed(few[:2], 1)
    await load.send_closed(few, num_callers)


def name_closed_load(arguments: argparse.Namespace, picture: str, num_callers: int) -> str:
    """The record's key of a closed loop; the first picture's keys have no suffix."""
    addition = "" if picture == arguments.picture[0] else f"_{picture}"
    return f"callers_{num_callers}{addition}"


def print_progress(name: str, row: dict[str, Any]) -> None:
    """Print the figures of one load, so that an aborted run has shown something."""
    print(
        f"{name}: {row['requests_per_second']:.3f} requests per second, p50 "
        f"{format_value(row['p50_seconds'])} s, p95 {format_value(row['p95_seconds'])} s, GPU busy "
        f"{format_value(row.get('gpu_busy_share'))}, errors {row['errors'][:3]}, seconds by stage: "
        + ", ".join(f"{stage} {s:.3f}" for stage, s in row["mean_stage_seconds"].items()),
        flush=True,
    )


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark and return its record."""
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
    return record | compute_ratios(record, arguments)


def draw_clips(arguments: argparse.Namespace, folder: Path, picture: str) -> Clips:
    """The clips that the loads of one picture size need, by length in seconds."""
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


def compute_ratios(record: dict[str, Any], arguments: argparse.Namespace) -> dict[str, float]:
    """The ratios by which records are compared: step to whole, and many callers to one."""
    found: dict[str, float] = {}
    step: dict[str, Any] = record.get("step", {})
    whole: dict[str, Any] = record.get("whole", {})
    if "open" in step and "open" in whole:
        for key in ("short_p50_seconds", "requests_per_second", "server_cpu_seconds"):
            found[f"{key}_step_over_whole"] = step["open"][key] / whole["open"][key]
    for picture in arguments.picture if "callers_1" in step else ():
        one = step[name_closed_load(arguments, picture, 1)]
        name = name_closed_load(arguments, picture, arguments.concurrency)
        if not one["requests_per_second"]:
            continue  # every request failed
        ratio = step[name]["requests_per_second"] / one["requests_per_second"]
        found[name.replace("callers", "throughput") + "_over_1"] = ratio
    return found


def format_value(value: float | None) -> str:
    """The value with two decimals; a dash for None."""
    return "-" if value is None else f"{value:.2f}"


def print_table(record: dict[str, Any]) -> None:
    """Print the record as a table."""
    names = ("errors", "req/s", "p50 s", "p95 s", "short p50 s", "own cpu s", "others s")
    print(f"{'load':26}" + "".join(f"{name:>12}" for name in names))
    for batching in ("step", "whole"):
        for name, row in record.get(batching, {}).items():
            if isinstance(row, dict) and "errors" in row:
                values = "".join(f"{format_value(row[key]):>12}" for key in COLUMNS)
                print(f"{batching + ' ' + name:26}{len(row['errors']):12}{values}")
    for name, value in record.items():
        if "_over_" in name:
            print(f"{name}: {value:.2f}")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--protocol", choices=tuple(PROTOCOLS), default="http")
    parser.add_argument("--requests", type=int, default=64, help="of the open load")
    parser.add_argument("--rate", type=float, default=1.5, help="arrivals per second")
    parser.add_argument("--closed-requests", type=int, default=32, help="of the closed loads")
    parser.add_argument(
        "--concurrency", type=int, default=16, help="callers of the second closed load"
    )
    parser.add_argument(
        "--closed-seconds",
        type=int,
        choices=LENGTHS_SECONDS,
        help="one length for all requests of the closed loads",
    )
    parser.add_argument("--closed-steps", type=int, default=50, help="with --closed-seconds")
    parser.add_argument(
        "--alone-requests", type=int, default=10, help="of the single caller, with --closed-seconds"
    )
    parser.add_argument(
        "--steps", type=int, nargs="+", default=STEPS, help="from which the open load draws"
    )
    parser.add_argument(
        "--picture",
        nargs="+",
        default=["320x240"],
        help="sizes of the clips; the open load uses the first",
    )
    parser.add_argument("--precision", choices=("bf16", "fp8"), default="bf16", help="on a GPU")
    parser.add_argument("--api-workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--whole-requests", action="store_true", help="only whole-request batching")
    parser.add_argument("--step-only", action="store_true", help="only step-level batching")
    parser.add_argument("--log", type=Path, help="file for the server's log")
    parser.add_argument("--hardware", default="cpu", help="short name for the record's file")
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    record = asyncio.run(measure(arguments))
    print_table(record)
    finish(record, hardware=arguments.hardware, write=arguments.record)


if __name__ == "__main__":
    main()

"""A started server under load, over loopback: open-loop arrivals of mixed requests, then callers
who each wait for their answer.

    python -m benchmarks.bench_serving [--requests 64] [--rate 1.5] [--protocol grpc] [--record]
    python -m benchmarks.bench_serving --whole-requests     whole-request batching alone

The same arrivals are served with step-level and with whole-request batching (`whole_requests.py`),
one after the other on servers of their own; then one caller and sixteen callers work through the
same list of requests. The quality number is the largest difference between a request's sound alone
and among others.
"""

import argparse
import asyncio
import contextlib
import io
import itertools
import os
import random
import socket
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
import psutil

from benchmarks.records import environment, finish, percentile
from runners.rpc.foley_pb2 import GenerateOptions, GenerateRequest
from runners.rpc.foley_pb2_grpc import FoleyServiceStub
from tests.service.server import Server, draw_clip

STEP, WHOLE = "service:FoleyApi", "benchmarks.whole_requests:FoleyApi"
LENGTHS_SECONDS = tuple(range(1, 11))
SHORT_SECONDS = 3  # and shorter clips are called short
STEPS = (10, 20, 30)
PICTURE = (320, 240)
PATIENCE_SECONDS = 600
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


def draw_load(num_requests: int, rate: float, seed: int) -> list[Wanted]:
    """Requests of random lengths and steps, arriving at random: a Poisson process."""
    draw = random.Random(seed)
    times = itertools.accumulate(draw.expovariate(rate) for _ in range(num_requests))
    return [
        Wanted(at, draw.choice(LENGTHS_SECONDS), draw.choice(STEPS), seed)
        for seed, at in enumerate(times)
    ]


class Load:
    """Sends requests to one server, and keeps what came of them."""

    def __init__(self, call: Call, clips: dict[int, bytes]) -> None:
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
        "p50_seconds": percentile(latencies, 50),
        "p95_seconds": percentile(latencies, 95),
        "num_short": len(short),
        "short_p50_seconds": percentile(short, 50),
        "short_p95_seconds": percentile(short, 95),
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


def waveform(media: bytes) -> np.ndarray:
    """The sound of a file in [-1, 1]."""
    with av.open(io.BytesIO(media)) as reader:
        blocks = [frame.to_ndarray().ravel() for frame in reader.decode(audio=0)]
    return np.concatenate(blocks) / 2**31  # 24 bits come in the upper part of 32


class Meter:
    """Seconds of the processors that the server took, and that others took.

    Where others took much, the machine was not quiet, and seconds say less than the server's own.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._began = self._now()

    def read(self) -> dict[str, float]:
        machine, bench, server = (
            now - then for now, then in zip(self._now(), self._began, strict=True)
        )
        return {
            "server_cpu_seconds": round(server, 1),
            "others_cpu_seconds": round(machine - bench - server, 1),
        }

    def _now(self) -> tuple[float, float, float]:
        machine = psutil.cpu_times()
        busy = sum(machine) - machine.idle - machine.iowait - machine.guest - machine.guest_nice
        server = sum(sum(process.cpu_times()[:4]) for process in self._server.family())
        return busy, sum(psutil.Process().cpu_times()[:2]), server


async def difference(load: Load, clips: dict[int, bytes]) -> float:
    """The largest difference between the sound of a request alone and among others."""
    wanted = [Wanted(0, seconds, 6, seconds, "wav") for seconds in sorted(clips)]
    alone = await load.send_closed(wanted, 1, keep=True)
    among = await load.send_closed(wanted, len(wanted), keep=True)
    among.sort(key=lambda one: one.wanted.seconds)
    pairs = zip(alone, among, strict=True)
    return max(float(np.abs(waveform(a.sound) - waveform(b.sound)).max()) for a, b in pairs)


@contextlib.contextmanager
def started(arguments: argparse.Namespace, target: str, folder: Path) -> Iterator[Server]:
    """A server that is ready, and is stopped."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        grpc_port = reserved.getsockname()[1]
    settings = {
        "FOLEY_PRESET": arguments.preset,
        "FOLEY_DEVICE": arguments.device,
        "FOLEY_MAX_CONCURRENCY": "64",
        "FOLEY_REQUEST_TIMEOUT_SECONDS": str(PATIENCE_SECONDS),
        "FOLEY_API_WORKERS": str(arguments.api_workers),
        "FOLEY_GRPC_PORT": str(grpc_port) if arguments.protocol == "grpc" else "0",
        "OMP_NUM_THREADS": str(os.cpu_count()),
    }
    if arguments.weights:
        settings["FOLEY_WEIGHTS"] = str(arguments.weights)
    folder.mkdir()
    server = Server(folder, settings, target=target)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


async def serve(
    arguments: argparse.Namespace, target: str, clips: dict[int, bytes], folder: Path
) -> dict[str, Any]:
    """The open load, and with step-level batching the closed ones, on a server of their own."""
    open_load = draw_load(arguments.requests, arguments.rate, arguments.seed)
    closed_load = draw_load(arguments.closed_requests, 1, arguments.seed + 1)
    with started(arguments, target, folder) as server:
        async with PROTOCOLS[arguments.protocol](server) as call:
            load = Load(call, clips)
            await load.send_closed([Wanted(0, s, n, 0) for s, n in WARM_UP], 2)
            meter = Meter(server)
            results = {"open": summary(await load.send_openly(open_load))}
            results["open"] |= meter.read()
            if target == STEP:
                for num_callers in (1, arguments.concurrency) if arguments.closed_requests else ():
                    meter = Meter(server)
                    row = summary(await load.send_closed(closed_load, num_callers))
                    results[f"callers_{num_callers}"] = row | meter.read()
                results["sound_max_difference"] = await difference(load, clips)
        results["gpu_memory_bytes"] = server.metric("foley_gpu_memory_bytes")
        results["num_evaluations"] = server.metric("foley_step_seconds_count")
        results["evaluation_seconds"] = server.metric("foley_step_seconds_sum")
        results["evaluation_requests"] = server.metric("foley_batch_size_sum")
        results["budget"] = next(
            (line for line in server.log.read_text().splitlines() if "budget_measured" in line), ""
        )
    return results


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The record."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = {
            seconds: draw_clip(folder / f"{seconds}.mp4", num_frames=25 * seconds, size=PICTURE)
            for seconds in LENGTHS_SECONDS
        }
        record = environment() | {
            "what": "serving",
            "preset": arguments.preset,
            "device": arguments.device,
            "protocol": arguments.protocol,
            "api_workers": arguments.api_workers,
            "rate_per_second": arguments.rate,
            "lengths_seconds": LENGTHS_SECONDS,
            "steps": STEPS,
            "short_seconds": SHORT_SECONDS,
            "warmup": len(WARM_UP),
        }
        if not arguments.step_only:
            record["whole"] = await serve(arguments, WHOLE, clips, folder / "whole")
        if not arguments.whole_requests:
            record["step"] = await serve(arguments, STEP, clips, folder / "step")
    return record | ratios(record, arguments.concurrency)


def ratios(record: dict[str, Any], concurrency: int) -> dict[str, float]:
    """What the records are compared by."""
    found = {}
    step, whole = record.get("step"), record.get("whole")
    if step and whole:
        for key in ("short_p50_seconds", "requests_per_second", "server_cpu_seconds"):
            found[f"{key}_step_over_whole"] = step["open"][key] / whole["open"][key]
    if step and "callers_1" in step:
        one, many = step["callers_1"], step[f"callers_{concurrency}"]
        ratio = many["requests_per_second"] / one["requests_per_second"]
        found[f"throughput_{concurrency}_over_1"] = ratio
    return found


def show(record: dict[str, Any]) -> None:
    """A table for people."""
    names = ("errors", "req/s", "p50 s", "p95 s", "short p50 s", "own cpu s", "others s")
    print(f"{'load':20}" + "".join(f"{name:>12}" for name in names))
    for batching in ("step", "whole"):
        for name, row in record.get(batching, {}).items():
            if isinstance(row, dict):
                values = "".join(f"{row[key]:12.2f}" for key in COLUMNS)
                print(f"{batching + ' ' + name:20}{len(row['errors']):12}{values}")
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
    parser.add_argument("--api-workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--whole-requests", action="store_true", help="that batching alone")
    parser.add_argument("--step-only", action="store_true", help="step-level batching alone")
    parser.add_argument("--hardware", default="cpu", help="short name for the record's file")
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    record = asyncio.run(measure(arguments))
    show(record)
    finish(record, hardware=arguments.hardware, write=arguments.record)


if __name__ == "__main__":
    main()

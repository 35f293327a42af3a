"""Fewer evaluations, the first sound of a long clip, and cards with little memory."""

import time
from typing import Any

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.model import random_components, random_frames
from benchmarks.records import percentile
from foley.errors import DeviceError
from foley.gpu.matrix import Precision
from foley.gpu.memory_modes import Memory
from foley.pipeline import FoleyPipeline
from foley.request import GenerationRequest
from foley.types import VideoFrames

# Of a request; as many evaluations as in the name, where there is one.
PLANS: dict[str, dict[str, Any]] = {
    "reference": {"quality": "reference"},
    "euler 16": {"num_inference_steps": 16},
    "euler 8": {"num_inference_steps": 8},
    "balanced": {"quality": "balanced"},
    "fast": {"quality": "fast"},
}
_LONG_SECONDS = 60.0
_GIB = 2**30
# What a card of that many GB has for one process, and the mode that is meant for it.
_Card = tuple[float, Precision, Memory]
CARDS: dict[str, _Card] = {
    "12 GB": (11.3 * _GIB, "bf16", "balanced"),
    "8 GB, fp8": (7.4 * _GIB, "fp8", "balanced"),
    "8 GB, streamed": (7.4 * _GIB, "bf16", "low"),
    "6 GB, streamed": (5.6 * _GIB, "bf16", "low"),
}
_MEMORY_STEPS = 4  # of what is made to measure memory alone, which does not depend on steps


def measure_qualities(bench: Bench) -> dict[str, Any]:
    """Seconds from frames to waveform of each plan, and to the first sound of a long clip."""
    pipeline = FoleyPipeline(
        random_components(bench, bench.device),
        bench.device,
        memory="full" if bench.on_gpu else "auto",
    )
    pipeline.warm_up()
    frames = random_frames(bench.preset, bench.args.seconds)
    found: dict[str, Any] = {}
    for name, options in PLANS.items():
        request = GenerationRequest.parse(seed=1, **options)
        samples = []
        for _ in range(7 if bench.on_gpu else 1):
            begun = time.perf_counter()
            pipeline.generate(frames, request)
            samples.append(time.perf_counter() - begun)
        median = percentile(samples[-5:], 50)
        found[name] = {"median": median, "samples": samples}
        print(f"{name}: {1000 * median:.1f} ms, {bench.args.seconds / median:.1f} times real time")
    found["long"] = _measure_long(bench, pipeline, found)
    return found


def _measure_long(
    bench: Bench, pipeline: FoleyPipeline, short: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Seconds to the first piece of a long sound and to its end, beside those of a short clip."""
    seconds = _LONG_SECONDS if bench.on_gpu else 16.0
    frames, rows = random_frames(bench.preset, seconds), dict[str, Any]()
    for name in ("reference", "fast") if bench.on_gpu else ("fast",):
        request = GenerationRequest.parse(seed=1, **PLANS[name])
        bench.reset_peak()
        samples = [_time_pieces(pipeline, frames, request) for _ in range(3 if bench.on_gpu else 1)]
        first = percentile([times[0] for times in samples], 50)
        ratio = first / short[name]["median"]
        rows[name] = {
            "seconds": seconds,
            "samples": samples,
            "first_over_short": ratio,
            "peak_reserved_bytes": bench.peak_reserved_bytes(),
        }
        print(f"{seconds:g} s, {name}: first sound {first:.3f} s, {ratio:.2f} times a short clip")
    return rows


def _time_pieces(
    pipeline: FoleyPipeline, frames: VideoFrames, request: GenerationRequest
) -> list[float]:
    """Return the seconds to each piece of a long sound, the last of which is its end."""
    heard: list[float] = []
    begun = time.perf_counter()
    pipeline.generate(
        frames, request, on_sound=lambda piece: heard.append(time.perf_counter() - begun)
    )
    return heard


def measure_cards(bench: Bench) -> dict[str, Any]:
    """Memory and seconds of three requests with the process held to what a small card has.

    What the driver takes beside the allocator counts too: it is measured before, and the allocator
    gets the rest. The GPU must be free of other work.
    """
    found = {}
    cards: dict[str, _Card] = CARDS if bench.on_gpu else {"none": (0, "bf16", "auto")}
    for name, (limit, precision, memory) in cards.items():
        try:
            found[name] = _measure_card(bench, round(limit), precision, memory)
        except (DeviceError, torch.OutOfMemoryError) as error:
            found[name] = {"limit_bytes": round(limit), "failed": str(error)[:300]}
        bench.reset_peak()
        print(f"{name}: {found[name]}", flush=True)
    return found


def _measure_card(bench: Bench, limit: int, precision: Precision, memory: Memory) -> dict[str, Any]:
    components = random_components(bench, torch.device("cpu"))
    bench.reset_peak()
    beside = _measure_beside(bench)
    with bench.limit_memory(limit - beside):
        begun = time.perf_counter()
        pipeline = FoleyPipeline(components, bench.device, precision=precision, memory=memory)
        pipeline.warm_up()
        row: dict[str, Any] = {
            "limit_bytes": limit,
            "precision": precision,
            "memory": memory,
            "to_ready_seconds": time.perf_counter() - begun,
            "requests": [],
        }
        peaks = [bench.peak_reserved_bytes()]
        timed = [(bench.args.seconds, bench.args.steps)] * 3
        longer = (15.0, _LONG_SECONDS) if bench.on_gpu else ()
        for seconds, count in timed + [(length, _MEMORY_STEPS) for length in longer]:
            frames = random_frames(bench.preset, seconds)
            request = GenerationRequest(seed=1, num_inference_steps=count)
            bench.reset_peak()
            begun = time.perf_counter()
            pipeline.generate(frames, request)
            peaks.append(bench.peak_reserved_bytes())
            row["requests"].append(
                {
                    "clip_seconds": seconds,
                    "num_inference_steps": count,
                    "seconds": time.perf_counter() - begun,
                    "peak_bytes": bench.peak_bytes(),
                    "peak_reserved_bytes": peaks[-1],
                }
            )
        row["beside_allocator_bytes"] = [beside, _measure_beside(bench)]
        row["peak_of_process_bytes"] = max(peaks) + max(row["beside_allocator_bytes"])
        row["fits"] = row["peak_of_process_bytes"] <= limit
    return row


def _measure_beside(bench: Bench) -> int:
    """Bytes that this process takes of the GPU beside its allocator, where it is alone there."""
    if not bench.on_gpu:
        return 0
    bench.wait()
    free, total = torch.cuda.mem_get_info(bench.device)
    return total - free - torch.cuda.memory_reserved(bench.device)

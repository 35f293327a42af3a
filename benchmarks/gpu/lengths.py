"""Fewer evaluations, the first sound of a long clip, and cards with little memory."""

import json
import subprocess
import sys
import time
import traceback
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
from foley.weights.components import Components

# Of a request; as many evaluations as in the name, where there is one.
PLANS: dict[str, dict[str, Any]] = {
    "reference": {"quality": "reference"},
    "euler 16": {"num_inference_steps": 16},
    "euler 8": {"num_inference_steps": 8},
    "balanced": {"quality": "balanced"},
    "fast": {"quality": "fast"},
    # Two texts for one: what the first plan costs more with a cue in each half.
    "reference, cues": {"quality": "reference", "prompt": "wooden taps"},
}
_CUES = ("glass shatters", "metal clangs")
_LONG_SECONDS = 60.0
_GIB = 2**30
# What a card of that many GB has for one process, and the mode that is meant for it.
_Card = tuple[float, Precision, Memory]
CARDS: dict[str, _Card] = {
    "6 GB, fp8": (5.6 * _GIB, "fp8", "low"),
    "6 GB, streamed": (5.6 * _GIB, "bf16", "low"),
    "8 GB, fp8": (7.4 * _GIB, "fp8", "balanced"),
    "8 GB, streamed": (7.4 * _GIB, "bf16", "low"),
    "12 GB": (11.3 * _GIB, "bf16", "balanced"),
}
# By which that part grows until the last request: code and graphs.
_LATER_BESIDE_BYTES = 300_000_000
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
        if name.endswith("cues"):
            options = options | {"cues": _place_cues(bench.args.seconds)}
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


def _place_cues(seconds: float) -> list[dict[str, Any]]:
    """Return a cue for each half of a sound of so many seconds."""
    half = seconds / len(_CUES)
    return [
        {"start_seconds": half * index, "stop_seconds": half * (index + 1), "prompt": prompt}
        for index, prompt in enumerate(_CUES)
    ]


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
    """Memory and seconds of three requests with a process held to what a small card has.

    Each card is a process of its own, as a service is. The GPU must be free of other work.
    """
    cards = [name for name in CARDS if bench.args.cards is None or name in bench.args.cards]
    found = {}
    for name in cards if bench.on_gpu else ():
        command = [sys.executable, "-m", "benchmarks.bench_gpu", "--parts", "card", "--json-only"]
        command += ["--cards", name]
        for option in ("preset", "device", "seconds", "steps"):
            command += [f"--{option}", str(getattr(bench.args, option))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = done.stdout.strip().splitlines()
        row = json.loads(lines[-1]).get("card") if lines else None
        found[name] = row or {"failed": done.stderr[-1500:]}
        print(f"{name}: {found[name]}", flush=True)
    return found


def measure_card(bench: Bench) -> dict[str, Any]:
    """One of the cards of `measure_cards`, in a process that has done nothing else.

    What the driver takes beside the allocator counts too: the most of it that was seen before is
    taken off the allocator's limit.
    """
    (name,) = bench.args.cards or ["6 GB, fp8"]
    size, precision, memory = CARDS[name]
    limit = round(size)
    components = random_components(bench, torch.device("cpu"))
    bench.reset_peak()
    with bench.limit_memory(limit - _measure_beside(bench) - _LATER_BESIDE_BYTES):
        try:
            return _run_card(bench, components, limit, precision, memory)
        except (DeviceError, torch.OutOfMemoryError) as error:
            traceback.print_exc()
            return {"limit_bytes": limit, "failed": str(error)[:300]}


def _run_card(
    bench: Bench, components: Components, limit: int, precision: Precision, memory: Memory
) -> dict[str, Any]:
    beside = _measure_beside(bench)
    begun = time.perf_counter()
    pipeline = FoleyPipeline(
        components, bench.device, precision=precision, memory=memory if bench.on_gpu else "auto"
    )
    placed = [bench.allocated_bytes(), bench.peak_reserved_bytes()]
    pipeline.warm_up()
    row: dict[str, Any] = {
        "limit_bytes": limit,
        "precision": precision,
        "memory": pipeline.memory,
        "placed_bytes": placed,
        "to_ready_seconds": time.perf_counter() - begun,
        "requests": [],
    }
    peaks = [bench.peak_reserved_bytes()]
    timed = [(bench.args.seconds, bench.args.steps)] * 3
    longer = (15.0, _LONG_SECONDS) if bench.on_gpu else ()
    for seconds, count in timed + [(length, _MEMORY_STEPS) for length in longer]:
        frames = random_frames(bench.preset, seconds)
        request = GenerationRequest(seed=1, num_inference_steps=count)
        if bench.on_gpu:
            torch.cuda.reset_peak_memory_stats(bench.device)
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

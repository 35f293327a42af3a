"""A whole generation, stage by stage, against the arithmetic floor of the same machine and run.

    python -m benchmarks.bench_pipeline [CLIP] [--preset tiny] [--steps N] [--repeats N] [--record]

The floor is the stage's floating-point operations, counted while it runs, over the rate of a large
matrix product measured beside it. The quality number is the parity error against the golden files.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.records import ROOT, environment, finish, own_bytes, percentile
from foley.media.mux import write_video
from foley.pipeline import FoleyPipeline
from foley.request import GenerationRequest
from foley.types import Stage, VideoFrames
from tests.parity.check import run as check_golden_file

CLIP = ROOT / "examples" / "bigbuckbunny.mp4"
GOLDEN = ROOT / "tests" / "assets" / "golden" / "sampler_euler_cfg.safetensors"
STAGES = ("decode_video", "encode", "sample", "decode_audio", "mux")


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    """Operations a second of a large matrix product on random data, the best of five."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(6):
        start = time.perf_counter()
        (a @ b).sum().item()
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def one_run(pipeline: FoleyPipeline, clip: Path, request: GenerationRequest) -> dict[str, float]:
    """Seconds of each stage, from the clip's file to the file with its new sound."""
    start = time.perf_counter()
    frames = pipeline.decode_video(clip, trim=True)
    seconds = {"decode_video": time.perf_counter() - start}
    made = pipeline.generate(frames, request)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        stop_seconds = made.duration_seconds if frames.trimmed else None
        out = Path(folder) / "out.mp4"
        write_video(clip, made.waveforms[0], out, stop_seconds=stop_seconds)
    return seconds | made.timings | {"write": time.perf_counter() - start}


def operations(
    pipeline: FoleyPipeline, frames: VideoFrames, request: GenerationRequest
) -> dict[str, float]:
    """Floating-point operations of each stage, two for a multiply-add."""
    counts: dict[str, float] = {}
    session = pipeline.start(frames, request)
    velocities = pipeline.velocity_model()
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            while session.stage == Stage.ENCODE:
                session.encode()
        counts["encode"] = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            while session.stage == Stage.SAMPLE:
                session.advance(*velocities([session.part]))
        counts["sample"] = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            while session.stage is Stage.DECODE_AUDIO:
                session.decode()
        counts["decode_audio"] = counter.get_total_flops()
    return counts


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The record."""
    load_start = time.perf_counter()
    pipeline = FoleyPipeline.from_preset(arguments.preset, weights=arguments.weights)
    load_seconds = time.perf_counter() - load_start
    request = GenerationRequest(
        prompt="a meadow, birds", seed=0, num_inference_steps=arguments.steps
    )
    frames = pipeline.decode_video(arguments.clip, trim=True)
    cold_start = time.perf_counter()
    made = pipeline.generate(frames, request)
    cold_seconds = time.perf_counter() - cold_start

    samples: dict[str, list[float]] = {stage: [] for stage in STAGES}
    rates = []
    # The transformer's type, in which nearly all of the arithmetic is done.
    dtype = torch.bfloat16 if pipeline.device.type == "cuda" else torch.float32
    for _ in range(arguments.repeats):
        rates.append(matrix_rate(pipeline.device, dtype))
        for stage, seconds in one_run(pipeline, arguments.clip, request).items():
            samples[stage].append(seconds)
    peak_bytes = (
        own_bytes("VmHWM") if pipeline.device.type == "cpu" else torch.cuda.max_memory_allocated()
    )
    totals = [sum(row) for row in zip(*samples.values(), strict=True)]
    rate = max(rates)
    counts = operations(pipeline, frames, request)
    passed, parity = check_golden_file(GOLDEN)
    return environment() | {
        "what": "pipeline",
        "clip": arguments.clip.name,
        "preset": pipeline.preset.name,
        "weights": pipeline.source,
        "device": str(pipeline.device),
        "num_threads": torch.get_num_threads(),
        "num_inference_steps": request.num_steps(pipeline.preset),
        "audio_seconds": made.duration_seconds,
        "warmup": 1,
        "num_samples": arguments.repeats,
        "load_seconds": load_seconds,
        "cold_generate_seconds": cold_seconds,
        "samples_seconds": samples,
        "p50_seconds": {s: percentile(samples[s], 50) for s in STAGES},
        "p95_seconds": {s: percentile(samples[s], 95) for s in STAGES},
        "total_p50_seconds": percentile(totals, 50),
        "total_p95_seconds": percentile(totals, 95),
        "real_time_factor": percentile(totals, 50) / made.duration_seconds,
        "flop": counts,
        "matrix_dtype": str(dtype),
        "matrix_flop_per_second": rate,
        "floor_seconds": {stage: count / rate for stage, count in counts.items()},
        "peak_memory_bytes": peak_bytes,
        "parity": parity,
        "parity_ok": passed,
    }


def show(record: dict[str, Any]) -> None:
    """A table for people."""
    print(
        f"preset {record['preset']} on {record['device']} ({record['cpu']}), "
        f"{record['num_inference_steps']} steps, {record['audio_seconds']:.2f} s of sound"
    )
    print(f"{'stage':14}{'p50 s':>9}{'p95 s':>9}{'floor s':>9}{'p50/floor':>11}")
    for stage in STAGES:
        p50, p95 = record["p50_seconds"][stage], record["p95_seconds"][stage]
        floor = record["floor_seconds"].get(stage)
        ratio = f"{floor:9.3f}{p50 / floor:11.1f}" if floor else f"{'-':>9}{'-':>11}"
        print(f"{stage:14}{p50:9.3f}{p95:9.3f}{ratio}")
    total = record["total_p50_seconds"]
    print(f"{'total':14}{total:9.3f}  real-time factor {record['real_time_factor']:.2f}")
    print(
        f"load {record['load_seconds']:.2f} s, first {record['cold_generate_seconds']:.2f} s, "
        f"peak memory {record['peak_memory_bytes'] / 1e6:.0f} MB"
    )
    print(record["parity"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", nargs="?", type=Path, default=CLIP)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--steps", type=int, help="without it, the preset's own")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--hardware", default="cpu", help="short name for the record's file")
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    record = measure(arguments)
    show(record)
    finish(record, hardware=arguments.hardware, write=arguments.record)


if __name__ == "__main__":
    main()

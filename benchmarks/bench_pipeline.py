"""Measure a whole generation by stages, and compare it with the machine's arithmetic limit.

    python -m benchmarks.bench_pipeline [CLIP] [--preset tiny] [--steps N] [--repeats N] [--record]

A stage's floor is the number of its floating-point operations, counted while it runs, divided by
the rate of a large matrix product measured in the same process. The quality figure is the parity
error on a golden file.
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
from foley.media.source import MediaLimits
from foley.pipeline import FoleyPipeline
from foley.request import GenerationRequest
from foley.types import Stage, VideoFrames
from tests.parity.check import run as check_golden_file

LIMITS = MediaLimits(max_seconds=15)
CLIP = ROOT / "examples" / "bigbuckbunny.mp4"
GOLDEN = ROOT / "tests" / "assets" / "golden" / "sampler_euler_cfg.safetensors"
STAGES = (Stage.DECODE_VIDEO, Stage.ENCODE, Stage.SAMPLE, Stage.DECODE_AUDIO, Stage.MUX)


def measure_matrix_rate(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    """Operations per second of a matrix product on random data, the best of six.

    Args:
        device: on which it runs.
        dtype: of both matrices.
        size: rows and columns of both matrices.
    """
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(6):
        start = time.perf_counter()
        (a @ b).sum().item()
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def measure_stages(
    pipeline: FoleyPipeline, clip: Path, request: GenerationRequest
) -> dict[str, float]:
    """Seconds of each stage, from the clip's file to the result file."""
    start = time.perf_counter()
    frames = pipeline.decode_video(clip, trim=True, limits=LIMITS)
    seconds: dict[str, float] = {Stage.DECODE_VIDEO: time.perf_counter() - start}
    result = pipeline.generate(frames, request)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        stop_seconds = result.duration_seconds if frames.trimmed else None
        out = Path(folder) / "out.mp4"
        write_video(clip, result.waveforms[0], out, stop_seconds=stop_seconds)
    return seconds | result.timings | {Stage.MUX: time.perf_counter() - start}


def count_operations(
    pipeline: FoleyPipeline, frames: VideoFrames, request: GenerationRequest
) -> dict[str, float]:
    """The floating-point operations of each stage; a multiply-add counts as two."""
    counts: dict[str, float] = {}
    session = pipeline.start(frames, request)
    velocities = pipeline.make_velocity_model()
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            while session.stage == Stage.ENCODE:
                session.encode()
        counts[Stage.ENCODE] = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            while session.stage == Stage.SAMPLE:
                session.advance(*velocities([session.prepare_part()]))
        counts[Stage.SAMPLE] = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            while session.stage == Stage.DECODE_AUDIO:
                session.decode()
        counts[Stage.DECODE_AUDIO] = counter.get_total_flops()
    return counts


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark and return its record."""
    load_start = time.perf_counter()
    pipeline = FoleyPipeline.from_preset(arguments.preset, weights=arguments.weights)
    load_seconds = time.perf_counter() - load_start
    request = GenerationRequest(
        prompt="a meadow, birds", seed=0, num_inference_steps=arguments.steps
    )
    frames = pipeline.decode_video(arguments.clip, trim=True, limits=LIMITS)
    cold_start = time.perf_counter()
    result = pipeline.generate(frames, request)
    cold_seconds = time.perf_counter() - cold_start

    samples: dict[str, list[float]] = {stage: [] for stage in STAGES}
    rates = []
    # The transformer does nearly all of the arithmetic, in this type.
    dtype = torch.bfloat16 if pipeline.device.type == "cuda" else torch.float32
    for _ in range(arguments.repeats):
        rates.append(measure_matrix_rate(pipeline.device, dtype))
        for stage, seconds in measure_stages(pipeline, arguments.clip, request).items():
            samples[stage].append(seconds)
    peak_bytes = (
        own_bytes("VmHWM") if pipeline.device.type == "cpu" else torch.cuda.max_memory_allocated()
    )
    totals = [sum(row) for row in zip(*samples.values(), strict=True)]
    rate = max(rates)
    counts = count_operations(pipeline, frames, request)
    passed, parity = check_golden_file(GOLDEN)
    return environment() | {
        "what": "pipeline",
        "clip": arguments.clip.name,
        "preset": pipeline.preset.name,
        "weights": pipeline.source,
        "device": str(pipeline.device),
        "num_threads": torch.get_num_threads(),
        "num_inference_steps": request.choose_sampling(pipeline.preset).num_inference_steps,
        "audio_seconds": result.duration_seconds,
        "warmup": 1,
        "num_samples": arguments.repeats,
        "load_seconds": load_seconds,
        "cold_generate_seconds": cold_seconds,
        "samples_seconds": samples,
        "p50_seconds": {s: percentile(samples[s], 50) for s in STAGES},
        "p95_seconds": {s: percentile(samples[s], 95) for s in STAGES},
        "total_p50_seconds": percentile(totals, 50),
        "total_p95_seconds": percentile(totals, 95),
        "real_time_factor": percentile(totals, 50) / result.duration_seconds,
        "flop": counts,
        "matrix_dtype": str(dtype),
        "matrix_flop_per_second": rate,
        "floor_seconds": {stage: count / rate for stage, count in counts.items()},
        "peak_memory_bytes": peak_bytes,
        "parity": parity,
        "parity_ok": passed,
    }


def show(record: dict[str, Any]) -> None:
    """Print the record as a table."""
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
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", nargs="?", type=Path, default=CLIP)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--steps", type=int, help="by default the preset's")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--hardware", default="cpu", help="short name for the record's file")
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    record = measure(arguments)
    show(record)
    finish(record, hardware=arguments.hardware, write=arguments.record)


if __name__ == "__main__":
    main()

"""Compare one pass of decoding and scaling with the reference's two passes with Pillow.

Both run on one processor core. Memory is measured in a fresh process for each clip, as the growth
over the memory after the imports.

    python -m benchmarks.bench_media [CLIP] [--repeats N] [--record]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import torch
from av.video.reformatter import VideoReformatter
from PIL import Image

from benchmarks.records import ROOT, cpu_model, environment, finish, own_bytes, percentile
from foley.media.clock import FramePicker
from foley.media.decode import decode_frames
from foley.media.scale import fit_and_crop, fitted_size, rgb_view, stretch

Pixels = npt.NDArray[np.uint8]

VISUAL_SIZE, SYNC_SIZE = 512, 224
MAX_SECONDS = 15.0
CLIP = ROOT / "examples" / "bigbuckbunny.mp4"


def one_pass(clip: Path) -> tuple[Pixels, Pixels]:
    """The frames at 8 and at 25 fps by `decode_frames`."""
    frames = decode_frames(
        clip, visual_size=VISUAL_SIZE, sync_size=SYNC_SIZE, trim=True, num_threads=1
    )
    return frames.visual.numpy(), frames.sync.numpy()


def two_passes(clip: Path) -> tuple[Pixels, Pixels]:
    """The frames at 8 and at 25 fps, decoded once for each rate and then scaled with Pillow.

    This is how the reference prepares a clip.
    """
    visual = [pillow_stretch(image) for image in pick_full_size(clip, 8)]
    sync = [pillow_fit_and_crop(image) for image in pick_full_size(clip, 25)]
    return np.stack(visual), np.stack(sync)


def pick_full_size(clip: Path, fps: int) -> list[Pixels]:
    """The frames picked at `fps`, uint8 [H, W, 3], not scaled."""
    picker = FramePicker(fps)
    images: list[Pixels] = []
    with av.open(str(clip)) as reader:
        stream = reader.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in reader.decode(stream):
            seconds = frame.time
            assert seconds is not None
            if 0 <= seconds <= MAX_SECONDS and (count := picker.count(seconds)):
                image: Pixels = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
                images += [image] * count
    return images


def pillow_stretch(image: Pixels) -> Pixels:
    """The image scaled to the visual encoder's square with Pillow's bilinear filter."""
    size = (VISUAL_SIZE, VISUAL_SIZE)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def pillow_fit_and_crop(image: Pixels) -> Pixels:
    """The middle square for the sync encoder, scaled with Pillow's bicubic filter."""
    height, width = fitted_size(image.shape[0], image.shape[1], SYNC_SIZE)
    scaled = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    top, left = round((height - SYNC_SIZE) / 2), round((width - SYNC_SIZE) / 2)
    return np.asarray(scaled)[top : top + SYNC_SIZE, left : left + SYNC_SIZE]


def decode_only(clip: Path) -> None:
    """Decode every frame once, without scaling: the cost that both methods share."""
    with av.open(str(clip)) as reader:
        stream = reader.streams.video[0]
        stream.codec_context.thread_count = 1
        for _ in reader.decode(stream):
            pass


METHODS: dict[str, Callable[[Path], object]] = {
    "one_pass": one_pass,
    "two_passes": two_passes,
    "decode_only": decode_only,
}


def measure_seconds(clip: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds of every run. The methods alternate, so that other load affects them equally."""
    samples: dict[str, list[float]] = {name: [] for name in METHODS}
    for round_index in range(repeats + 1):  # the first round is the warm-up
        for name, run in METHODS.items():
            start = time.perf_counter()
            run(clip)
            if round_index:
                samples[name].append(time.perf_counter() - start)
    return samples


def measure_steps(clip: Path, num_frames: int = 30) -> dict[str, float]:
    """Milliseconds per frame of each step of the single pass, the best of five runs."""
    with av.open(str(clip)) as reader:
        frames = [f for f, _ in zip(reader.decode(video=0), range(num_frames), strict=False)]
    reformatter = VideoReformatter()
    images = [rgb_view(reformatter.reformat(frame, format="rgb24")).clone() for frame in frames]
    steps: dict[str, Callable[[int], object]] = {
        "convert_ms": lambda i: reformatter.reformat(frames[i], format="rgb24"),
        "stretch_ms": lambda i: stretch(images[i], VISUAL_SIZE),
        "fit_and_crop_ms": lambda i: fit_and_crop(images[i], SYNC_SIZE),
    }
    best = {}
    for name, step in steps.items():
        runs = []
        for _ in range(5):
            start = time.perf_counter()
            for index in range(len(frames)):
                step(index)
            runs.append((time.perf_counter() - start) / len(frames) * 1000)
        best[name] = min(runs)
    return best


def compare_frames(clip: Path) -> dict[str, float | int]:
    """The differences between the two methods' frames, in levels of 255."""
    result: dict[str, float | int] = {}
    for name, ours, theirs in zip(
        ("visual", "sync"), one_pass(clip), two_passes(clip), strict=True
    ):
        distance = np.abs(ours.astype(np.int16) - theirs)
        result[f"{name}_frames"] = len(ours)
        result[f"{name}_max_level_difference"] = int(distance.max())
        result[f"{name}_fraction_different"] = float((distance > 0).mean())
    return result


def measure_peak_bytes(method: str, clip: Path) -> int:
    """The growth of the peak resident memory while a fresh process runs the method on the clip."""
    command = [sys.executable, "-m", "benchmarks.bench_media", str(clip), "--measure", method]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return int(done.stdout)


def print_peak_growth(method: str, clip: Path) -> None:
    """Run the method in this process and print the growth of its peak memory in bytes."""
    before = own_bytes("VmRSS")
    METHODS[method](clip)
    print(own_bytes("VmHWM") - before)


def measure_memory(folder: Path) -> list[dict[str, Any]]:
    """One row of peak memory for each of several clips of growing size and length."""
    rows = []
    for width, height, seconds in (
        (640, 360, 4),
        (1280, 720, 4),
        (1920, 1080, 4),
        (3840, 2160, 4),
        (1280, 720, 8),
        (1280, 720, 15),
    ):
        clip = folder / f"{width}x{height}_{seconds}s.mp4"
        write_moving_clip(clip, width, height, seconds)
        row: dict[str, Any] = {"width": width, "height": height, "seconds": seconds}
        for method in METHODS:
            if method == "two_passes" and width * height * seconds > 1280 * 720 * 8:
                continue  # it would need gigabytes
            row[f"{method}_bytes"] = measure_peak_bytes(method, clip)
        num_frames = 8 * seconds * VISUAL_SIZE**2 + 25 * seconds * SYNC_SIZE**2
        row["returned_bytes"] = 3 * num_frames
        rows.append(row)
    return rows


def write_moving_clip(path: Path, width: int, height: int, seconds: int) -> None:
    """Write an H.264 clip at 25 fps of a moving random texture.

    Args:
        path: to write.
        width: in pixels, a multiple of 8.
        height: in pixels, a multiple of 8.
        seconds: length.
    """
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 255, (height // 8, width // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as writer:
        stream = writer.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(25 * seconds):
            image = np.roll(texture, 4 * index, axis=1)
            writer.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        writer.mux(stream.encode(None))


def show(record: dict[str, Any]) -> None:
    """Print the record as tables."""
    print(f"{record['clip']} on {record['cpu']}, one core, {record['num_samples']} runs each")
    print(f"{'method':<14}{'p50 s':>9}{'p95 s':>9}")
    for name in METHODS:
        p50, p95 = record["p50_seconds"][name], record["p95_seconds"][name]
        print(f"{name:<14}{p50:>9.3f}{p95:>9.3f}")
    print(f"one pass is {record['ratio']:.2f} times as fast as two")
    print("one pass, ms per frame:", {k: round(v, 2) for k, v in record["steps"].items()})
    print("differences:", record["differences"])
    print(
        f"{'peak memory, MB':<20}{'one pass':>10}{'returned':>10}{'decoder':>10}{'two passes':>12}"
    )
    for row in record["memory"]:
        cells = [
            f"{row[key] / 1e6:.0f}" if key in row else "-"
            for key in ("one_pass_bytes", "returned_bytes", "decode_only_bytes", "two_passes_bytes")
        ]
        name = f"{row['width']}x{row['height']}, {row['seconds']} s"
        print(f"{name:<20}{cells[0]:>10}{cells[1]:>10}{cells[2]:>10}{cells[3]:>12}")


def main() -> None:
    """Run the benchmark, or measure one method's memory in a child process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", nargs="?", type=Path, default=CLIP)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--record", action="store_true", help="write the record")
    parser.add_argument("--measure", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    # Restrict everything to one core, including the thread pools of the libraries.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    if options.measure:
        print_peak_growth(options.measure, options.clip)
        return

    record = {"what": "media", **environment()}
    samples = measure_seconds(options.clip, options.repeats)
    p50 = {name: percentile(values, 50) for name, values in samples.items()}
    clip = options.clip.resolve()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure_memory(Path(folder))
    record |= {
        "clip": str(clip.relative_to(ROOT) if clip.is_relative_to(ROOT) else clip.name),
        "clip_bytes": clip.stat().st_size,
        "warmup": 1,
        "num_samples": options.repeats,
        "seconds": samples,
        "p50_seconds": p50,
        "p95_seconds": {name: percentile(values, 95) for name, values in samples.items()},
        "ratio": p50["two_passes"] / p50["one_pass"],
        "steps": measure_steps(clip),
        "differences": compare_frames(clip),
        "peak_memory_bytes": measure_peak_bytes("one_pass", clip),
        "two_passes_peak_memory_bytes": measure_peak_bytes("two_passes", clip),
        "memory": rows,
    }
    show(record)
    hardware = "epyc" if "EPYC" in cpu_model() else "cpu"
    finish(json.loads(json.dumps(record)), hardware=hardware, write=options.record)


if __name__ == "__main__":
    main()

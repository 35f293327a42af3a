"""Measure the memory of `foley generate` with a clip of a minute and with one of ten.

    python -m benchmarks.bench_long [--seconds 60 600] [--out PICTURE.svg] [--record]

Each clip, 320x240 at 25 fps and without sound, gets an mp4 in a program of its own. Memory is what
that program has of its own, without the pages of files that it maps: of the libraries, of the
weights, and of a sound on its way into a file. `curve_mb` has its most in each fiftieth of the run,
and `files_mb` the most of its temporary files.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.pictures import save_picture
from benchmarks.records import environment, finish
from tests.server import draw_clip

PERIOD_SECONDS = 0.1
NUM_POINTS = 50
SIZE = (320, 240)


def measure(seconds: int, quality: str) -> dict[str, Any]:
    """Return the time, the memory and the temporary files of one run.

    Args:
        seconds: length of the clip.
        quality: of the request.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        clip, result, scratch = folder / "clip.mp4", folder / "out.mp4", folder / "scratch"
        scratch.mkdir()
        draw_clip(clip, num_frames=25 * seconds, size=SIZE)
        command = (sys.executable, "-c", "from foley.cli.app import main; main()", "generate")
        options = ("-p", "dripping water", "--seed", "1", "--quality", quality, "-o", str(result))
        program = psutil.Popen(
            [*command, str(clip), *options, "-q"],
            env={**os.environ, "TMPDIR": str(scratch)},
            stdout=subprocess.DEVNULL,
        )
        began, files = time.perf_counter(), 0
        memory: list[float] = []
        while program.poll() is None:
            memory.append(_own_bytes(program) / 1e6)
            files = max(files, _count_bytes(scratch))
            time.sleep(PERIOD_SECONDS)
        elapsed = time.perf_counter() - began
        if program.returncode:
            raise SystemExit(f"foley generate ended with {program.returncode}")
        return {
            "clip_seconds": seconds,
            "run_seconds": round(elapsed, 1),
            "peak_mb": round(max(memory)),
            "files_mb": round(files / 1e6, 1),
            "result_mb": round(result.stat().st_size / 1e6, 1),
            "curve_mb": [round(float(part.max())) for part in np.array_split(memory, NUM_POINTS)],
        }


def _own_bytes(program: psutil.Popen) -> int:
    total = 0
    try:
        for process in (program, *program.children(recursive=True)):
            used = process.memory_info()
            total += used.rss - used.shared
    except psutil.Error:  # it has just ended
        pass
    return total


def _count_bytes(folder: Path) -> int:
    total = 0
    for inner, _, names in os.walk(folder):  # which passes over folders that are removed meanwhile
        for name in names:
            try:
                total += os.stat(os.path.join(inner, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def plot(runs: list[dict[str, Any]], out: Path) -> None:
    """Draw the memory of each run over its time.

    Args:
        runs: of `measure`.
        out: whose suffix selects the format, such as .svg.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 3))
    for run in runs:
        shares = [100 * (n + 1) / NUM_POINTS for n in range(NUM_POINTS)]
        label = f"clip of {run['clip_seconds']} s, {run['run_seconds']:.0f} s"
        axes.plot(shares, run["curve_mb"], label=label)
    axes.set(xlabel="share of the run, %", ylabel="memory of its own, MB", ylim=(0, None))
    axes.legend(frameon=False, loc="lower right")
    figure.tight_layout()
    save_picture(figure, out)


def main() -> None:
    """Measure, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, nargs="+", default=[60, 600])
    parser.add_argument("--quality", default="fast")
    parser.add_argument("--out", type=Path, help="a picture of the memory")
    parser.add_argument("--hardware", default="cpu", help="short name for the record's file")
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    record = environment()
    runs = []
    for seconds in args.seconds:
        runs.append(measure(seconds, args.quality))
        print(runs[-1], flush=True)
    if args.out:
        plot(runs, args.out)
    record |= {"what": "long", "quality": args.quality, "picture": SIZE, "runs": runs}
    finish(record, hardware=args.hardware, write=args.record)


if __name__ == "__main__":
    main()

"""Measure the time and the peak memory of loading a full-size checkpoint.

    python -m benchmarks.bench_load [--preset xl] [--folder DIR] [--record]

The program writes a transformer file of random numbers in the official layout (5.8 GB for xl). It
loads the file in a fresh process as `.pth` and as safetensors, and reads every weight. Peak memory
includes the mapped pages of the file, so that a second copy would show as twice the file's size.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.records import ROOT, environment, finish, own_bytes
from foley.configs import PRESETS
from foley.weights.parts import load_official
from foley.weights.tensors import read_weights

MANIFESTS = ROOT / "tests" / "assets" / "manifests"
LIMIT_BYTES = 10**9  # allowed above the file's size


def write_random(manifest: Path, path: Path) -> None:
    """Write a checkpoint of random numbers.

    Args:
        manifest: a JSON file with the keys, shapes and dtypes.
        path: to write; its suffix selects the format, `.pth` or `.safetensors`.
    """
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for key, (shape, dtype) in json.loads(manifest.read_text())["tensors"].items():
        tensor = torch.empty(shape, dtype=getattr(torch, dtype))
        weights[key] = tensor.normal_(std=0.02, generator=generator)
    if path.suffix == ".pth":
        torch.save(weights, path)
    else:
        save_file(weights, path)


def load_in_this_process(path: Path, preset_name: str) -> dict[str, Any]:
    """Load the checkpoint and read every weight once; returns seconds and bytes of memory."""
    before = own_bytes("VmRSS")
    start = time.perf_counter()
    weights, _ = read_weights(path)
    module = load_official("dit", weights, PRESETS[preset_name], origin=path.name)
    del weights
    load_seconds = time.perf_counter() - start
    total = sum(parameter.view(torch.int16).sum().item() for parameter in module.parameters())
    return {
        "load_seconds": load_seconds,
        "load_and_touch_seconds": time.perf_counter() - start,
        "before_bytes": before,
        "peak_bytes": own_bytes("VmHWM"),
        "anonymous_bytes": own_bytes("RssAnon"),
        "checksum": total,
    }


def measure(preset: str, folder: Path) -> list[dict[str, Any]]:
    """One row for each format, measured on a file that is written to `folder` and deleted."""
    rows = []
    for suffix in (".pth", ".safetensors"):
        path = folder / f"random{suffix}"
        write = [sys.executable, "-m", "benchmarks.bench_load", "--preset", preset]
        subprocess.run([*write, "--write", str(path)], cwd=ROOT, check=True)
        done = subprocess.run(
            [*write, "--load", str(path)], cwd=ROOT, check=True, capture_output=True, text=True
        )
        row = {"format": suffix, "file_bytes": path.stat().st_size, **json.loads(done.stdout)}
        row["above_file_bytes"] = row["peak_bytes"] - row["file_bytes"]
        rows.append(row)
        path.unlink()
    return rows


def main() -> None:
    """Run the benchmark, or one step of it in a child process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=("xl", "xxl"), default="xl")
    parser.add_argument("--folder", type=Path, help="folder for the temporary file")
    parser.add_argument("--hardware", default="cpu", help="short name for the record's file")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write_random(MANIFESTS / f"dit_{arguments.preset}.json", arguments.write)
        return
    if arguments.load:
        print(json.dumps(load_in_this_process(arguments.load, arguments.preset)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rows = measure(arguments.preset, Path(folder))
    print(
        f"{'format':14}{'file GB':>9}{'peak GB':>9}{'above GB':>10}{'load s':>8}{'touched s':>11}"
    )
    for row in rows:
        print(
            f"{row['format']:14}{row['file_bytes'] / 1e9:9.2f}{row['peak_bytes'] / 1e9:9.2f}"
            f"{row['above_file_bytes'] / 1e9:10.2f}{row['load_seconds']:8.2f}"
            f"{row['load_and_touch_seconds']:11.2f}"
        )
    within = all(row["above_file_bytes"] <= LIMIT_BYTES for row in rows)
    print(f"peak memory at most file size + 1 GB: {'yes' if within else 'NO'}")
    record = environment() | {
        "what": "load",
        "preset": arguments.preset,
        "rows": rows,
        "limit_above_file_bytes": LIMIT_BYTES,
        "within_limit": within,
    }
    finish(record, hardware=arguments.hardware, write=arguments.record)


if __name__ == "__main__":
    main()

"""Measure the time and the peak host memory of loading a whole model from disk to the device.

    python -m benchmarks.bench_start [--preset xl] [--device cuda] [--folder DIR] [--record]
    python -m benchmarks.bench_start --preset xxl --device cuda --model DIR     only that folder

The program writes a full-size folder of random numbers in the official layouts (xl 8.9 GB, xxl
13.3 GB), converts it with `foley convert` to bf16 and to fp8, and loads each folder in fresh
processes: once cold, after dropping the files from the page cache, and then warm. On the CPU each
part is read completely and dropped, as if it had moved to a GPU. This measures host memory and
reading, without the transfer to a GPU. fp8 is left out there, because it would be widened on the
host. `benchmarks.random_model` writes a folder for --model.

The measured time starts after the imports and ends when the weights are on the device. It includes
the start of CUDA, which is also reported separately. `process_seconds` is the time of the whole
process.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.bench_load import LIMIT_BYTES, MANIFESTS, write_random
from benchmarks.records import ROOT, environment, finish, own_bytes
from foley.configs import PRESETS, Preset
from foley.pipeline import FoleyPipeline
from foley.weights import loading
from foley.weights.components import build_on_meta
from foley.weights.selection import EMBEDDED_WEIGHTS

PAGE_BYTES = 4096
LIMIT_SECONDS = 15  # xxl from safetensors, warm, on an H100 machine's local disk
LAYOUTS = {"cpu": ("official", "bf16"), "cuda": ("official", "bf16", "fp8")}
DIT_FILES = {"xl": "hunyuanvideo_foley_xl.pth", "xxl": "hunyuanvideo_foley.pth"}


def write_folder(folder: Path, preset: Preset) -> None:
    """Write random numbers in the official layout; of the encoders, only the towers that are used.

    Args:
        folder: an empty folder.
        preset: xl or xxl.
    """
    write_random(MANIFESTS / f"dit_{preset.name}.json", folder / DIT_FILES[preset.name])
    write_random(MANIFESTS / "dac_vae.json", folder / "vae_128d_48k.pth")
    write_random(MANIFESTS / "synchformer_full.json", folder / "synchformer_state_dict.pth")
    vision, text = folder / "siglip2-base-patch16-512", folder / "larger_clap_general"
    vision.mkdir()
    save_file(random_tower("vision", preset, "vision_model."), vision / "model.safetensors")
    shutil.copytree(EMBEDDED_WEIGHTS / "text", text)
    torch.save(random_tower("text", preset, "text_model."), text / "pytorch_model.bin")


def random_tower(part: str, preset: Preset, prefix: str) -> dict[str, Tensor]:
    """Random weights of an encoder (`vision` or `text`), their names with the prefix."""
    generator = torch.Generator().manual_seed(0)
    module = build_on_meta(part, preset)
    return {
        prefix + name: torch.empty(tensor.shape).normal_(std=0.02, generator=generator)
        for name, tensor in module.named_parameters()
    }


def load_whole_model(folder: Path, preset: Preset, device: str) -> dict[str, Any]:
    """Load the folder in this process; returns seconds and bytes of memory."""
    before = own_bytes("VmRSS")
    start = time.perf_counter()
    found: dict[str, Any] = {}
    if device == "cpu":
        load_and_drop(folder, preset)
    else:
        torch.zeros(1, device=device)
        torch.cuda.synchronize()
        found["cuda_seconds"] = time.perf_counter() - start
        found["cuda_bytes"] = own_bytes("VmRSS") - before
        device = f"cuda:{torch.cuda.current_device()}"  # with an index, as in the service
        components = loading.load_components(folder, preset, device=device)
        found["read_seconds"] = time.perf_counter() - start - found["cuda_seconds"]
        pipeline = FoleyPipeline(components, torch.device(device))
        torch.cuda.synchronize()
        found["gpu_bytes"] = torch.cuda.memory_allocated()
        del pipeline, components
    return found | {
        "seconds": time.perf_counter() - start,
        "before_bytes": before,
        "peak_bytes": own_bytes("VmHWM"),
    }


def load_and_drop(folder: Path, preset: Preset) -> None:
    """Read every weight once, part after part, and keep none in memory."""
    moved = torch.nn.Module.to

    def read(module: torch.nn.Module, *_: object, **__: object) -> torch.nn.Module:
        for parameter in module.parameters():
            parameter.detach().flatten().view(torch.uint8)[::PAGE_BYTES].max().item()
        return moved(module, "meta")

    torch.nn.Module.to = read  # type: ignore[method-assign, assignment]
    loading.load_components(folder, preset)


def drop_from_page_cache(folder: Path) -> None:
    """Have the system drop the pages of all files in the folder from its cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(root: Path, preset: Preset, device: str, num_warm: int) -> list[dict[str, Any]]:
    """One row for each layout, measured on folders that are written to `root`."""
    rows = []
    official = root / "official"
    official.mkdir()
    write_folder(official, preset)
    for layout in LAYOUTS[torch.device(device).type]:
        folder = root / layout
        if layout != "official":
            convert = [sys.executable, "-m", "foley.cli.app", "convert", official, folder]
            subprocess.run([*map(str, convert), "--storage", layout], cwd=ROOT, check=True)
        rows.append({"layout": layout} | measure_folder(folder, preset, device, num_warm))
        if layout != "official":
            shutil.rmtree(folder)
    return rows


def measure_folder(folder: Path, preset: Preset, device: str, num_warm: int) -> dict[str, Any]:
    """Load a folder in fresh processes, cold once and then warm; returns its row of the record.

    Args:
        folder: of a model.
        preset: of the model.
        device: cpu or cuda.
        num_warm: number of warm loads.
    """
    again = [sys.executable, "-m", "benchmarks.bench_start", "--preset", preset.name]
    again += ["--device", device, "--load", str(folder.absolute())]
    runs = []
    drop_from_page_cache(folder)
    for _ in range(1 + num_warm):
        start = time.perf_counter()
        done = subprocess.run(again, cwd=ROOT, check=True, stdout=subprocess.PIPE)
        process_seconds = time.perf_counter() - start
        runs.append(json.loads(done.stdout) | {"process_seconds": process_seconds})
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    peak = max(run["peak_bytes"] for run in runs)
    return {
        "bytes": sum(sizes),
        "largest_file_bytes": max(sizes),
        "cold_seconds": runs[0]["seconds"],
        "warm_seconds": [run["seconds"] for run in runs[1:]],
        "peak_bytes": peak,
        "before_bytes": runs[0]["before_bytes"],
        "above_file_bytes": peak - max(sizes),
        "runs": runs,
    }


def main() -> None:
    """Run the benchmark, or one load in a child process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=("tiny", "xl", "xxl"), default="xl")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help="folder for the temporary files of two models")
    parser.add_argument("--model", type=Path, help="measure only this folder")
    parser.add_argument("--num-warm", type=int, default=2)
    parser.add_argument("--hardware", default="cpu", help="short name for the record's file")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    preset = PRESETS[arguments.preset]
    if preset.name not in DIT_FILES and not (arguments.load or arguments.model):
        parser.error(f"{preset.name} has no official files; name a folder with --model")
    if arguments.load:
        print(json.dumps(load_whole_model(arguments.load, preset, arguments.device)))
        return
    conditions = preset, arguments.device, arguments.num_warm
    if arguments.model:
        rows = [{"layout": arguments.model.name} | measure_folder(arguments.model, *conditions)]
    else:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            rows = measure(Path(folder), *conditions)
    print(f"{'layout':10}{'GB':>7}{'peak GB':>9}{'above GB':>10}{'cold s':>8}{'warm s':>8}")
    for row in rows:
        print(
            f"{row['layout']:10}{row['bytes'] / 1e9:7.2f}{row['peak_bytes'] / 1e9:9.2f}"
            f"{row['above_file_bytes'] / 1e9:10.2f}{row['cold_seconds']:8.1f}"
            f"{min(row['warm_seconds']):8.1f}"
        )
    record = environment() | {
        "what": "start",
        "preset": preset.name,
        "device": arguments.device,
        "rows": rows,
        "limit_above_file_bytes": LIMIT_BYTES,
        "limit_warm_seconds": LIMIT_SECONDS,
        "within_memory_limit": all(row["above_file_bytes"] <= LIMIT_BYTES for row in rows),
    }
    if preset.name == "xxl" and torch.device(arguments.device).type == "cuda":
        slowest = max(max(row["warm_seconds"]) for row in rows if row["layout"] != "official")
        record["within_warm_limit"] = slowest <= LIMIT_SECONDS
    finish(record, hardware=arguments.hardware, write=arguments.record)


if __name__ == "__main__":
    main()

"""Measure a full-size model of random numbers on one GPU, and compare it with the GPU's limits.

    python -m benchmarks.bench_gpu --preset xxl --seconds 8 --steps 50 --clips 1 4 16
        [--precision bf16 fp8] [--memory full balanced low] [--parts NAME ...] [--brief]
        [--out FILE] [--hardware NAME --record]

The program needs PyTorch, transformers, diffusers, safetensors, pydantic and numpy, and no network.
The parts are independent: if one fails, it is reported and the next one runs. The file of --out is
written after each part. On the CPU (`--device cpu --preset tiny --seconds 1 --steps 2 --clips 1 2`)
the parts run, but their times are meaningless.

Work is counted by the formula of the specification (section 14), without the savings of this
implementation, so that rates are comparable between programs. The work that is really computed is
reported separately.
"""

import argparse
import importlib.metadata
import json
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import parts
from benchmarks.gpu.bench import Bench, print_step
from benchmarks.gpu.caches import measure_caches
from benchmarks.gpu.decoder import measure_decoder, measure_layers
from benchmarks.gpu.encoders import measure_encoders
from benchmarks.gpu.kernels import measure_kernels, measure_products
from benchmarks.gpu.lengths import CARDS, measure_card, measure_cards, measure_qualities
from benchmarks.gpu.model import step_flop
from benchmarks.gpu.stages import measure_stages
from benchmarks.records import environment, finish
from foley.attention_kernels import find_attention_kernel
from foley.configs import PRESETS

# Short and important parts come first, in case the run is aborted.
PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "ceilings": parts.measure_ceilings,
    "sound": measure_decoder,
    "encoders": measure_encoders,
    "stages": measure_stages,
    "qualities": measure_qualities,
    "caches": measure_caches,
    "steps": parts.measure_steps,
    "unfused": parts.measure_unfused,
    "profile": parts.profile_steps,
    "memory": parts.measure_memory,
    "cards": measure_cards,
    "parity": parts.measure_parity,
    "products": measure_products,
    "kernels": measure_kernels,
    "layers": measure_layers,
    "exhausted": parts.check_out_of_memory,
    "starts": parts.measure_starts,
}
# These need a process of their own, and others start them.
ALONE: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "start": parts.measure_start,
    "card": measure_card,
}


def print_summary(bench: Bench) -> None:
    """Print the main figures of the record."""
    record = bench.record
    found = record.get("stages", {}).get("bf16", {}).get("median", {})
    rows = [(f"{name}, 1 clip", value) for name, value in found.items()]
    print(f"\n{'':34}{'measured':>12}")
    for name, value in rows:
        print(f"{name:34}{1000 * value:9.1f} ms")
    for name, row in (record.get("steps", {}) | record.get("unfused", {})).items():
        if isinstance(row, dict) and "step_seconds" in row:
            print_step(f"step {name}", row)
    ceiling = bench.ceiling()
    if ceiling:
        print(
            f"bf16 product {ceiling / 1e12:.0f} TFLOP/s, floor per step and clip "
            f"{1000 * step_flop(bench.preset.dit, bench.args.seconds) / ceiling:.2f} ms"
        )
    if failed := record["failed"]:
        print(f"failed: {', '.join(failed)}")


def collect_versions() -> dict[str, Any]:
    """The versions of the machine and of the packages; None for those that are not installed."""
    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    for package in ("diffusers", "triton", "flash_attn", "safetensors"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    try:
        return found | environment()
    except OSError as error:  # git or nvidia-smi is missing
        date = datetime.now(UTC).isoformat(timespec="seconds")
        return found | {"date": date, "commit": "unknown", "note": str(error)}


def main() -> None:
    """Run the parts; the exit status is 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="xxl", choices=sorted(PRESETS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--clips", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--precision", nargs="+", default=["bf16"], choices=["bf16", "fp8"])
    parser.add_argument("--memory", nargs="+", default=["full", "balanced", "low"])
    parser.add_argument("--cards", nargs="+", choices=[*CARDS], help="for the part cards")
    parser.add_argument("--parts", nargs="+", choices=[*PARTS, *ALONE])
    parser.add_argument("--brief", action="store_true", help="only steps of clips of equal length")
    parser.add_argument(
        "--cache",
        type=Path,
        help="for starts: a compile cache; if it is filled, only the warm start is measured",
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json-only", action="store_true")
    parser.add_argument("--hardware", default="gpu", help="short name for the record's file")
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
    record = collect_versions() | {
        "what": "gpu",
        "preset": args.preset,
        "device": str(device),
        "audio_seconds": args.seconds,
        "num_inference_steps": args.steps,
        "attention": find_attention_kernel(device if device.type == "cuda" else None),
        "warmup": 4,
        "failed": [],
    }
    bench = Bench(args, device, PRESETS[args.preset], record)
    names = args.parts or list(PARTS)
    on_device = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with on_device:
        for name in names:
            if not args.json_only:
                print(f"--- {name}", flush=True)
            begun = time.perf_counter()
            try:
                with torch.no_grad():
                    record[name] = (PARTS | ALONE)[name](bench)
            except Exception:  # noqa: BLE001 - the other parts run nevertheless
                traceback.print_exc()
                record["failed"].append(name)
            bench.reset_peak()
            record.setdefault("part_seconds", {})[name] = time.perf_counter() - begun
            if args.out:
                args.out.write_text(json.dumps(record, indent=1) + "\n")
    if not args.json_only:
        print_summary(bench)
    finish(record, hardware=args.hardware, write=args.record)
    if record["failed"]:
        sys.exit(1)


if __name__ == "__main__":
    main()

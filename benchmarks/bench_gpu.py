"""A full-size model of random numbers on one GPU, against the ceilings of the same machine and run.

    python -m benchmarks.bench_gpu --preset xxl --seconds 8 --steps 50 --clips 1 4 16
        [--precision bf16 fp8] [--memory full balanced low] [--parts NAME ...] [--brief]
        [--out FILE] [--hardware NAME --record]

Needs PyTorch, transformers, diffusers, safetensors, pydantic and numpy beside the repository, and
no network. Each part stands alone: one that fails is reported, and the rest goes on; --out is
written after each. On the CPU (`--device cpu --preset tiny --seconds 1 --steps 2 --clips 1 2`) it
shows that the parts run, and its times mean nothing.

Work is counted by the formula of the specification (section 14), as if nothing were left out:
rates are then comparable between programs, and a step that saves work can look better than it
computes. What is computed indeed is beside it.
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
from benchmarks.gpu.bench import Bench, show
from benchmarks.gpu.decoder import layers, sound
from benchmarks.gpu.encoders import encoders
from benchmarks.gpu.kernels import kernels, products
from benchmarks.gpu.model import step_flop
from benchmarks.gpu.stages import stages
from benchmarks.records import environment, finish
from foley.configs import PRESETS
from foley.models.attention import attention_kernel

# Cheap and decisive ones first: a lease may end.
PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "ceilings": parts.ceilings,
    "sound": sound,
    "encoders": encoders,
    "stages": stages,
    "steps": parts.steps,
    "unfused": parts.unfused,
    "profile": parts.profile,
    "memory": parts.memory,
    "parity": parts.parity,
    "products": products,
    "kernels": kernels,
    "layers": layers,
    "exhausted": parts.exhausted,
    "starts": parts.starts,
}


def summary(bench: Bench) -> None:
    """The figures that are wanted, beside what was wanted."""
    record = bench.record
    found = record.get("stages", {}).get("bf16", {}).get("median", {})
    rows = [(f"{name}, 1 clip", value) for name, value in found.items()]
    print(f"\n{'':34}{'measured':>12}")
    for name, value in rows:
        print(f"{name:34}{1000 * value:9.1f} ms")
    for name, made in (record.get("steps", {}) | record.get("unfused", {})).items():
        if isinstance(made, dict) and "step_seconds" in made:
            show(f"step {name}", made)
    ceiling = bench.ceiling()
    if ceiling:
        print(
            f"bf16 product {ceiling / 1e12:.0f} TFLOP/s, floor of a step and clip "
            f"{1000 * step_flop(bench.preset.dit, bench.args.seconds) / ceiling:.2f} ms"
        )
    if failed := record["failed"]:
        print(f"failed: {', '.join(failed)}")


def versions() -> dict[str, Any]:
    """Of the machine and of what is installed, where it can be told."""
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
    except OSError as error:  # no git, or no nvidia-smi
        date = datetime.now(UTC).isoformat(timespec="seconds")
        return found | {"date": date, "commit": "unknown", "note": str(error)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="xxl", choices=sorted(PRESETS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--clips", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--precision", nargs="+", default=["bf16"], choices=["bf16", "fp8"])
    parser.add_argument("--memory", nargs="+", default=["full", "balanced", "low"])
    parser.add_argument("--parts", nargs="+", choices=[*PARTS, "start"])
    parser.add_argument("--brief", action="store_true", help="steps of equal clips alone")
    parser.add_argument(
        "--cache", type=Path, help="for starts: a filled compile cache, then only the warm one"
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json-only", action="store_true")
    parser.add_argument("--hardware", default="gpu", help="short name for the record's file")
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
    record = versions() | {
        "what": "gpu",
        "preset": args.preset,
        "device": str(device),
        "audio_seconds": args.seconds,
        "num_inference_steps": args.steps,
        "attention": attention_kernel(device if device.type == "cuda" else None),
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
                    record[name] = parts.start(bench) if name == "start" else PARTS[name](bench)
            except Exception:  # noqa: BLE001 - one part must not lose the others
                traceback.print_exc()
                record["failed"].append(name)
            bench.reset_peak()
            record.setdefault("part_seconds", {})[name] = time.perf_counter() - begun
            if args.out:
                args.out.write_text(json.dumps(record, indent=1) + "\n")
    if not args.json_only:
        summary(bench)
    finish(record, hardware=args.hardware, write=args.record)
    if record["failed"]:
        sys.exit(1)


if __name__ == "__main__":
    main()

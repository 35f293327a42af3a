"""Benchmark records: the environment that each one states, and the files they are written to."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "benchmarks" / "records"
PACKAGES = ("torch", "av", "numpy", "transformers", "bentoml")


def environment() -> dict[str, Any]:
    """The command, commit, machine and package versions, with which a record begins."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": f"python -m {_module()} {' '.join(sys.argv[1:])}".strip(),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "cpu": cpu_model(),
        "num_cpus": os.cpu_count(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _version(name) for name in PACKAGES},
        **_gpu(),
    }


def percentile(samples: Sequence[float], percent: float) -> float:
    """The percentile of the samples, with linear interpolation.

    Args:
        samples: at least one value.
        percent: 0 to 100.
    """
    ordered = sorted(samples)
    position = (len(ordered) - 1) * percent / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def finish(record: dict[str, Any], *, hardware: str, write: bool) -> None:
    """Print the record as one line of JSON and, if `write` is set, write it to `records/`.

    Args:
        record: `what` names the benchmark; the keys of `environment` are required.
        hardware: a short name for the file, such as epyc or h200.
        write: whether to write the file.
    """
    # Paths are recorded relative to the repository, whose place on the machine is private.
    record = json.loads(json.dumps(record).replace(f"{ROOT}/", ""))
    if write:
        RECORDS.mkdir(exist_ok=True)
        day = record["date"][:10]
        path = RECORDS / f"{day}_{record['what']}_{hardware}_{record['commit']}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"written: {path.relative_to(ROOT)}")
    print(json.dumps(record))


def own_bytes(name: str) -> int:
    """A memory figure of this process in bytes, from /proc/self/status.

    `resource.getrusage` is not used, because a child's ru_maxrss starts at its parent's value.

    Args:
        name: VmRSS, VmHWM (the peak of VmRSS) or RssAnon.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def cpu_model() -> str:
    """The processor's model name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        return {"gpu": None}
    query = "name,power.limit,driver_version"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    first = (done.stdout.splitlines() or [""])[0].split(", ")
    name, power_limit_w, driver = first if len(first) == 3 else (None, None, None)
    return {
        "gpu": torch.cuda.get_device_name(0) or name,
        "power_limit_w": float(power_limit_w) if power_limit_w else None,
        "driver": driver,
        "cuda": torch.version.cuda,
    }


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else Path(sys.argv[0]).stem


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()

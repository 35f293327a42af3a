"""A full-size model of random numbers in our own layout, for benchmarks where no weights are.

    python -m benchmarks.random_model FOLDER --preset xxl --device cuda

As `foley convert` would leave it: the transformer in bf16, the rest in float32 (xxl: 13 GB). The
numbers are of the size of a fresh model's, so that its sound stays finite; drawn on a GPU they take
seconds.
"""

import argparse
import time
from pathlib import Path

import torch

from benchmarks.gpu.model import PARTS, random_model
from foley.configs import PRESETS, Preset
from foley.weights.loading import save_components


def write_model(folder: Path, preset: Preset, device: torch.device) -> None:
    """The folder, which must not exist or be empty."""
    dtypes = dict.fromkeys(PARTS, torch.float32) | {"dit": torch.bfloat16}
    components = random_model(preset, device, dtypes, torch.device("cpu"))
    save_components(components, folder, source=components.source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", choices=tuple(PRESETS), default="xxl")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    began = time.perf_counter()
    write_model(arguments.folder, PRESETS[arguments.preset], torch.device(arguments.device))
    files = [path for path in arguments.folder.rglob("*") if path.is_file()]
    num_bytes = sum(path.stat().st_size for path in files)
    print(f"{arguments.folder}: {num_bytes / 1e9:.2f} GB in {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()

"""Write a full-size model of random numbers in the converted layout.

    python -m benchmarks.random_model FOLDER --preset xxl --device cuda

The folder is like one of `foley convert`: the transformer in bf16, the rest in float32 (13 GB for
xxl). The weights have the scale of an untrained model's, so that the sound stays finite. Drawing
them on a GPU takes seconds.
"""

import argparse
import time
from pathlib import Path

import torch

from benchmarks.gpu.model import PARTS, random_model
from foley.configs import PRESETS, Preset
from foley.weights.layout import save_components


def write_model(folder: Path, preset: Preset, device: torch.device) -> None:
    """Write a model of random numbers.

    Args:
        folder: must not exist, or must be empty.
        preset: the model's size.
        device: on which the numbers are drawn.
    """
    dtypes = dict.fromkeys(PARTS, torch.float32) | {"dit": torch.bfloat16}
    components = random_model(preset, device, dtypes, torch.device("cpu"))
    save_components(components, folder, source=components.source)


def main() -> None:
    """Write the folder and print its size."""
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

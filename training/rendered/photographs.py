"""Photographs that stand behind rendered scenes: panoramas of Poly Haven, in the public domain.

python -m training.rendered.photographs --out FOLDER     needs npm; 18 panoramas, 1 MB
"""

# n pixels a side

import argparse
import base64
import io
import math
import os
import re
import subprocess
import tarfile
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

PACKAGE = "@pmndrs/assets@1.7.0"  # CC0
FOLDER = os.environ.get("TRAINING_PHOTOGRAPHS")  # where they are; scenes do without them
_PANORAMA = re.compile(r"package/hdri/(\w+)\.exr\.js")
_MIDDLE = 0.2  # linear light of a panorama's median


def _read_panorama(script: str) -> np.ndarray:
    """Return linear light, float32 [h, w, 3], of a script that contains an EXR file."""
    import av  # only who fetches them needs it

    match = re.search(r"base64,([A-Za-z0-9+/=]+)", script)
    if match is None:
        raise ValueError("this script contains no file")
    with av.open(io.BytesIO(base64.b64decode(match[1])), mode="r", format="exr_pipe") as file:
        frame = next(file.decode(video=0))
    planes = [
        np.frombuffer(bytes(plane), np.float16).reshape(plane.height, -1)[:, : plane.width]
        for plane in frame.planes
    ]
    green, blue, red = planes[:3]
    return np.stack((red, green, blue), -1).astype(np.float32)


def write_photographs(folder: Path) -> int:
    """Fetch the panoramas by npm, write them as JPEG files, and return how many they are."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=place, check=True)
        with tarfile.open(next(Path(place).glob("*.tgz"))) as package:
            scripts = {
                match[1]: package.extractfile(member)
                for member in package
                if (match := _PANORAMA.fullmatch(member.name))
            }
            for name, file in scripts.items():
                assert file is not None
                light = _read_panorama(file.read().decode()).clip(0)
                shown = light * (_MIDDLE / max(float(np.median(light)), 1e-4))
                image = (shown / (1 + 0.6 * shown)).clip(0, 1) ** (1 / 2.2)
                Image.fromarray((image * 255).astype(np.uint8)).save(
                    folder / f"{name}.jpg", quality=90
                )
    return len(scripts)


@cache
def _load(folder: str) -> tuple[np.ndarray, ...]:
    paths = sorted(Path(folder).glob("*.jpg"))
    return tuple(np.asarray(Image.open(path).convert("RGB"), np.float32) for path in paths)


def draw_photograph(rng: np.random.Generator, size: int) -> bytes | None:
    """Return a part of a panorama as a PNG file, or None where there are no panoramas.

    Args:
        rng: of the choice, the direction and the field of view.
        size: pixels a side.
    """
    panoramas = _load(FOLDER) if FOLDER else ()
    if not panoramas:
        return None
    panorama = panoramas[int(rng.integers(len(panoramas)))]
    reach = math.tan(math.radians(rng.uniform(35, 80) / 2))
    around, above = rng.uniform(0, 2 * math.pi), math.radians(rng.uniform(-8, 12))
    x, y = np.meshgrid(np.linspace(-reach, reach, size), np.linspace(reach, -reach, size))
    forward = math.cos(above) - y * math.sin(above)
    up = math.sin(above) + y * math.cos(above)
    across = (around + np.arctan2(x, forward)) / (2 * math.pi) % 1
    down = 0.5 - np.arctan2(up, np.hypot(x, forward)) / math.pi
    rows, columns = panorama.shape[:2]
    image = _sample(panorama, down * rows - 0.5, across * columns - 0.5)
    file = io.BytesIO()
    Image.fromarray(image.round().astype(np.uint8)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _sample(image: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Return the colours at places between the pixels, [n, n, 3]; left and right are joined."""
    rows, columns = image.shape[:2]
    top, left = np.floor(row).astype(int), np.floor(column).astype(int)
    down, right = (row - top)[..., None], (column - left)[..., None]
    upper, lower = (np.clip(top + step, 0, rows - 1) for step in (0, 1))
    first, second = left % columns, (left + 1) % columns
    above = image[upper, first] * (1 - right) + image[upper, second] * right
    below = image[lower, first] * (1 - right) + image[lower, second] * right
    return above * (1 - down) + below * down


def main() -> None:
    """Fetch the panoramas."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    print(f"{write_photographs(parser.parse_args().out)} panoramas")


if __name__ == "__main__":
    main()

"""Procedural textures and the optical and mechanical constants of materials."""

# n texels a side

import colorsys
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

Colour = np.ndarray  # [3] in 0 .. 1


@dataclass(frozen=True, kw_only=True)
class Substance:
    """How a material moves and looks.

    Attributes:
        colour: its usual colour, RGB in 0 .. 1.
        restitution: speed after an impact over the speed before it.
        friction: of sliding.
        density: kg / m3, of things that are partly hollow.
        specular, shininess: MuJoCo's, 0 .. 1.
        textures: its usual textures.
        floors: its textures where it covers a floor.
    """

    colour: tuple[float, float, float]
    restitution: float
    friction: float
    density: float
    specular: float
    shininess: float
    textures: tuple[str, ...]
    floors: tuple[str, ...]


SUBSTANCES = {
    "wood": Substance(
        colour=(0.55, 0.36, 0.2),
        restitution=0.45,
        friction=0.5,
        density=650,
        specular=0.2,
        shininess=0.3,
        textures=("grain", "planks", "grain"),
        floors=("planks", "grain"),
    ),
    "metal": Substance(
        colour=(0.62, 0.63, 0.66),
        restitution=0.5,
        friction=0.35,
        density=2600,
        specular=0.8,
        shininess=0.8,
        textures=("brushed", "flat"),
        floors=("brushed", "tiles"),
    ),
    "glass": Substance(
        colour=(0.65, 0.82, 0.88),
        restitution=0.5,
        friction=0.3,
        density=1600,
        specular=0.9,
        shininess=0.9,
        textures=("flat",),
        floors=("tiles",),
    ),
    "plastic": Substance(
        colour=(0.85, 0.25, 0.2),
        restitution=0.6,
        friction=0.5,
        density=500,
        specular=0.6,
        shininess=0.6,
        textures=("flat", "flat", "dots", "stripes"),
        floors=("flat", "checker", "tiles"),
    ),
    "stone": Substance(
        colour=(0.5, 0.48, 0.45),
        restitution=0.35,
        friction=0.6,
        density=2200,
        specular=0.1,
        shininess=0.1,
        textures=("speckle", "noise", "marble"),
        floors=("tiles", "speckle", "bricks", "noise", "marble"),
    ),
    "skin": Substance(
        colour=(0.75, 0.55, 0.42),
        restitution=0.45,
        friction=0.7,
        density=700,
        specular=0.1,
        shininess=0.2,
        textures=("flat", "fabric", "noise"),
        floors=("fabric",),
    ),
}
TEXTURES = (
    "flat",
    "checker",
    "stripes",
    "grain",
    "marble",
    "bricks",
    "planks",
    "tiles",
    "dots",
    "speckle",
    "fabric",
    "noise",
    "brushed",
)
FLOORS = ("planks", "tiles", "checker", "noise", "fabric", "speckle", "marble", "bricks", "grain")
# Kept for evaluation: no training clip shows these textures or these shapes.
UNSEEN_TEXTURES = ("waves", "patches", "hexagons")


def fractal(
    rng: np.random.Generator,
    size: int,
    octaves: int = 5,
    stretch: tuple[float, float] = (1, 1),
) -> np.ndarray:
    """Return smooth noise [size, size] in 0 .. 1 that repeats at its borders.

    Args:
        rng: source of the noise.
        size: texels a side.
        octaves: how many scales are summed; each is half as large as the one before.
        stretch: cells along x and along y, relative to a square grid.
    """
    total = np.zeros((size, size))
    for octave in range(octaves):
        cells = 2 ** (octave + 2)
        columns, rows = (min(size, max(2, int(cells * s))) for s in stretch)
        grid = rng.normal(size=(rows, columns))
        grid = np.pad(grid, ((0, 1), (0, 1)), mode="wrap")
        y = np.linspace(0, rows - 1e-6, size)
        x = np.linspace(0, columns - 1e-6, size)
        yi, xi = y.astype(int), x.astype(int)
        fy, fx = (y - yi)[:, None], (x - xi)[None]
        fy, fx = fy * fy * (3 - 2 * fy), fx * fx * (3 - 2 * fx)
        above = grid[yi][:, xi] * (1 - fx) + grid[yi][:, xi + 1] * fx
        below = grid[yi + 1][:, xi] * (1 - fx) + grid[yi + 1][:, xi + 1] * fx
        total += (above * (1 - fy) + below * fy) * 0.55**octave
    return (total - total.min()) / (np.ptp(total) + 1e-9)


def _pattern(rng: np.random.Generator, name: str, size: int) -> np.ndarray:
    """Return the share of the second colour [size, size], 0 .. 1."""
    y, x = np.mgrid[0:size, 0:size] / size
    count = int(rng.integers(2, 6))
    if name == "flat":
        return np.zeros((size, size))
    if name == "checker":
        return (np.floor(x * 2 * count) + np.floor(y * 2 * count)) % 2
    if name == "stripes":
        return np.floor(x * rng.integers(0, 2) * 2 * count + y * 2 * count) % 2
    if name == "grain":
        rings = fractal(rng, size, 4, (0.25, 1.0)) * count * 1.6 + y * count
        return 0.5 + 0.4 * np.sin(2 * np.pi * rings)
    if name == "marble":
        return np.abs(np.sin(2 * np.pi * fractal(rng, size, 6) * 1.5)) ** 0.5
    if name == "bricks":
        row = np.floor(y * 2 * count)
        joint = ((x * count + 0.5 * (row % 2)) % 1 < 0.06) | ((y * 2 * count) % 1 < 0.1)
        return joint * 0.9 + 0.3 * fractal(rng, size, 6) * ~joint
    if name == "planks":
        share = 0.5 * fractal(rng, size, 5, (0.3, 3))
        share += 0.25 * np.sin(np.floor(y * count) * 12.9 + 3) ** 2
        share[((y * count) % 1) < 0.04] = 1
        return share
    if name == "tiles":
        joint = ((x * count) % 1 < 0.04) | ((y * count) % 1 < 0.04)
        return joint * 0.9 + 0.15 * fractal(rng, size, 5)
    if name == "dots":
        away = ((x * count * 2) % 1 - 0.5) ** 2 + ((y * count * 2) % 1 - 0.5) ** 2
        return (away < 0.08).astype(float)
    if name == "speckle":
        grains = (rng.random((size, size)) < 0.15) * rng.random((size, size))
        return grains + 0.4 * fractal(rng, size, 4)
    if name == "fabric":
        weave = np.sin(x * size * np.pi / 2) * np.sin(y * size * np.pi / 2)
        return 0.5 * weave + 0.5 * fractal(rng, size, 5)
    if name == "brushed":
        return fractal(rng, size, 5, (0.3, 8)) * 0.6
    if name == "waves":
        return 0.5 + 0.5 * np.sin(2 * np.pi * (x * count + 0.3 * np.sin(2 * np.pi * y * count)))
    if name == "patches":
        return np.floor(fractal(rng, size, 3) * 4) / 3
    if name == "hexagons":
        row = np.floor(y * 2 * count)
        across = np.abs((x * count + 0.5 * (row % 2)) % 1 - 0.5)
        return (across + 0.5 * np.abs((y * 2 * count) % 1 - 0.5) > 0.55).astype(float)
    return fractal(rng, size, 6)


def draw_texture(
    rng: np.random.Generator, name: str, first: Colour, second: Colour, size: int = 128
) -> bytes:
    """Return a texture of two colours as a PNG file.

    Args:
        rng: source of its details.
        name: one of `TEXTURES` or `UNSEEN_TEXTURES`.
        first: RGB in 0 .. 1, where the pattern is 0.
        second: RGB in 0 .. 1, where the pattern is 1.
        size: texels a side.
    """
    share = np.clip(_pattern(rng, name, size), 0, 1)[..., None]
    image = first * (1 - share) + second * share + rng.normal(0, 0.012, (size, size, 1))
    file = io.BytesIO()
    Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def draw_colours(
    rng: np.random.Generator, material: str | None, usual_share: float
) -> tuple[Colour, Colour, bool]:
    """Return two colours, and whether they are the material's usual ones.

    Args:
        rng: source of the choice.
        material: a key of `SUBSTANCES`; None for a thing without a sound of its own.
        usual_share: probability of the usual colours, 0 .. 1.
    """
    if material is None or rng.random() >= usual_share:
        return rng.uniform(0.08, 0.95, 3), rng.uniform(0.08, 0.95, 3), False
    first = np.clip(np.array(SUBSTANCES[material].colour) + rng.normal(0, 0.07, 3), 0.05, 1)
    if material == "plastic":
        hue, saturation, value = rng.random(), rng.uniform(0.5, 0.95), rng.uniform(0.5, 0.95)
        first = np.array(colorsys.hsv_to_rgb(hue, saturation, value))
    return first, np.clip(first * rng.uniform(0.45, 0.8), 0, 1), True

"""Random scenes: the motion, the look, the sound and the prompt of a clip, as arrays."""

# n frames at 25 fps, K sprites, E hits, M modes, A latent frames

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from training import motion, text
from training.materials import (
    BURST,
    MATERIALS,
    NUM_MODES,
    TABLE,
    Voice,
    draw_hit_gains,
    draw_voice,
    hit_level,
)

FPS = 25
LATENT_RATE = 50
# Frames after a hit that are needed to see it, because a hit shows in the motion that follows.
SEEN_AFTER = 1.5
MAX_SPRITES = 10
MAX_HITS = 96
MAX_LAYERS = 3
LAYERS = ("rain", "wind", "engine", "fire", "stream", "friction", "whoosh")
ACTIONS = (
    "bounce",
    "roam",
    "strike",
    "tap",
    "clap",
    "drip",
    "pendulum",
    "slide",
    "burst",
    "whoosh",
)
HELD_OUT = "rattle"  # no training of the model sees it; an adapter is shown to learn it
_ACTION_WEIGHTS = (0.22, 0.12, 0.13, 0.12, 0.1, 0.08, 0.08, 0.08, 0.04, 0.03)

# Columns of the arrays that the renderer reads.
SPRITE = ("x", "y", "half_x", "half_y", "angle", "alpha")
LOOK = [
    "shape",
    "r",
    "g",
    "b",
    "r2",
    "g2",
    "b2",
    "pattern",
    "frequency",
    "shading",
    "outline",
    "softness",
    "texture_x",
    "texture_y",
]
ELLIPSE, BOX, CAPSULE, TRIANGLE = range(4)
FLAT, STRIPES, CHECKER, NOISE = range(4)
CAMERA = ("x", "y", "zoom", "angle", "tilt", "backdrop_x", "backdrop_y", "parallax")
EFFECT = ("scroll_x", "scroll_y", "threshold", "alpha")
EFFECT_LOOK = ("stretch_x", "stretch_y", "r", "g", "b", "mask", "mask_at", "mask_width", "soft")
GRADE = ("noise", "blur", "quality", "contrast", "vignette", "sketch", "floor", "floor_y")
BACKDROP = ("slope", "r", "g", "b", "contrast", "colour", "regions", "seed")


@dataclass(frozen=True)
class Style:
    """A drawing style. Training uses only TRAINING; the others are for evaluation.

    Attributes:
        shapes: that objects may have.
        sketch: whether the picture looks like a pencil drawing.
        steady: share of the clips whose camera has 25 fps.
    """

    shapes: tuple[int, ...]
    sketch: bool
    steady: float = 0.6


PLAIN = Style((ELLIPSE, BOX, CAPSULE), sketch=False)
# What other rates show may be up to 40 ms early or late, which is learned from such clips alone.
TRAINING = replace(PLAIN, steady=0.35)
UNSEEN = Style((TRIANGLE, BOX), sketch=True)


@dataclass
class Scene:
    """A clip as arrays of fixed sizes, so that scenes of one length form a batch.

    Attributes:
        frames: per-frame arrays: sprites [n, K, 6], camera [n, 8], effect [n, 4],
            rings [n, 2, 4], light [n, 3].
        still: per-clip arrays: looks [K, 14], effect_look [9], grade [8], backdrop [8],
            sounding [K].
        hits: per-hit arrays [E, ...] of the sound, and the labels seconds, force, material, size,
            screen [E, 2].
        layers: kind [3] (-1 none), levels [3, A], pitch [3], offset [3].
        reverb: seconds and gain, [2].
        prompt: the text.
        seconds: length of the clip.
    """

    frames: dict[str, np.ndarray]
    still: dict[str, np.ndarray]
    hits: dict[str, np.ndarray]
    layers: dict[str, np.ndarray]
    reverb: np.ndarray
    prompt: str
    seconds: float


@dataclass
class _Builder:
    """A scene under construction; each action adds its sprites, hits and layers."""

    rng: np.random.Generator
    times: np.ndarray  # [n], the time at which each frame was taken
    seconds: float
    style: Style
    sprites: list[np.ndarray] = field(default_factory=list)
    looks: list[np.ndarray] = field(default_factory=list)
    sounding: list[float] = field(default_factory=list)
    hits: list[tuple[motion.Touch, Voice]] = field(default_factory=list)
    rings: list[tuple[float, float, float, float]] = field(default_factory=list)
    layers: list[tuple[str, np.ndarray, float]] = field(default_factory=list)
    flashes: list[tuple[float, float]] = field(default_factory=list)

    def sprite(
        self,
        places: np.ndarray,
        half: tuple[float, float],
        look: np.ndarray,
        angles: np.ndarray | float = 0.0,
        alpha: np.ndarray | float = 1.0,
        sounding: float = 0.0,
        behind: bool = False,
    ) -> None:
        """Add a sprite, unless there are already `MAX_SPRITES`.

        Args:
            places: of its centre, [n, 2] or [2].
            half: half of its width and height.
            look: see `LOOK`.
            angles: in radians, [n] or one for all frames.
            alpha: visibility, [n] or one for all frames.
            sounding: 1 if it takes part in a sound.
            behind: draw it behind all others.
        """
        if len(self.sprites) == MAX_SPRITES:
            return
        at = 0 if behind else len(self.sprites)
        track = np.zeros((len(self.times), 6), np.float32)
        track[:, :2], track[:, 2:4] = places, half
        track[:, 4], track[:, 5] = angles, alpha
        self.sprites.insert(at, track)
        self.looks.insert(at, look)
        self.sounding.insert(at, sounding)

    def touch(self, touches: list[motion.Touch], voice: Voice) -> None:
        """Add contacts that sound with this voice."""
        self.hits += [(touch, voice) for touch in touches]


def draw_scene(
    seed: int | tuple[int, ...],
    seconds: float,
    style: Style = PLAIN,
    *,
    action: str | None = None,
    quiet: bool = False,
    material: int | None = None,
) -> Scene:
    """Draw the scene of a seed, which is the same on every machine.

    Args:
        seed: of all random numbers.
        seconds: length, a multiple of 1 / 25.
        style: of drawing.
        action: only this action with one object; random actions when None.
        quiet: no continuous sound.
        material: index in `TABLE` of all objects; random ones when None. With it, and with the
            action `HELD_OUT`, the prompt is empty.
    """
    rng = np.random.default_rng(seed)
    num_frames = round(seconds * FPS)
    times = draw_frame_times(rng, num_frames, style.steady)
    build = _Builder(rng, times, seconds, style)
    materials = _draw_materials(rng)
    if material is not None:
        materials = [material]
    actions: list[tuple[str, str | None]] = []
    textures: list[str] = []
    if not quiet and action is None and rng.random() < 0.3:
        textures.append(str(rng.choice(("rain", "wind", "engine", "fire", "stream"))))
    effect, effect_look = _draw_texture(build, textures)
    count = (
        0 if textures and rng.random() < 0.35 else int(rng.choice((1, 2, 3), p=(0.6, 0.28, 0.12)))
    )
    if action is not None:
        count = 1
    for index in range(count):
        chosen = action or str(rng.choice(ACTIONS, p=_ACTION_WEIGHTS))
        if quiet and chosen == "whoosh":
            chosen = "tap"
        own = materials[index % len(materials)]
        _ACTORS[chosen](build, own)
        spoken = MATERIALS[own] if own < len(MATERIALS) else None
        if chosen == "drip":
            spoken = "water"
        elif chosen in ("burst", "whoosh"):
            spoken = None
        actions.append((chosen, spoken))
    if rng.random() < 0.3:
        for _ in range(int(rng.integers(1, 3))):
            _distractor(build)
    is_told = material is None and action != HELD_OUT
    prompt = text.describe(rng, actions, textures) if is_told else ""
    return _finish(build, effect, effect_look, prompt)


def draw_frame_times(
    rng: np.random.Generator, num_frames: int, steady: float = PLAIN.steady
) -> np.ndarray:
    """Draw the frame rate of a camera; returns the time of each 25 fps frame, [n].

    A frame at 25 fps is the camera frame nearest to its target time, as by
    `foley.media.clock.FramePicker` with an exact clock.

    Args:
        rng: of the scene.
        num_frames: n.
        steady: share of cameras of 25 fps.
    """
    targets = np.arange(num_frames) / FPS
    rate = 25.0 if rng.random() < steady else float(rng.choice((12, 15, 24, 30, 50, 60)))
    times: np.ndarray = np.ceil(targets * rate - 0.5 - 1e-6) / rate
    return times


def _draw_materials(rng: np.random.Generator) -> list[int]:
    """One material for the whole scene, or one for each object. The action drip uses water."""
    first = int(rng.integers(len(MATERIALS)))
    if rng.random() < 0.75:
        return [first]
    return [first, *(int(m) for m in rng.integers(0, len(MATERIALS), 2))]


_COLOURS = {  # a frequent colour of each material; half of all objects have another one
    0: (0.55, 0.36, 0.2),
    1: (0.6, 0.62, 0.66),
    2: (0.65, 0.82, 0.88),
    3: (0.85, 0.25, 0.2),
    4: (0.5, 0.48, 0.45),
    5: (0.82, 0.65, 0.5),
    6: (0.25, 0.45, 0.75),
}


def _look(build: _Builder, material: int | None = None, shape: int | None = None) -> np.ndarray:
    rng = build.rng
    if shape is None or shape not in build.style.shapes:
        shape = int(rng.choice(build.style.shapes))
    colours = rng.uniform(0, 1, (2, 3))
    pattern = int(rng.integers(4))
    if material in _COLOURS and rng.random() < 0.5:
        colours[0] = np.clip(_COLOURS[material] + rng.normal(0, 0.08, 3), 0, 1)
        colours[1] = colours[0] * rng.uniform(0.5, 0.9)
        pattern = {0: STRIPES, 4: NOISE, 1: FLAT, 2: FLAT, 3: FLAT}.get(material, pattern)
    return np.array(
        [
            shape,
            *colours.flatten(),
            pattern,
            rng.uniform(3, 14),
            rng.uniform(0, 0.8),
            float(rng.random() < 0.3) * rng.uniform(0.3, 1),
            rng.uniform(0.01, 0.04),
            *rng.uniform(0, 1, 2),
        ],
        np.float32,
    )


def _size(build: _Builder) -> tuple[float, tuple[float, float]]:
    """A size of 0 to 1, and the half width and height of a sprite of that size."""
    size = float(build.rng.uniform(0, 1))
    half = 0.06 + 0.16 * size
    return size, (half, half * float(build.rng.uniform(0.8, 1.25)))


def _bounce(build: _Builder, material: int) -> None:
    size, half = _size(build)
    floor_y = build.rng.uniform(0.55, 0.9)
    path = motion.bounce(build.rng, build.times, build.seconds, floor_y - half[1])
    path.touches = [motion.Touch(t.seconds, t.force, t.x, floor_y) for t in path.touches]
    _floor(build, floor_y)
    spin = build.rng.normal(0, 0.8) * build.times if build.rng.random() < 0.3 else 0.0
    build.sprite(path.places, half, _look(build, material), angles=spin, sounding=1)
    build.touch(path.touches, draw_voice(build.rng, material, size))


def _roam(build: _Builder, material: int) -> None:
    size, half = _size(build)
    half = (half[0], half[0])
    walled = build.rng.random() < 0.8 and len(build.sprites) < 4
    # Without walls it turns at the edge of the picture, because nothing else would show a hit.
    reach = build.rng.uniform(0.5, 0.88) if walled else 1.0
    path = motion.roam(build.rng, build.times, build.seconds, reach - half[0])
    wall = _look(build, None, BOX)
    thick = float(build.rng.uniform(0.01, 0.06))
    if walled:
        for sign in (-1, 1):
            at = sign * (reach + thick)
            build.sprite(np.array([at, 0.0]), (thick, reach + 2 * thick), wall, behind=True)
            build.sprite(np.array([0.0, at]), (reach + 2 * thick, thick), wall, behind=True)
    build.sprite(path.places, half, _look(build, material), sounding=1)
    build.touch(path.touches, draw_voice(build.rng, material, size))


def _strike(build: _Builder, material: int) -> None:
    """A stick turns about its end and hits an object."""
    rng = build.rng
    size, half = _size(build)
    place = np.array([rng.uniform(-0.5, 0.5), rng.uniform(0.1, 0.7)])
    side = rng.choice((-1.0, 1.0))
    length = rng.uniform(0.25, 0.45)
    throw = rng.uniform(0.5, 1.3)
    distance, knocks = motion.knock(rng, build.times, build.seconds, throw, 1.3 * length)
    thick = rng.uniform(0.02, 0.06)
    contact = place - np.array([0.0, half[1]])
    pivot = contact + np.array([side * 2 * length, -thick])
    angles = side * distance  # 0: lying on the thing
    centre = pivot + np.stack((-side * np.cos(angles), -side * np.sin(angles)), 1) * length
    build.sprite(place, half, _look(build, material), sounding=1)
    build.sprite(centre, (length, thick), _look(build, None, CAPSULE), angles=angles, sounding=1)
    touches = [motion.Touch(t, f, *contact) for t, f in knocks]
    build.touch(touches, draw_voice(rng, material, size))


def _tap(build: _Builder, material: int) -> None:
    """A finger comes down on a surface."""
    rng = build.rng
    size, _ = _size(build)
    surface = np.array([rng.uniform(-0.5, 0.5), rng.uniform(0.2, 0.7)])
    plate = (0.12 + 0.4 * size, float(rng.uniform(0.04, 0.12)))
    distance, knocks = motion.knock(rng, build.times, build.seconds, rng.uniform(0.3, 0.7))
    slant = rng.uniform(-0.5, 0.5)
    heading = np.array([np.sin(slant), -np.cos(slant)])
    contact = surface - np.array([0.0, plate[1]])
    finger = (float(rng.uniform(0.03, 0.1)), float(rng.uniform(0.08, 0.25)))
    centre = contact + heading * (finger[1] + distance)[:, None]
    build.sprite(surface, plate, _look(build, material), sounding=1)
    build.sprite(centre, finger, _look(build), angles=slant, sounding=1)
    touches = [motion.Touch(t, f, *contact) for t, f in knocks]
    build.touch(touches, draw_voice(rng, material, size))


def _clap(build: _Builder, material: int) -> None:
    """Two equal objects meet in the middle."""
    rng = build.rng
    size, half = _size(build)
    middle = rng.uniform(-0.4, 0.4, 2)
    slant = rng.uniform(0, np.pi)
    heading = np.array([np.cos(slant), np.sin(slant)])
    distance, knocks = motion.knock(rng, build.times, build.seconds, rng.uniform(0.2, 0.5), 1.6)
    look = _look(build, material)
    for sign in (-1, 1):
        centre = middle + sign * heading * (half[0] + distance)[:, None]
        build.sprite(centre, half, look, angles=slant, sounding=1)
    touches = [motion.Touch(t, f, *middle) for t, f in knocks]
    build.touch(touches, draw_voice(rng, material, size))


def _drip(build: _Builder, material: int) -> None:
    """Drops fall into water, on which rings spread."""
    rng = build.rng
    size = float(rng.uniform(0, 1))
    x, spout, surface = rng.uniform(-0.6, 0.6), rng.uniform(-0.9, -0.3), rng.uniform(0.3, 0.8)
    heights, shown, knocks = motion.drip(rng, build.times, build.seconds, spout, surface)
    pool = _look(build, 6, BOX)
    build.sprite(np.array([0.0, surface + 0.6]), (1.6, 0.6), pool, behind=True)
    drop = 0.025 + 0.04 * size
    places = np.stack((np.full(len(heights), x), heights - drop), 1)
    build.sprite(places, (drop, 1.3 * drop), _look(build, 6, ELLIPSE), alpha=shown, sounding=1)
    touches = [motion.Touch(t, f, x, surface) for t, f in knocks]
    build.rings += [(t, x, surface, 0.25) for t, _ in knocks]
    build.touch(touches, draw_voice(rng, MATERIALS.index("water"), size))


def _pendulum(build: _Builder, material: int) -> None:
    """A bob on a rod swings into a block."""
    rng = build.rng
    size, half = _size(build)
    half = (half[0], half[0])
    side = rng.choice((-1.0, 1.0))
    pivot = np.array([rng.uniform(-0.3, 0.3), rng.uniform(-0.95, -0.5)])
    length = rng.uniform(0.7, 1.1)
    distance, knocks = motion.knock(rng, build.times, build.seconds, rng.uniform(0.4, 1.0))
    swing = side * distance
    bob = pivot + length * np.stack((np.sin(swing), np.cos(swing)), 1)
    rod = pivot + 0.5 * length * np.stack((np.sin(swing), np.cos(swing)), 1)
    block = (float(rng.uniform(0.08, 0.2)), float(rng.uniform(0.1, 0.25)))
    at = pivot + np.array([-side * (half[0] + block[0]), length])
    build.sprite(rod, (0.012, 0.5 * length), _look(build, None, BOX), angles=-swing)
    build.sprite(bob, half, _look(build, material, ELLIPSE), sounding=1)
    build.sprite(at, block, _look(build, material, BOX), sounding=1)
    contact = pivot + np.array([-side * half[0], length])
    touches = [motion.Touch(t, f, *contact) for t, f in knocks]
    build.touch(touches, draw_voice(rng, material, size))


def _slide(build: _Builder, material: int) -> None:
    size, half = _size(build)
    floor_y = build.rng.uniform(0.3, 0.85)
    path = motion.slide(build.rng, build.times, build.seconds, floor_y - half[1])
    _floor(build, floor_y)
    wall = _look(build, None, BOX)
    for sign in (-1, 1):
        at = np.array([sign * (0.75 + half[0] + 0.05), floor_y - 0.3])
        build.sprite(at, (0.05, 0.3), wall, behind=True)
    build.sprite(path.places, half, _look(build, material, BOX), sounding=1)
    build.touch(path.touches, draw_voice(build.rng, material, size))
    assert path.rubbing is not None
    build.layers.append(("friction", path.rubbing, 1 - size))


def _burst(build: _Builder, material: int) -> None:
    """Flashes of light, each with a bang."""
    rng = build.rng
    at = rng.uniform(0.2, 0.9)
    touches, size = [], float(rng.uniform(0, 1))
    while at < build.seconds:
        x, y = rng.uniform(-0.6, 0.6, 2)
        force = float(rng.uniform(0.2, 1.0))
        touches.append(motion.Touch(at, force, x, y))
        build.rings.append((at, x, y, 0.3 + 0.6 * force))
        build.flashes.append((at, 0.3 + 0.7 * force))
        at += rng.uniform(0.35, 1.5)
    build.touch(touches, draw_voice(rng, BURST, size))


def _whoosh(build: _Builder, material: int) -> None:
    """A stick swings through the air, with a sound that follows its speed."""
    rng = build.rng
    distance, _ = motion.knock(rng, build.times, build.seconds, rng.uniform(1.2, 2.6))
    pivot, length = rng.uniform(-0.3, 0.3, 2), rng.uniform(0.3, 0.5)
    angles = distance + rng.uniform(0, 2 * np.pi)
    centre = pivot + length * np.stack((np.cos(angles), np.sin(angles)), 1)
    build.sprite(centre, (length, 0.03), _look(build, None, CAPSULE), angles=angles, sounding=1)
    speed = np.abs(np.gradient(distance, 1 / FPS))
    build.layers.append(("whoosh", np.clip(speed / 12.0, 0, 1) ** 1.5, float(rng.uniform(0, 1))))


def _rattle(build: _Builder, material: int) -> None:
    """A closed box with something in it is shaken."""
    rng = build.rng
    size, half = _size(build)
    shift, knocks = motion.shake(rng, build.times, build.seconds)
    middle, slant = rng.uniform(-0.35, 0.35, 2), rng.uniform(0, np.pi)
    heading = np.array([np.cos(slant), np.sin(slant)])
    places = middle + rng.uniform(0.25, 0.45) * shift[:, None] * heading
    build.sprite(places, half, _look(build, material), angles=slant + 0.3 * shift, sounding=1)
    touches = [motion.Touch(t, f, *middle) for t, f in knocks]
    build.touch(touches, draw_voice(rng, material, size))


_ACTORS: dict[str, Callable[[_Builder, int], None]] = {
    "bounce": _bounce,
    "roam": _roam,
    "strike": _strike,
    "tap": _tap,
    "clap": _clap,
    "drip": _drip,
    "pendulum": _pendulum,
    "slide": _slide,
    "burst": _burst,
    "whoosh": _whoosh,
    HELD_OUT: _rattle,
}


def _floor(build: _Builder, floor_y: float) -> None:
    depth = float(build.rng.uniform(0.03, 0.6))
    build.sprite(
        np.array([0.0, floor_y + depth]), (1.8, depth), _look(build, None, BOX), behind=True
    )


def _distractor(build: _Builder) -> None:
    """An object that moves and makes no sound."""
    _, half = _size(build)
    places = motion.wander(build.rng, build.times)
    turn = build.rng.normal(0, 1.0) * build.times
    build.sprite(places, half, _look(build), angles=turn)


def _draw_texture(build: _Builder, textures: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The effect [n, 4] and its look [9], which show the level of a continuous sound."""
    rng, times = build.rng, build.times
    effect = np.zeros((len(times), 4), np.float32)
    look = np.ones(9, np.float32)
    if not textures:
        return effect, look
    kind = textures[0]
    level = motion.envelope(rng, times)
    moved = np.cumsum(np.concatenate(([0.0], np.diff(times))) * (0.3 + level))
    pitch = float(rng.uniform(0, 1))
    build.layers.append((kind, level, pitch))
    effect[:, 2] = 2.2 - 2.2 * level  # a higher level shows more of the noise pattern
    effect[:, 3] = 0.85
    mask = (0.0, 0.0, 1.0)
    if kind == "rain":
        look[:2], colour = (1.2, 0.06), rng.uniform(0.6, 1, 3)
        effect[:, 1] = -rng.uniform(1.2, 2.0) * times * 0.06 * 8
        effect[:, 3] = 0.5
    elif kind == "wind":
        look[:2], colour = (0.12, 0.9), rng.uniform(0.4, 1, 3)
        effect[:, 0] = -rng.choice((-1, 1)) * 1.2 * moved
        effect[:, 3] = 0.4
    elif kind == "fire":
        look[:2], colour = (0.25, 0.15), np.array([1.0, rng.uniform(0.4, 0.75), 0.1])
        effect[:, 1] = rng.uniform(0.4, 0.8) * times
        effect[:, 2] = 0.9 - 1.6 * level
        mask = (2.0, float(rng.uniform(-0.5, 0.5)), float(rng.uniform(0.25, 0.6)))
    elif kind == "stream":
        look[:2], colour = (0.5, 0.1), np.array([0.6, 0.8, 0.95]) * rng.uniform(0.7, 1)
        effect[:, 1] = -rng.uniform(0.3, 0.8) * moved
        effect[:, 2] = 0.8 - 1.6 * level
        mask = (1.0, float(rng.uniform(-0.6, 0.6)), float(rng.uniform(0.15, 0.5)))
    else:  # engine: a wheel that turns and shakes
        colour = rng.uniform(0, 1, 3)
        effect[:, 3] = 0.0
        _wheel(build, level, moved)
    look[2:5], look[5:8], look[8] = colour, mask, rng.uniform(0.1, 0.5)
    return effect, look


def _wheel(build: _Builder, level: np.ndarray, moved: np.ndarray) -> None:
    rng = build.rng
    place, radius = rng.uniform(-0.5, 0.5, 2), rng.uniform(0.15, 0.4)
    shake = rng.normal(0, 1, (len(moved), 2)) * 0.03 * level[:, None]
    build.sprite(place + shake, (radius, radius), _look(build, None, ELLIPSE))
    turn = rng.uniform(4, 9) * moved
    for spoke in range(2):
        build.sprite(
            place + shake,
            (radius, 0.15 * radius),
            _look(build, None, BOX),
            angles=turn + spoke * np.pi / 2,
        )


def _camera(build: _Builder) -> np.ndarray:
    """The camera [n, 8]: still, hand-held, panning or zooming; sometimes with silent cuts."""
    rng, times = build.rng, build.times
    camera = np.zeros((len(times), 8), np.float32)
    camera[:, 2] = rng.uniform(0.85, 1.1)
    camera[:, 4] = rng.normal(0, 0.05)
    camera[:, 7] = rng.uniform(0.3, 1.0)
    kind = rng.random()
    if kind < 0.5:
        rates, phases = rng.uniform(0.1, 1.8, (3, 4)), rng.uniform(0, 6.3, (3, 4))
        waves = np.sin(2 * np.pi * rates * times[:, None, None] + phases).sum(1)  # [n, 4]
        sizes = np.array([0.03, 0.03, 0.02, 0.015]) * rng.uniform(0.1, 1.0)
        camera[:, :4] += waves * sizes
    if kind < 0.2:
        drift = times / max(build.seconds, 1.0) - 0.5
        camera[:, :2] += rng.normal(0, 0.12, 2) * drift[:, None]
        camera[:, 2] *= np.exp(rng.normal(0, 0.12) * drift)
    camera[:, 5:7] = rng.uniform(0, 1, 2)
    if rng.random() < 0.12:  # the backdrop changes at once
        for cut in rng.uniform(0.3, build.seconds, int(rng.integers(1, 3))):
            camera[times >= cut, 5:7] = rng.uniform(0, 1, 2)
            camera[times >= cut, 2] *= rng.uniform(0.9, 1.1)
    return camera


def _light(build: _Builder) -> np.ndarray:
    """The gain, warmth and white flash of each frame, [n, 3]."""
    rng, times = build.rng, build.times
    light = np.zeros((len(times), 3), np.float32)
    light[:, 0] = rng.uniform(0.7, 1.2)
    light[:, 1] = rng.normal(0, 0.06)
    chance = rng.random()
    if chance < 0.12:  # flickers without a sound
        light[:, 0] *= 1 + rng.uniform(0.02, 0.12) * np.sin(2 * np.pi * rng.uniform(0.5, 6) * times)
    elif chance < 0.18:  # the light is switched without a sound
        light[times >= rng.uniform(0.3, build.seconds), 0] *= rng.uniform(0.5, 1.5)
    for at, strength in build.flashes:
        since = times - at
        light[:, 2] += np.where(since >= 0, strength * np.exp(-since.clip(0) / 0.08), 0.0)
    return light


def _rings(build: _Builder) -> np.ndarray:
    """The two latest rings at each frame, [n, 2, 4]: place, radius, visibility."""
    rings = np.zeros((len(build.times), 2, 4), np.float32)
    for index, (at, x, y, reach) in enumerate(build.rings):
        since = build.times - at
        alive = (since >= 0) & (since < 0.5)
        rings[alive, index % 2, 0], rings[alive, index % 2, 1] = x, y
        rings[alive, index % 2, 2] = 0.02 + reach * np.sqrt(since[alive] / 0.5)
        rings[alive, index % 2, 3] = 1 - since[alive] / 0.5
    return rings


def _finish(build: _Builder, effect: np.ndarray, effect_look: np.ndarray, prompt: str) -> Scene:
    rng, num_frames = build.rng, len(build.times)
    num_latents = 2 * num_frames
    sprites = np.zeros((num_frames, MAX_SPRITES, 6), np.float32)
    sprites[:, :, 2:4] = 1e-3
    looks = np.zeros((MAX_SPRITES, len(LOOK)), np.float32)
    looks[:, 11] = 0.02
    sounding = np.zeros(MAX_SPRITES, np.float32)
    for index, track in enumerate(build.sprites):
        sprites[:, index], looks[index] = track, build.looks[index]
        sounding[index] = build.sounding[index]
    camera = _camera(build)
    grade = np.zeros(len(GRADE), np.float32)
    grade[:4] = (
        abs(rng.normal(0, 0.03)),
        rng.choice((0.0, 0.0, rng.uniform(0, 1))),
        rng.choice((0.0, rng.uniform(0.02, 0.15))),
        rng.uniform(0.7, 1.2),
    )
    grade[4] = rng.uniform(0, 0.4)
    grade[5] = float(build.style.sketch)
    heard = [look[1:4] for look, sounds in zip(build.looks, build.sounding, strict=True) if sounds]
    for _ in range(6):  # objects that sound stand out against the backdrop, most of the time
        base = np.clip(rng.uniform(0.15, 0.85) + rng.normal(0, 0.1, 3), 0, 1)
        if all(np.abs(base - colour).max() > 0.25 for colour in heard):
            break
    backdrop = np.array(
        [
            rng.uniform(0.9, 2.2),
            *base,
            rng.choice((rng.uniform(0.0, 0.06), rng.uniform(0.05, 0.3)), p=(0.3, 0.7)),
            rng.uniform(0, 0.7) ** 2,
            float(rng.random() < 0.4) * rng.uniform(0.3, 1),
            rng.integers(2**20),
        ],
        np.float32,
    )
    reverb = np.array([rng.uniform(0.08, 0.3), float(rng.random() < 0.4) * rng.uniform(0.01, 0.05)])
    return Scene(
        frames={
            "sprites": sprites,
            "camera": camera,
            "effect": effect,
            "rings": _rings(build),
            "light": _light(build),
        },
        still={
            "looks": looks,
            "effect_look": effect_look,
            "grade": grade,
            "backdrop": backdrop,
            "sounding": sounding,
        },
        hits=_hit_arrays(build, camera),
        layers=_layer_arrays(build, num_latents),
        reverb=reverb.astype(np.float32),
        prompt=prompt,
        seconds=build.seconds,
    )


def to_screen(camera: np.ndarray, x: float, y: float) -> tuple[float, float]:
    """The place on the screen of a place (x, y) of the world.

    Args:
        camera: of one frame, [8].
        x: in the world.
        y: in the world.
    """
    dx, dy = x - camera[0], y - camera[1]
    cos, sin = math.cos(camera[3]), math.sin(camera[3])
    return camera[2] * (cos * dx + sin * dy), camera[2] * (-sin * dx + cos * dy)


def _hit_arrays(build: _Builder, camera: np.ndarray) -> dict[str, np.ndarray]:
    kept = sorted(build.hits, key=lambda hit: hit[0].seconds)
    # A hit makes no sound if the clip ends before it can be seen.
    last = build.seconds - SEEN_AFTER / FPS
    kept = [hit for hit in kept if hit[0].seconds < last][:MAX_HITS]
    count = len(kept)
    arrays: dict[str, np.ndarray] = {
        "hz": np.zeros((count, NUM_MODES)),
        "rates": np.ones((count, NUM_MODES)),
        "gains": np.zeros((count, NUM_MODES)),
        "screen": np.zeros((count, 2)),
    }
    scalars = "seconds force material size level noise noise_hz noise_rate chirp attack offset"
    arrays |= {name: np.zeros(count) for name in scalars.split()}
    for i, (touch, voice) in enumerate(kept):
        frame = camera[min(int(touch.seconds * FPS), len(camera) - 1)]
        values = {
            "seconds": touch.seconds,
            "force": touch.force,
            "screen": to_screen(frame, touch.x, touch.y),
            **describe_hit(voice, touch.force, build.rng),
        }
        for name, value in values.items():
            arrays[name][i] = value
    return {name: value.astype(np.float32) for name, value in arrays.items()}


def describe_hit(
    voice: Voice, force: float, rng: np.random.Generator
) -> dict[str, float | np.ndarray]:
    """The columns of `Scene.hits` that say how a hit sounds.

    Args:
        voice: of the object.
        force: 0 to 1.
        rng: of the details.
    """
    spec = TABLE[voice.material]
    return {
        "hz": voice.hz,
        "rates": voice.decay_rates,
        "gains": draw_hit_gains(voice, force, rng),
        "material": voice.material,
        "size": voice.size,
        "level": hit_level(force),
        "noise": voice.noise * (0.6 + 0.8 * force),
        "noise_hz": spec.noise_hz * (0.7 + 0.6 * force),
        "noise_rate": 1 / spec.noise_seconds,
        "chirp": spec.chirp,
        "attack": spec.attack_seconds,
        "offset": int(rng.integers(2**20)),
    }


def _layer_arrays(build: _Builder, num_latents: int) -> dict[str, np.ndarray]:
    kinds = np.full(MAX_LAYERS, -1)
    levels = np.zeros((MAX_LAYERS, num_latents), np.float32)
    pitch = np.zeros(MAX_LAYERS, np.float32)
    offset = build.rng.integers(2**21, size=MAX_LAYERS)
    grid = (np.arange(num_latents) + 0.5) / LATENT_RATE
    for i, (kind, level, value) in enumerate(build.layers[:MAX_LAYERS]):
        kinds[i] = LAYERS.index(kind)
        levels[i] = np.interp(grid, build.times, level)
        pitch[i] = value
    return {"kind": kinds, "level": levels, "pitch": pitch, "offset": offset}

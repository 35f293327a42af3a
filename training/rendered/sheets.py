"""Scenes of sheets: a cloth that flaps, is shaken or falls; paper that is crumpled; cards."""

# Lengths are metres, times seconds. `length` is the clip's length in seconds. R rows of C points.

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import mujoco
import numpy as np

from training.rendered.driven import draw_skin_colour
from training.rendered.looks import TEXTURES, draw_colours, draw_texture
from training.rendered.loose import IMMOVABLE
from training.rendered.world import Control, Hum, Part, Release, Vector, World, write_numbers

AIR_DENSITY = 1.2  # kg / m3
COARSE_STEPS = 8  # of the simulation, after which the air pushes anew and paper is placed anew
POINTS = 9  # a side of a cloth; with more, a clip takes too long
DRAPED_POINTS = 8  # of one that touches things
PAPER_POINTS = 11


@dataclass
class Sheet:
    """Points that are joined by a surface.

    Attributes:
        names: of the points' bodies, R * C of them, row by row.
        rest: where they begin, [R, C, 3].
    """

    names: list[str]
    rest: np.ndarray
    _first: tuple[int, int] | None = None  # of its positions and of its speeds in a model

    def _find(self, model: mujoco.MjModel) -> tuple[int, int]:
        if self._first is None:
            joint = model.joint(self.names[0])
            self._first = int(joint.qposadr[0]), int(joint.dofadr[0])
        return self._first

    def moved(self, model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
        """Return how far the points are from where they began, [R, C, 3], a view."""
        first = self._find(model)[0]
        return data.qpos[first : first + self.rest.size].reshape(self.rest.shape)

    def rates(self, model: mujoco.MjModel, values: np.ndarray) -> np.ndarray:
        """Return the points' part of speeds or forces of a model, [R, C, 3], a view."""
        first = self._find(model)[1]
        return values[first : first + self.rest.size].reshape(self.rest.shape)

    def watched(self) -> tuple[str, ...]:
        """Return the names of the middle and of the corners."""
        rows, columns = self.rest.shape[:2]
        grid = np.array(self.names).reshape(rows, columns)
        corners = grid[:: rows - 1, :: columns - 1].ravel().tolist()
        return (str(grid[rows // 2, columns // 2]), *corners)


def cloth(world: World, length: float) -> None:
    """A cloth flaps in the wind, is shaken, or falls over something."""
    way = world.pick("flag", "shake", "fall")
    {"flag": _fly, "shake": _shake, "fall": _drape}[way](world, length)
    world.actions.append(("cloth", None))


def paper(world: World, length: float) -> None:
    """Hands crumple a sheet of paper: one fold after another."""
    half = world.uniform(0.1, 0.16)
    rest = _grid(PAPER_POINTS, (half, 0, 0), (0, 0, half * world.uniform(1, 1.4)))
    middle = np.array((0, 0, world.uniform(0.3, 0.8)))
    sheet = _add_sheet(world, rest + middle, _paper_look(world), 0.001, 1.0, 0.0)
    folds, begins, places = [], world.uniform(0.1, 0.6), rest
    while begins < length:
        fold = _Fold(world, begins, places, 0.025 * half)
        folds.append(fold)
        places = fold.places(math.inf)
        begins += fold.taken + world.uniform(0.05, 0.5)

    def find(seconds: float) -> np.ndarray:
        now = [fold for fold in folds if fold.begins <= seconds]
        return now[-1].places(seconds) if now else rest

    def crumple(seconds: float, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        sheet.moved(model, data)[:] = find(seconds) - rest
        sheet.rates(model, data.qvel)[:] = 0

    world.controls.append(_rarely(crumple))
    _carry(world, _add_hands(world), lambda now: find(now)[PAPER_POINTS // 2, [0, -1]] + middle)
    fastest = world.uniform(0.5, 1.2)
    world.hums.append(Hum("friction", sheet.watched(), idle=0.0, full_speed=fastest))
    world.actions.append(("paper", None))
    world.elevation = (-35, 0)


class _Fold:
    """A fold of a crumpled sheet along a random line near its middle.

    Args:
        world: source of its numbers.
        begins: when.
        before: places of the points before it, [R, C, 3].
        rough: how far it moves each point about, metres.
    """

    def __init__(self, world: World, begins: float, before: np.ndarray, rough: float) -> None:
        rng = world.rng
        self.begins, self.taken = begins, world.uniform(0.12, 0.4)
        self._before, self._angle = before, world.uniform(1.2, 2.9)
        self._rough = rng.normal(0, rough, before.shape)
        middle = before.mean((0, 1))
        spread, axes = np.linalg.svd((before - middle).reshape(-1, 3), full_matrices=False)[1:]
        # Across the longest side, so that the sheet gets smaller to all sides.
        line = axes[1] + rng.normal(0, 0.6) * axes[0]
        self._line = line / np.linalg.norm(line)
        deviations = spread / math.sqrt(before.shape[0] * before.shape[1])
        self._through = middle + 0.3 * (rng.normal(size=3) * deviations) @ axes
        self._beyond = (before - self._through) @ np.cross(self._line, axes[2]) > 0

    def places(self, seconds: float) -> np.ndarray:
        """Return the places of the points, [R, C, 3]."""
        share = min((seconds - self.begins) / self.taken, 1)
        angle = self._angle * share * share * (3 - 2 * share)
        turned = self._through + _turn(self._before - self._through, self._line, angle)
        places: np.ndarray = np.where(self._beyond[..., None], turned, self._before)
        return places + share * self._rough


def cards(world: World, length: float) -> None:
    """Cards or sheets of paper flutter down and slide over the floor."""
    world.air = AIR_DENSITY
    half, seconds = (world.uniform(0.04, 0.12), world.uniform(0.05, 0.15)), world.uniform(0, 0.3)
    look = _paper_look(world)
    thick, density = 0.0012, world.uniform(60, 160)
    # Paper bends, and air flows from below it, so that it does not rock like a board.
    damping = 8 * half[0] * half[1] * thick * density * half[0] * half[1] / 3 * 25
    for _ in range(int(world.rng.integers(3, 10))):
        name = world.name("card")
        at = (world.uniform(-0.25, 0.25), world.uniform(-0.25, 0.25), world.uniform(0.4, 1.1))
        turn = (world.uniform(-50, 50), world.uniform(-50, 50), world.uniform(0, 360))
        geom = (
            f'<geom type="box" size="{write_numbers((*half, thick))}" material="{look}" '
            f'solref=".012 1" priority="2" friction=".35 .003 .0008" density="{density:.0f}" '
            'fluidshape="ellipsoid"/>'
        )
        world.add_body(
            f'<body name="{name}" pos="{write_numbers(at)}" euler="{write_numbers(turn)}">'
            f'<joint name="{name}" type="free" damping="{damping:.3g}"/>{geom}</body>'
        )
        world.parts[name] = Part("plastic", 1.0, world.uniform(0.5, 1), moves=True)
        velocity = (*world.rng.normal(0, 0.4, 2), world.uniform(-0.5, 0.2))
        world.releases[name] = Release(seconds, velocity, world.rng.normal(0, 2, 3))
        seconds += world.uniform(0.15, max(0.4, (length - 1) / 5))
    world.actions.append(("cards", None))


def _fly(world: World, length: float) -> None:
    """A flag flaps in gusts."""
    long, tall, high = world.uniform(0.3, 0.5), world.uniform(0.2, 0.35), world.uniform(0.9, 1.6)
    rest = _grid(POINTS, (long, 0, 0), (0, 0, -tall))
    rest += (long, 0, high)
    sheet = _add_cloth(world, rest)
    pole = world.decoration(
        "capsule", (0.015,), world.look(None), (0, 0, 0, 0, 0, high + tall + 0.05)
    )
    world.add_scenery(pole)
    times, gusts = [0.0], [world.uniform(0, 1)]
    while times[-1] < length:
        times += [times[-1] + world.uniform(0.2, 0.8), times[-1] + world.uniform(1.0, 1.6)]
        gusts += [float(world.rng.choice((0.0, world.uniform(0.5, 1), 1.0)))] * 2
    fastest, rate = world.uniform(5, 10), world.uniform(2.5, 5)
    wave, phase = 2 * math.pi / (long * world.uniform(1.2, 2)), world.uniform(0, 6.3)
    along = rest[..., 0]

    def wind(seconds: float) -> np.ndarray:
        speed = fastest * np.interp(seconds, times, gusts)
        across = 0.35 * speed * np.sin(2 * math.pi * rate * seconds - wave * along + phase)
        lift = 0.1 * speed * np.ones_like(along)
        return np.stack((speed * np.ones_like(along), across, lift), -1)

    _blow(world, sheet, wind)
    _hold(world, sheet, (slice(None), 0), _stay)
    _sound(world, sheet, world.uniform(1.8, 3))
    world.azimuth, world.elevation = (45, 135), (-20, 5)


def _shake(world: World, length: float) -> None:
    """Two hands shake a cloth that they hold by its upper corners."""
    wide, tall = world.uniform(0.25, 0.4), world.uniform(0.25, 0.4)
    high = 2 * tall + world.uniform(0.1, 0.4)
    rest = _grid(POINTS, (wide, 0, 0), (0, 0, -tall))
    rest += (0, 0, high - tall)
    sheet = _add_cloth(world, rest)
    beats, at = [], world.uniform(0.1, 0.6)
    while at < length:
        taken = world.uniform(0.3, 0.55)
        beats.append((at, taken, world.uniform(0.1, 0.25)))
        at += taken + world.uniform(0.0, 0.8)
    forward = world.uniform(0.2, 1)

    def path(now: float) -> np.ndarray:
        for begins, taken, throw in beats:
            share = (now - begins) / taken
            if 0 < share < 1:  # up, down, and back
                lift = throw * math.sin(2 * math.pi * share) * math.sin(math.pi * share)
                return np.array((0, -forward * throw * math.sin(math.pi * share) ** 2, lift))
        return np.zeros(3)

    _blow(world, sheet, None)
    _hold(world, sheet, (0, [0, -1]), path)
    hands = _add_hands(world)

    _carry(world, hands, lambda now: rest[0, [0, -1]] + path(now))
    _sound(world, sheet, world.uniform(1.8, 3))
    world.azimuth, world.elevation = (50, 130), (-25, 0)


def _drape(world: World, length: float) -> None:
    """A cloth falls over a box, a ball or a post."""
    half, size = world.uniform(0.3, 0.45), world.uniform(0.1, 0.18)
    kind = world.pick("box", "sphere", "cylinder")
    material, high = world.pick_material(), 2 * size
    sizes = {"box": (size, size, size), "sphere": (size,), "cylinder": (size * 0.8, size)}[kind]
    geom = (
        f'<geom type="{kind}" size="{write_numbers(sizes)}" rgba="0 0 0 0" group="3" '
        f"{world.physics(material, 0.05)}/>"
    )
    # A little smaller than it is to the touch, or it would show between the points of the cloth.
    seen = np.array(sizes) - 0.012
    geom += world.decoration(kind, seen, world.look(material), (0, 0, -0.012))
    part = Part(material, 0.0, 0.5, moves=False, effective_mass=IMMOVABLE)
    world.add_fixed(geom, part, (0, 0, size))
    rest = _grid(DRAPED_POINTS, (half, 0, 0), (0, half, 0))
    turn, tilt = world.uniform(0, 2 * math.pi), world.uniform(-0.5, 0.5)
    rest = _turn(_turn(rest, np.array((1, 0, 0)), tilt), np.array((0, 0, 1)), turn)
    rest += (world.uniform(-0.1, 0.1), world.uniform(-0.1, 0.1), high + world.uniform(0.4, 0.8))
    sheet = _add_cloth(world, rest)
    begins = world.uniform(0.1, max(0.2, length / 2 - 0.3))
    _blow(world, sheet, None)
    _hold(world, sheet, (slice(None), slice(None)), _stay, begins)
    _carry(world, _add_hands(world), lambda now: rest[DRAPED_POINTS // 2, [0, -1]])
    _sound(world, sheet, world.uniform(1.5, 2.5))


def _sound(world: World, sheet: Sheet, fastest: float) -> None:
    """Let a cloth sound while it moves, and in no other way."""
    world.rubs = False
    world.hums.append(Hum("whoosh", sheet.watched(), idle=0.0, full_speed=fastest, power=1.5))


def _grid(count: int, across: Vector, down: Vector) -> np.ndarray:
    """Return points of a flat square about the origin, [R, C, 3]; its half sides are vectors."""
    steps = np.linspace(-1, 1, count)
    points: np.ndarray = steps[None, :, None] * np.array(across, float)
    return points + steps[:, None, None] * np.array(down, float)


def _turn(points: np.ndarray, axis: np.ndarray, angle: float) -> np.ndarray:
    """Return points [.., 3] turned about an axis through the origin; the angle is in radians."""
    along = (points @ axis)[..., None] * axis
    cos, sin = math.cos(angle), math.sin(angle)
    turned: np.ndarray = along + (points - along) * cos + np.cross(axis, points) * sin
    return turned


def _add_cloth(world: World, rest: np.ndarray) -> Sheet:
    """Add a cloth of a weight between silk and denim."""
    texture = world.pick("fabric", "fabric", *TEXTURES)
    first, second, _ = draw_colours(world.rng, None, 0)
    look = world.image_look(draw_texture(world.rng, texture, first, second), "1")
    return _add_sheet(world, rest, look, 0.003, 1e5, world.uniform(0.1, 0.4))


def _paper_look(world: World) -> str:
    """Add the look of paper: mostly white, sometimes written on or coloured."""
    rng, white = world.rng, world.uniform(0.8, 1)
    first = np.array((white, white, white * world.uniform(0.85, 1)))
    if rng.random() < 0.3:
        first = rng.uniform(0.2, 1, 3)
    texture = world.pick("flat", "flat", "stripes", "noise", "marble", "dots")
    shade = first * (world.uniform(0.9, 1) if rng.random() < 0.6 else world.uniform(0.2, 0.8))
    return world.image_look(draw_texture(rng, texture, first, shade), "1")


def _add_sheet(
    world: World, rest: np.ndarray, look: str, radius: float, young: float, weight: float
) -> Sheet:
    """Add a sheet that is flat where it begins.

    Args:
        world: of the sheet.
        rest: its points, [R, C, 3].
        look: a name that `image_look` returned.
        radius: half its thickness in the picture.
        young: stiffness of a sheet of 1 mm, N / m2.
        weight: kg / m2; 0 for a sheet that is moved by a control alone.
    """
    rows, columns = rest.shape[:2]
    area = np.linalg.norm(np.cross(rest[0, 1] - rest[0, 0], rest[1, 0] - rest[0, 0]))
    mass = area * weight if weight else 0.001
    names = [world.name("point") for _ in range(rows * columns)]
    for name, place in zip(names, rest.reshape(-1, 3), strict=True):
        slides = "".join(
            f'<joint {label}type="slide" axis="{axis}"/>'
            for label, axis in ((f'name="{name}" ', "1 0 0"), ("", "0 1 0"), ("", "0 0 1"))
        )
        world.add_body(
            f'<body name="{name}" pos="{write_numbers(place)}" gravcomp="{0 if weight else 1}">'
            f'{slides}<geom type="sphere" size="{3 * radius:.4f}" mass="{mass:.3g}" contype="0" '
            f'conaffinity="{1 if weight else 0}" rgba="0 0 0 0" group="3" priority="2" '
            'solref=".01 1" friction=".5 .003 .0008"/></body>'
        )
        # No point is heard when it lands.
        world.parts[name] = Part("skin", 0.0, 0.5, moves=True, effective_mass=IMMOVABLE)
    triangles = []
    for row in range(rows - 1):
        for column in range(columns - 1):
            first, below = row * columns + column, (row + 1) * columns + column
            if (row + column) % 2:
                triangles += [first, first + 1, below + 1, first, below + 1, below]
            else:
                triangles += [first, first + 1, below, first + 1, below + 1, below]
    places = np.stack(np.meshgrid(np.linspace(0, 1, columns), np.linspace(0, 1, rows)), -1)
    world.integrator = "Euler"  # MuJoCo integrates no elastic surface with the others
    world.add_surface(
        f'<flex name="{world.name("sheet")}" dim="2" radius="{radius}" material="{look}" '
        f'body="{" ".join(names)}" element="{" ".join(map(str, triangles))}" '
        f'texcoord="{write_numbers(places)}">'
        f'<elasticity young="{young:.4g}" poisson="0.2" thickness="0.001" damping="0.002" '
        'elastic2d="both"/><contact contype="0" conaffinity="0" selfcollide="none"/></flex>'
    )
    return Sheet(names, rest)


def _add_hands(world: World) -> list[list[str]]:
    """Add two hands that `_carry` moves, and return the names of the joints of each."""
    skin, hands = world.look("skin", texture="flat", colour=draw_skin_colour(world)), []
    for _ in range(2):
        joints = [world.name("joint") for _ in "xyz"]
        slides = "".join(
            f'<joint name="{joint}" type="slide" axis="{axis}"/>'
            for joint, axis in zip(joints, ("1 0 0", "0 1 0", "0 0 1"), strict=True)
        )
        geom = world.decoration("ellipsoid", (0.03, 0.025, 0.04), skin, (0, 0, 0))
        world.add_body(f'<body name="{world.name("hand")}" gravcomp="1">{slides}{geom}</body>')
        hands.append(joints)
    return hands


def _carry(world: World, hands: list[list[str]], path: Callable[[float], np.ndarray]) -> None:
    """Move hands along a path, which gives their places, [2, 3]."""

    def put(seconds: float, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        for hand, place in zip(hands, path(seconds), strict=True):
            for joint, value in zip(hand, place, strict=True):
                data.qpos[model.joint(joint).qposadr[0]] = value
                data.qvel[model.joint(joint).dofadr[0]] = 0

    world.controls.append(_rarely(put))


def _rarely(control: Control) -> Control:
    """Return a control that acts on each eighth step alone, for what takes long to find."""
    steps = itertools.count()

    def act(seconds: float, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        if next(steps) % COARSE_STEPS == 0:
            control(seconds, model, data)

    return act


def _hold(
    world: World,
    sheet: Sheet,
    held: tuple[slice | int | list[int], ...],
    path: Callable[[float], np.ndarray],
    until: float = math.inf,
) -> None:
    """Move points of a sheet along one path from where they begin, until they are let go."""

    def hold(seconds: float, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        if seconds < until:
            place = path(seconds)
            sheet.moved(model, data)[held] = place
            sheet.rates(model, data.qvel)[held] = (path(seconds + 0.001) - place) / 0.001

    world.controls.append(hold)


def _stay(seconds: float) -> np.ndarray:
    """The path of what is held still."""
    return np.zeros(3)


def _blow(world: World, sheet: Sheet, wind: Callable[[float], np.ndarray] | None) -> None:
    """Let the air push a sheet along its normals; `wind` gives m/s at each point, [R, C, 3]."""

    def push(seconds: float, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        places = sheet.rest + sheet.moved(model, data)
        across, down = np.gradient(places, axis=1), np.gradient(places, axis=0)
        normals = np.cross(across, down)  # as long as a point's share of the area
        areas = np.linalg.norm(normals, axis=-1, keepdims=True)
        normals /= areas + 1e-9
        speeds = -sheet.rates(model, data.qvel)
        if wind is not None:
            speeds = speeds + wind(seconds)
        through = (speeds * normals).sum(-1, keepdims=True)
        force = 0.6 * AIR_DENSITY * areas * np.abs(through) * through * normals
        sheet.rates(model, data.qfrc_applied)[:] = force

    world.controls.append(_rarely(push))


SHEETS = {scene.__name__: scene for scene in (cloth, paper, cards)}

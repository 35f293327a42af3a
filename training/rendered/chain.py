"""Scenes with a chain: it swings against something, is laid down link by link, or falls."""

# Lengths are metres, times seconds. `length` is the clip's length in seconds.

import math
from collections.abc import Callable
from dataclasses import dataclass

import mujoco

from training.rendered.driven import draw_skin_colour
from training.rendered.looks import SUBSTANCES
from training.rendered.loose import IMMOVABLE
from training.rendered.world import HingeRelease, Part, Release, Vector, World, write_numbers

_HAND_MASS = 40.0  # kg, so that no chain pulls it away
# Half the outline of a link, as shares of its width and of its pitch; the next link begins at -1.
_OUTLINE = ((0.5, 0.15), (1, 0.02), (1, -1.02), (0.5, -1.15))


def chain(world: World, length: float) -> None:
    """A chain swings against a wall or a post, or comes down on the floor."""
    material = world.pick_material("metal", "metal", "metal", "metal", "plastic", "wood")
    way = world.pick("swing", "swing", "lay", "fall")
    if way == "swing":
        _swing(world, material)
    elif way == "lay":
        _lay(world, material, length)
    else:
        _fall(world, material, length)
    world.actions.append(("chain", material))


@dataclass(frozen=True)
class _Links:
    """A chain.

    Attributes:
        first: name of its first link, and of that link's joint.
        xml: MJCF of it; it hangs from its origin.
        reach: how long it is.
        half_width: of a link.
    """

    first: str
    xml: str
    reach: float
    half_width: float


def _draw_links(world: World, material: str, joint: str, at: Vector = (0, 0, 0, 0)) -> _Links:
    """Return a chain whose links touch as capsules; two that follow one another do not touch.

    Args:
        world: that it will be added to.
        material: of the links.
        joint: "free", or the type of the joint that the first link hangs from.
        at: place of the chain's origin, and its turn about the y axis in degrees.
    """
    count, pitch = int(world.rng.integers(8, 14)), world.uniform(0.045, 0.075)
    wide, thick = 0.3 * pitch, world.uniform(0.07, 0.1) * pitch
    look = world.look(material)
    other = world.look(material) if world.rng.random() < 0.15 else look
    half = [(x * wide, z * pitch) for x, z in _OUTLINE]
    outline = [*half, *((-x, z) for x, z in reversed(half))]
    contact, size = world.physics(material, world.uniform(0.1, 0.25)), world.uniform(0, 0.3)
    # A link is a bent rod, as heavy as a fifth of the capsule.
    mass = 0.2 * SUBSTANCES[material].density * math.pi * wide**2 * (0.7 * pitch + 4 / 3 * wide)
    names = [world.name("link") for _ in range(count)]
    xml = ""
    for index in reversed(range(count)):
        geoms = (
            f'<geom type="capsule" size="{wide:.4f}" fromto="0 0 {-0.15 * pitch:.4f} 0 0 '
            f'{-0.85 * pitch:.4f}" rgba="0 0 0 0" group="3" mass="{mass:.5f}" {contact}/>'
        )
        for (x, z), (next_x, next_z) in zip(outline, outline[1:] + outline[:1], strict=True):
            # Every second link is turned by a quarter.
            ends = (x, 0, z, next_x, 0, next_z) if index % 2 else (0, x, z, 0, next_x, next_z)
            geoms += world.decoration("capsule", (thick,), other if index % 2 else look, ends, 1)
        # A little beside the middle, or the links would stand on one another like a rod.
        x, y = world.rng.normal(0, 0.2 * wide, 2)
        kind, place, turn = ("ball", (x, y, -pitch), 0) if index else (joint, at[:3], at[3])
        hinge = (
            f'<joint name="{names[index]}" type="{kind}" axis="0 -1 0" '
            f'damping="{1.5 * mass * pitch**2:.3g}" armature="{0.1 * mass * pitch**2:.3g}"/>'
        )
        if kind == "free":
            hinge = f'<freejoint name="{names[index]}"/>'
        xml = (
            f'<body name="{names[index]}" pos="{write_numbers(place)}" '
            f'euler="0 {turn:.1f} 0">{hinge}{geoms}{xml}</body>'
        )
        world.parts[names[index]] = Part(material, 1.0, size, moves=True, linked=True)
    return _Links(names[0], xml, count * pitch, wide)


def _add_hand(world: World, links: str, high: float, axis: str) -> str:
    """Add a hand that holds a chain and slides along an axis; return the name of its joint."""
    skin = world.look("skin", texture="flat", colour=draw_skin_colour(world))
    side = 1 if world.rng.random() < 0.5 else -1
    geoms = world.decoration("ellipsoid", (0.04, 0.045, 0.035), skin, (0, 0, 0.01), 100)
    sleeve = (0, 0.08 * side, 0.02, 0, 0.4 * side, 0.12)
    geoms += world.decoration("capsule", (0.035,), world.look(None), sleeve, 100)
    name, joint = world.name("hand"), world.name("joint")
    world.add_body(
        f'<body name="{name}" pos="0 0 {high:.4f}" gravcomp="1">'
        f'<joint name="{joint}" type="slide" axis="{axis}" armature="{_HAND_MASS}"/>'
        f"{geoms}{links}</body>"
    )
    world.parts[name] = Part("skin", 0.0, 0.5, moves=True)
    return joint


def _swing(world: World, material: str) -> None:
    """A hand lets a chain swing against what stands beside it."""
    links = _draw_links(world, material, "hinge")
    high = links.reach + world.uniform(0.1, 0.4)
    joint = _add_hand(world, links.xml, high, "1 0 0")
    world.hinges.append(HingeRelease(links.first, -world.uniform(0.3, 0.9), 0.0))
    beside = world.pick_material("wood", "stone", "metal", "metal", "plastic")
    look, away = world.look(beside), links.half_width + world.uniform(0.03, 0.1)
    tall = high + world.uniform(-0.3, 0.2)
    part = Part(beside, 0.8, world.uniform(0.4, 0.9), moves=False, effective_mass=IMMOVABLE)
    if world.rng.random() < 0.5:
        half = (world.uniform(0.03, 0.1), world.uniform(0.15, 0.6), tall / 2)
        geoms = world.box(half, look, material=beside, restitution=0.4)
        world.add_fixed(geoms, part, (away + half[0], 0, tall / 2))
    else:
        radius = world.uniform(0.03, 0.08)
        geoms = (
            f'<geom type="cylinder" size="{radius:.3f} {tall / 2:.3f}" material="{look}" '
            f"{world.physics(beside, 0.4)}/>"
        )
        world.add_fixed(geoms, part, (away + radius, 0, tall / 2))
    throw, phase = world.uniform(0.03, 0.12), world.uniform(0, 2 * math.pi)
    # About as fast as a rod of this length swings by itself.
    turn = math.sqrt(1.5 * 9.81 / links.reach) * world.uniform(0.85, 1.15)
    _move(world, joint, lambda now: throw * (math.sin(turn * now + phase) - math.sin(phase)))
    world.azimuth, world.elevation = (55, 125), (-25, -4)


def _lay(world: World, material: str, length: float) -> None:
    """A hand lowers a chain onto the floor, and may lift it again."""
    links = _draw_links(world, material, "ball")
    high, lowest = links.reach + world.uniform(0.04, 0.1), world.uniform(0.06, 0.3) * links.reach
    joint = _add_hand(world, links.xml, high, "0 0 1")
    begins, taken = world.uniform(0.1, 0.5), world.uniform(0.25, 0.6) * length
    lifts = world.uniform(0.3, 0.9) if world.rng.random() < 0.4 else 0.0

    def wanted(now: float) -> float:
        down, up = (
            (1 - math.cos(math.pi * min(max(now - start, 0) / taken, 1))) / 2
            for start in (begins, begins + taken + 0.2)
        )
        return (lowest - high) * (down - lifts * up)

    _move(world, joint, wanted)


def _fall(world: World, material: str, length: float) -> None:
    """A chain falls onto the floor: flat, slanting, or from where it hung."""
    hangs = world.rng.random() < 0.5
    turn = 0.0 if hangs else world.uniform(30, 100)
    lowest = 0.85 * max(math.cos(math.radians(turn)), 0) + world.uniform(0.3, 0.7)
    links = _draw_links(world, material, "free", (0, 0, lowest, turn))
    world.resting = True  # it is seen while it waits
    world.add_body(links.xml)
    begins = world.uniform(0.1, length / 3) if hangs else 0.0
    velocity = (world.uniform(-0.5, 0.5), world.uniform(-0.5, 0.5), 0)
    world.releases[links.first] = Release(begins, velocity)


def _move(world: World, joint: str, wanted: Callable[[float], float]) -> None:
    """Push a hand along a path, which gives metres from where it is, and begins at 0."""

    def push(seconds: float, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        slide = model.joint(joint)
        place, speed = data.qpos[slide.qposadr[0]], data.qvel[slide.dofadr[0]]
        soon = (wanted(seconds + 0.001) - wanted(seconds)) / 0.001
        force = 2500 * (wanted(seconds) - place) + 100 * (soon - speed)
        data.qfrc_applied[slide.dofadr[0]] = _HAND_MASS * force

    world.controls.append(push)


CHAIN = {chain.__name__: chain}

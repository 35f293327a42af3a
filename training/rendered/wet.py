"""Scenes with water: drops that fall from a tap, and things that fall into a basin."""

# Lengths are metres, times seconds. `length` is the clip's length in seconds.

import math

import mujoco
import numpy as np

from training.rendered.loose import IMMOVABLE
from training.rendered.world import HIDDEN_HEIGHT, Part, World

TOUCHES_SECONDS = 0.006  # for which what falls pushes before the water takes it: half of a bounce
SPRAY_SECONDS = 0.5  # after which no spray is left
_WATER = (0.55, 0.75, 0.9)


def drips(world: World, length: float) -> None:
    """Drops fall from a tap onto a plate, a pan, or water in a bowl."""
    world.add_back_wall()
    onto = world.pick("water", "water", "glass", "metal", "stone", "plastic")
    wide, base = world.uniform(0.05, 0.1), world.uniform(0.01, 0.4)
    high, drop = base + world.uniform(0.14, 0.3), world.uniform(0.008, 0.014)
    _add_dish(world, onto, wide, base)
    tap, water = world.look("metal"), _water_look(world)
    pipe = world.decoration("capsule", (0.015,), tap, (0, 0, high + 0.02, 0, 0, high + 0.08))
    pipe += world.decoration("capsule", (0.02,), tap, (0, 0, high + 0.08, -0.25, 0, high + 0.1))
    pipe += world.decoration("cylinder", (0.03, 0.012), tap, (-0.08, 0, high + 0.12))
    world.add_scenery(pipe)
    every, times = world.uniform(0.22, 0.9), [world.uniform(0.0, 0.4)]
    while times[-1] < length:
        times.append(times[-1] + every * world.uniform(0.9, 1.1))
    bodies = []
    for index in range(3):  # the next ones wait while one falls
        geom = f'<geom type="sphere" size="{drop:.4f}" material="{water}" ' + _soft(1000)
        bodies.append(_add_falling(world, geom, index))
        world.parts[bodies[-1]] = Part("water", 1.0, world.uniform(0, 0.4), moves=True)
    starts = [(at, (0.0, 0.0, high), bodies[i % 3]) for i, at in enumerate(times)]
    _let_fall(world, starts, water, drop * 0.45, 0.7)
    world.actions.append(("drip", onto))
    world.elevation = (-35, -10)


def splash(world: World, length: float) -> None:
    """Things fall into a basin of water, one after another, and sink."""
    wide, base = world.uniform(0.3, 0.5), world.uniform(0.02, 0.3)
    _add_dish(world, "water", wide, base)
    water = _water_look(world)
    starts, at = [], world.uniform(0.0, 0.4)
    for index in range(9):
        if at > length - 0.3:
            break
        material, half = world.pick_material(), world.uniform(0.035, 0.08)
        shape = world.pick("ball", "box", "rock", "can")
        geoms, _ = world.shape(shape, material, half, 0.05, None)
        name = _add_falling(world, geoms, index)
        world.parts[name] = Part("water", 0.5, world.uniform(0.6, 1.0), moves=True)
        spot = (*world.rng.uniform(-0.5, 0.5, 2) * wide, base + world.uniform(0.5, 1.2))
        starts.append((at, spot, name))
        at += world.uniform(0.35, 1.3)
    _let_fall(world, starts, water, world.uniform(0.01, 0.02), 1.6)
    world.actions.append(("drip", "water"))
    world.elevation = (-40, -12)


def _water_look(world: World) -> str:
    colour = np.clip(np.array(_WATER) * world.uniform(0.6, 1.15), 0, 1)
    return world.look(None, texture="flat", colour=tuple(colour))


def _soft(density: float) -> str:
    """The end of a geom that hardly bounces."""
    return f'solref=".012 1" friction=".3 .003 .0008" density="{density:.0f}"/>'


def _add_dish(world: World, material: str, wide: float, base: float) -> None:
    """Add a round dish; with the material water it is a bowl that is full."""
    is_full = material == "water"
    solid = world.pick("metal", "stone", "plastic", "glass") if is_full else material
    outside = world.look(solid)
    inside = _water_look(world) if is_full else outside
    geoms = f'<geom type="cylinder" size="{wide:.3f} .005" material="{inside}" ' + _soft(2000)
    for index in range(24):  # the rim
        turn = 2 * math.pi * index / 24
        at = (wide * math.cos(turn), wide * math.sin(turn), 0.006)
        geoms += world.decoration("sphere", (0.12 * wide,), outside, at)
    geoms += world.decoration("cylinder", (wide, base / 2), outside, (0, 0, -base / 2 - 0.006))
    ring = 0.9 if is_full else 1.2
    part = Part(material, ring, world.uniform(0.2, 0.7), moves=False, effective_mass=IMMOVABLE)
    world.add_fixed(geoms, part, (0, 0, base))


def _add_falling(world: World, geoms: str, index: int) -> str:
    """Add a free body that waits out of sight, and return its name."""
    name = world.name("falls")
    world.add_body(
        f'<body name="{name}" pos="{index} 0 {HIDDEN_HEIGHT}"><freejoint name="{name}"/>{geoms}'
        "</body>"
    )
    return name


def _let_fall(
    world: World,
    starts: list[tuple[float, tuple[float, float, float], str]],
    water: str,
    fine: float,
    fastest: float,
) -> None:
    """Let bodies fall from places at times; where one touches it is gone, and water sprays.

    Args:
        world: of the bodies.
        starts: when, from where, and which body; a body may fall again when it is gone.
        water: the look of the spray.
        fine: radius of its drops.
        fastest: m/s of its drops.
    """
    spray = []
    for index in range(8):
        kind = world.decoration("sphere", (fine * world.uniform(0.6, 1.3),), water, (0, 0, 0))
        spray.append(_add_falling(world, kind, 20 + index))
        world.parts[spray[-1]] = Part("water", 0.0, 0.0, moves=True)
    turns = world.rng.uniform(0, 2 * math.pi, (len(starts), len(spray)))
    speeds = fastest * world.rng.uniform(0.3, 1.0, (len(starts), len(spray), 2))
    waiting, falling = list(enumerate(starts)), {}  # name: index and when it touched
    names = sorted({name for *_, name in starts})
    sprayed: list[float] = []

    def put(
        model: mujoco.MjModel, data: mujoco.MjData, name: str, place: object, speed: object
    ) -> None:
        joint = model.joint(name)
        at, rate = int(joint.qposadr[0]), int(joint.dofadr[0])
        data.qpos[at : at + 3], data.qvel[rate : rate + 6] = place, 0
        data.qvel[rate : rate + 3] = speed

    def fall(seconds: float, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        while waiting and seconds >= waiting[0][1][0]:
            index, (_, place, name) = waiting.pop(0)
            put(model, data, name, place, 0)
            falling[name] = (index, math.inf)
        touching = set(model.geom_bodyid[data.contact.geom].ravel().tolist()) if data.ncon else ()
        for order, name in enumerate(names):
            if name not in falling:
                put(model, data, name, (order, 0, HIDDEN_HEIGHT), 0)
                continue
            index, touched = falling[name]
            if touched == math.inf and int(model.body(name).id) in touching:
                falling[name] = (index, seconds)
            elif seconds - touched >= TOUCHES_SECONDS:
                at = int(model.joint(name).qposadr[0])
                spot = data.qpos[at : at + 3].copy()
                del falling[name]
                for drop, turn, (out, up) in zip(spray, turns[index], speeds[index], strict=True):
                    flight = (0.4 * out * math.cos(turn), 0.4 * out * math.sin(turn), up)
                    put(model, data, drop, spot, flight)
                sprayed[:] = [seconds]
        if not sprayed or seconds - sprayed[0] > SPRAY_SECONDS:
            for order, drop in enumerate(spray):
                put(model, data, drop, (20 + order, 0, HIDDEN_HEIGHT), 0)

    world.controls.append(fall)


WET = {scene.__name__: scene for scene in (drips, splash)}

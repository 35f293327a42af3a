"""Scenes that sound for as long as something moves: cars, and sticks swung through the air."""

# Lengths are metres, times seconds. `length` is the clip's length in seconds.

import mujoco
import numpy as np

from training.rendered.driven import draw_skin_colour
from training.rendered.world import Hum, Part, World


def _draw_speeds(world: World, length: float, rest: float) -> tuple[np.ndarray, np.ndarray]:
    """Return times and smooth speeds in -1 .. 1; some of them are 0 for a while."""
    rng, times = world.rng, [0.0]
    speeds = [float(rng.choice((0.0, rng.uniform(-1, 1)), p=(rest, 1 - rest)))]
    while times[-1] < length:
        taken = world.uniform(0.3, 1.2)
        speed = float(rng.choice((0.0, -1.0, 1.0), p=(rest, (1 - rest) / 2, (1 - rest) / 2)))
        speed *= world.uniform(0.4, 1)
        times += [times[-1] + taken, times[-1] + taken + world.uniform(0.2, 1.4)]
        speeds += [speed, speed]
    return np.array(times), np.array(speeds)


def vehicle(world: World, length: float) -> None:
    """A car drives to and fro; its engine follows its speed."""
    long, wide, high = (
        world.uniform(0.15, 0.3),
        world.uniform(0.09, 0.14),
        world.uniform(0.05, 0.09),
    )
    wheel, paint = world.uniform(0.035, 0.06), world.look(world.pick_material("metal", "plastic"))
    dark, window = world.look(None), world.look("glass")
    joint, name = world.name("joint"), world.name("car")
    geoms = world.decoration("box", (long, wide, high), paint, (0, 0, wheel + high))
    cabin = (long * world.uniform(0.4, 0.7), wide * 0.9, high * world.uniform(0.5, 0.9))
    geoms += world.decoration(
        "box", cabin, window, (-long * world.uniform(0, 0.3), 0, wheel + 2 * high + cabin[2])
    )
    for x in (-0.62, 0.62):
        for y in (-1, 1):
            at = (x * long, y * wide - 0.012, wheel, x * long, y * wide + 0.012, wheel)
            geoms += world.decoration("cylinder", (wheel,), dark, at)
    world.add_body(
        f'<body name="{name}" pos="0 0 0" euler="0 0 {world.uniform(0, 360):.0f}" gravcomp="1">'
        f'<joint name="{joint}" type="slide" axis="1 0 0"/>{geoms}</body>'
    )
    world.parts[name] = Part("metal", 0.0, 0.7, moves=True)
    times, speeds = _draw_speeds(world, length, 0.3)
    grid = np.arange(0, times[-1], 0.01)
    fastest = world.uniform(0.5, 2.5)
    way = np.cumsum(np.interp(grid, times, speeds)) * 0.01 * fastest
    way -= way[grid < length].mean()

    def ride(seconds: float, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        slide = model.joint(joint)
        data.qpos[slide.qposadr[0]] = np.interp(seconds, grid, way)
        data.qvel[slide.dofadr[0]] = 0

    world.controls.append(ride)
    idle = float(world.rng.choice((0.0, world.uniform(0.1, 0.3))))
    world.hums.append(Hum("engine", (name,), idle=idle, full_speed=fastest))
    world.textures.append("engine")
    world.elevation = (-35, -6)


def swing(world: World, length: float) -> None:
    """A stick is swung through the air and hits nothing."""
    joint, name = world.name("joint"), world.name("stick")
    reach, thick = world.uniform(0.4, 0.9), world.uniform(0.012, 0.03)
    look = world.look(world.pick_material("wood", "metal", "plastic"))
    skin = world.look("skin", texture="flat", colour=draw_skin_colour(world))
    arm = 0.45
    geoms = world.decoration("capsule", (thick,), look, (arm - 0.08, 0, 0, arm + reach, 0, 0), 200)
    geoms += world.decoration("capsule", (0.04,), world.look(None), (0, 0, 0, arm - 0.1, 0, 0), 100)
    geoms += world.decoration("ellipsoid", (0.06, 0.045, 0.05), skin, (arm, 0, 0), 100)
    tip = world.name("tip")
    geoms += f'<body name="{tip}" pos="{arm + reach * 0.8:.3f} 0 0"/>'
    axis = world.pick("0 0 1", "0 1 0", "0.3 1 0.2")
    world.add_body(
        f'<body name="{name}" pos="0 0 {arm + reach + world.uniform(0, 0.3):.3f}" gravcomp="1">'
        f'<joint name="{joint}" type="hinge" axis="{axis}"/>{geoms}</body>'
    )
    for body in (name, tip):
        world.parts[body] = Part("wood", 0.0, 0.5, moves=True)
    turn, seconds, swings = world.uniform(0.6, 1.4), world.uniform(0.1, 0.6), []
    while seconds < length:
        taken = world.uniform(0.18, 0.5)
        swings.append((seconds, taken))
        seconds += taken + world.uniform(0.25, 1.2)

    def wave(now: float, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        angle = -turn
        for index, (start, taken) in enumerate(swings):
            share = min(max((now - start) / taken, 0), 1)
            side = 1 if index % 2 == 0 else -1
            angle += side * 2 * turn * share * share * (3 - 2 * share)
        hinge = model.joint(joint)
        data.qpos[hinge.qposadr[0]], data.qvel[hinge.dofadr[0]] = angle, 0

    world.controls.append(wave)
    world.hums.append(Hum("whoosh", (tip,), idle=0.0, full_speed=world.uniform(5, 9), power=1.5))
    world.actions.append(("whoosh", None))
    world.azimuth, world.elevation = (60, 120), (-30, -4)


def measure_hum(hum: Hum, speeds: np.ndarray) -> np.ndarray:
    """Return the level of a hum, 0 .. 1, at speeds in m/s, [A]."""
    share = np.clip(speeds / hum.full_speed, 0, 1) ** hum.power
    return np.asarray(hum.idle + (1 - hum.idle) * share)


MOVING = {scene.__name__: scene for scene in (vehicle, swing)}

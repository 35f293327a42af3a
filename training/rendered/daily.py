"""Scenes of every day, close to the camera: steps, typing, chopping, a ball on a racket."""

# Lengths are metres, times seconds. `length` is the clip's length in seconds.

import math

import mujoco
import numpy as np

from training.rendered.driven import Arm, draw_skin_colour, drive, plan_strikes
from training.rendered.loose import IMMOVABLE
from training.rendered.world import HIDDEN_HEIGHT, Part, Release, World

LAST_TOUCH_SECONDS = 0.003  # for which a glass that breaks still pushes: long enough to be found


def steps(world: World, length: float) -> None:
    """Two feet tread on the spot."""
    sole = world.pick_material("skin", "plastic", "wood")
    shoe, trouser = world.look(sole), world.look(None)
    beats = plan_strikes(world, length, (0.28, 0.7), world.uniform(0.07, 0.18))
    arms = []
    for index, side in enumerate((-1, 1)):
        name, joint = world.name("foot"), world.name("joint")
        shin = (-0.01, 0, 0, world.uniform(-0.06, 0.02), 0, 0.42)
        world.add_body(
            f'<body name="{name}" pos="{world.uniform(-0.06, 0.06):.3f} {side * 0.1} .067" '
            f'euler="0 0 {side * world.uniform(-2, 14):.1f}" gravcomp="1">'
            f'<joint name="{joint}" type="slide" axis="0 0 1" armature="2"/>'
            f'<geom type="box" size=".12 .045 .022" pos=".05 0 -.045" material="{shoe}" '
            'priority="2" solref=".015 1" friction=".8 .003 .0008" density="500"/>'
            + world.decoration("ellipsoid", (0.13, 0.05, 0.05), shoe, (0.05, 0, -0.03), 100)
            + world.decoration("capsule", (0.052,), trouser, shin, 500)
            + world.decoration("capsule", (0.07,), trouser, (*shin[3:], 0.1, 0, 0.75), 300)
            + "</body>"
        )
        world.parts[name] = Part(sole, 0.5, 0.5, moves=True, effective_mass=0.7)
        arms.append(Arm(joint, 5.0, beats[index::2]))
    drive(world, arms, 45, (0.15, 0.3))
    world.actions.append(("tap", None))
    world.azimuth, world.elevation = (-110, 110), (-28, -4)


def keys(world: World, length: float) -> None:
    """Fingers type on a keyboard or play on keys."""
    material = world.pick_material("plastic", "plastic", "plastic", "wood", "metal")
    half_x, half_y, top = world.uniform(0.17, 0.24), world.uniform(0.055, 0.08), 0.034
    board, cap = world.look(material), world.look("plastic")
    geoms = world.box((half_x, half_y, 0.008), board, (0, 0, -0.01), material=material)
    # What the fingers touch lies a little below the tops of the caps.
    geoms += world.box((half_x * 0.96, half_y * 0.92, 0.008), board, material=material)
    columns, rows = int(world.rng.integers(8, 15)), int(world.rng.integers(1, 6))
    wide, deep = half_x * 0.94 / columns, half_y * 0.9 / rows
    for column in range(columns):
        for row in range(rows):
            at = ((2 * column + 1 - columns) * wide, (2 * row + 1 - rows) * deep, 0.009)
            geoms += world.decoration("box", (wide * 0.86, deep * 0.86, 0.0035), cap, at)
    part = Part(material, 1.0, world.uniform(0, 0.4), moves=False, effective_mass=IMMOVABLE)
    world.add_fixed(geoms, part, (0, 0, top - 0.008))
    skin = world.look("skin", texture="flat", colour=draw_skin_colour(world))
    fingers = int(world.rng.integers(2, 6))
    strikes = plan_strikes(world, length, (0.1, 0.5), world.uniform(0.25, 0.5))
    turns = world.rng.integers(fingers, size=len(strikes))
    arms = []
    for index in range(fingers):
        name, joint = world.name("finger"), world.name("joint")
        tip, reach = 0.008, world.uniform(0.085, 0.105)
        tilt = math.radians(world.uniform(14, 26))
        across, down = reach * math.cos(tilt), reach * math.sin(tilt)
        x = (index - (fingers - 1) / 2) * 0.023 + (0.05 if index >= fingers / 2 else -0.05)
        world.add_body(
            f'<body name="{name}" pos="{x:.4f} {-across - half_y * world.uniform(-0.4, 0.4):.4f} '
            f'{top + tip + down:.4f}" euler="0 0 90" gravcomp="1">'
            f'<joint name="{joint}" type="hinge" axis="0 -1 0" armature=".0004"/>'
            + world.decoration("capsule", (0.009,), skin, (0, 0, 0, 0.55 * across, 0, 0.004), 400)
            + world.decoration(
                "capsule", (0.0085,), skin, (0.55 * across, 0, 0.004, across, 0, -down), 400
            )
            + world.decoration("ellipsoid", (0.05, 0.016, 0.018), skin, (-0.045, 0, 0), 100)
            + f'<geom type="sphere" size="{tip}" pos="{across:.4f} 0 {-down:.4f}" '
            f'material="{skin}" {world.physics("skin", 0.15)}/></body>'
        )
        world.parts[name] = Part("skin", 0.1, 0.1, moves=True, effective_mass=0.05)
        own = [strike for strike, turn in zip(strikes, turns, strict=True) if turn == index]
        arms.append(Arm(joint, 0.001, own))
    drive(world, arms, 80, (0.05, 0.1))
    world.actions.append(("tap", material))
    world.azimuth, world.elevation = (35, 145), (-50, -14)


def chop(world: World, length: float) -> None:
    """A knife chops on a board."""
    board, high = world.pick_material("wood", "wood", "plastic", "stone"), world.uniform(0.01, 0.02)
    wide, base = world.uniform(0.12, 0.2), 0.0
    if world.rng.random() < 0.5:  # on a table
        base, look = world.uniform(0.3, 0.7), world.look(world.pick_material("wood", "stone"))
        world.add_fixed(
            world.box((0.6, 0.4, 0.02), look, (0, 0, base - 0.02)),
            Part("wood", 0.3, 0.8, moves=False),
        )
    geom = world.box((wide, wide * 0.65, high), world.look(board), material=board)
    part = Part(board, 1.1, 0.5, moves=False, effective_mass=IMMOVABLE)
    world.add_fixed(geom, part, (0, 0, base + high))
    food, radius = world.look(None), world.uniform(0.012, 0.025)
    top = base + 2 * high
    for k in range(int(world.rng.integers(0, 6))):  # slices, and what is left of the whole
        at = (world.uniform(-0.05, 0.1), -0.02 - 0.014 * k, top + 0.004)
        world.add_fixed(
            world.decoration("cylinder", (radius, 0.004), food, (0, 0, 0)),
            Part("skin", 0.0, 0.2, moves=False),
            at,
        )
    ends = (0.04, 0.03, radius, 0.04, 0.03 + world.uniform(0.05, 0.1), radius)
    rest = world.decoration("capsule", (radius,), food, ends)
    world.add_fixed(rest, Part("skin", 0.0, 0.2, moves=False), (0, 0, top))
    steel, grip = world.look("metal"), world.look(world.pick_material("wood", "plastic"))
    skin = world.look("skin", texture="flat", colour=draw_skin_colour(world))
    blade, tall = world.uniform(0.08, 0.11), world.uniform(0.016, 0.03)
    pivot = -blade - 0.14
    geoms = world.box(
        (blade, 0.0025, tall), steel, (blade + 0.12, 0, 0), material="metal", restitution=0.2
    )
    geoms += world.decoration("capsule", (0.012,), grip, (0.02, 0, tall * 0.4, 0.12, 0, tall * 0.4))
    geoms += world.decoration("ellipsoid", (0.05, 0.035, 0.03), skin, (0.05, 0, tall * 0.4), 100)
    forearm = (-0.25, 0.05, 0.08, 0.02, 0, tall * 0.4)
    geoms += world.decoration("capsule", (0.03,), world.look(None), forearm, 50)
    joint, name = world.name("joint"), world.name("thing")
    world.add_body(
        # A little lower than it lies, so that the blade arrives with its full speed.
        f'<body name="{name}" pos="{pivot:.4f} 0 {top + tall - 0.003:.4f}" gravcomp="1">'
        f'<joint name="{joint}" type="hinge" axis="0 -1 0" armature=".002"/>{geoms}</body>'
    )
    world.parts[name] = Part("metal", 0.3, 0.2, moves=True, effective_mass=1.5)
    strikes = plan_strikes(world, length, (0.22, 0.8), world.uniform(0.3, 0.6))
    drive(world, [Arm(joint, 0.03, strikes)], 60, (0.08, 0.2))
    world.actions.append(("strike", board))
    world.azimuth, world.elevation = (40, 140), (-40, -10)


def racket(world: World, length: float) -> None:
    """A ball bounces on a racket or a bat that a hand holds level."""
    material = world.pick_material("wood", "plastic", "metal")
    radius, high = world.uniform(0.09, 0.15), world.uniform(0.5, 0.9)
    face, frame = world.look(material), world.look(world.pick_material("metal", "plastic"))
    skin = world.look("skin", texture="flat", colour=draw_skin_colour(world))
    name, joint = world.name("thing"), world.name("joint")
    reach = radius + world.uniform(0.12, 0.25)
    geoms = (
        f'<geom type="cylinder" size="{radius:.3f} .006" material="{face}" '
        f"{world.physics(material, 0.93)}/>"
        + world.decoration("cylinder", (radius * 1.08, 0.004), frame, (0, 0, -0.001))
        + world.decoration("capsule", (0.014,), frame, (radius, 0, 0, reach, 0, 0))
        + world.decoration("ellipsoid", (0.05, 0.035, 0.03), skin, (reach, 0, 0))
        + world.decoration("capsule", (0.035,), world.look(None), (reach, 0, 0, 0.6, 0, -0.15))
    )
    world.add_body(
        f'<body name="{name}" pos="0 0 {high:.3f}" euler="0 0 {world.uniform(0, 360):.0f}" '
        f'gravcomp="1"><joint name="{joint}" type="slide" axis="0 0 1" armature="3"/>{geoms}</body>'
    )
    world.parts[name] = Part(material, 0.6, 0.4, moves=True, effective_mass=IMMOVABLE)
    ball, half = (
        world.pick_material("plastic", "plastic", "skin", "wood"),
        world.uniform(0.02, 0.04),
    )
    for index in range(int(world.rng.integers(1, 3))):
        world.add_free(
            "ball",
            ball,
            half,
            (world.uniform(-0.01, 0.01), 0.09 * index, high + world.uniform(0.15, 0.6)),
            release=Release(world.uniform(0, 0.4)),
            restitution=world.uniform(0.75, 0.92),
        )
    swing, rate, phase = world.uniform(0.01, 0.05), world.uniform(1.0, 2.4), world.uniform(0, 6.3)

    def hold(seconds: float, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        slide = model.joint(joint)
        place, speed = data.qpos[slide.qposadr[0]], data.qvel[slide.dofadr[0]]
        turn = 2 * math.pi * rate
        wanted = swing * math.sin(turn * seconds + phase)
        soon = swing * turn * math.cos(turn * seconds + phase)
        data.qfrc_applied[slide.dofadr[0]] = 4 * (3000 * (wanted - place) + 90 * (soon - speed))

    world.controls.append(hold)
    world.actions.append(("bounce", material))
    world.elevation = (-28, -4)


def shatter(world: World, length: float) -> None:
    """A glass falls and breaks where it first touches something."""
    world.add_back_wall()
    half, high = world.uniform(0.06, 0.11), world.uniform(0.6, 1.4)
    spot, look = (world.uniform(-0.3, 0.3), world.uniform(-0.3, 0.3)), world.look("glass")
    begins = world.uniform(0.2, min(1.5, length / 2))
    glass = world.add_free(
        world.pick("cup", "ball", "box"),
        "glass",
        half,
        (*spot, high),
        release=Release(begins, (0, 0, 0), world.rng.normal(0, 3, 3)),
        look=look,
    )
    shards = [
        world.add_free(
            "rock",
            "glass",
            half * world.uniform(0.15, 0.3),
            (0.3 * index - 1, 0, HIDDEN_HEIGHT),
            release=Release(0),
            restitution=world.uniform(0.2, 0.45),
            look=look,
        )
        for index in range(int(world.rng.integers(5, 10)))
    ]
    flights = [
        (*world.rng.normal(0, 0.35, 2), world.uniform(0.1, 1.0), *world.rng.normal(0, 8, 3))
        for _ in shards
    ]
    turns = 2 * math.pi * np.arange(len(shards)) / len(shards)
    offsets = half * np.stack((0.7 * np.cos(turns), 0.7 * np.sin(turns), 0 * turns), 1)
    broken: list[float] = []

    def watch(seconds: float, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        joint = model.joint(glass)
        place, speed = int(joint.qposadr[0]), int(joint.dofadr[0])
        body = int(model.body(glass).id)
        falls = not broken and seconds > begins and data.ncon
        if falls and (model.geom_bodyid[data.contact.geom] == body).any():
            broken.append(seconds)
        since = seconds - broken[0] if broken else -1.0
        for name, flight, offset in zip(shards, flights, offsets, strict=True):
            shard = model.joint(name)
            at, rate = int(shard.qposadr[0]), int(shard.dofadr[0])
            if since < LAST_TOUCH_SECONDS:
                data.qpos[at + 2], data.qvel[rate : rate + 6] = HIDDEN_HEIGHT, 0
            elif data.qpos[at + 2] > HIDDEN_HEIGHT / 2:
                data.qpos[at : at + 3] = data.qpos[place : place + 3] + offset
                data.qpos[at + 2] = max(data.qpos[at + 2], half * 0.6)
                data.qvel[rate : rate + 6] = flight
        if since >= LAST_TOUCH_SECONDS:
            data.qpos[place + 2], data.qvel[speed : speed + 6] = HIDDEN_HEIGHT, 0

    world.controls.append(watch)
    world.actions.append(("bounce", "glass"))


DAILY = {scene.__name__: scene for scene in (steps, keys, chop, racket, shatter)}

"""What stands behind a scene and touches nothing: furniture, walls, photographs."""

import math

import mujoco
import numpy as np

from training.rendered.camera import Camera
from training.rendered.looks import TEXTURES, draw_texture
from training.rendered.photographs import draw_photograph
from training.rendered.world import World

BARE_SHARE = 0.25  # of the scenes have nothing behind them
WALL_SHARE = 0.6  # of the others have a wall, a photograph where there are some
MAX_THINGS = 7
_NEAREST = 1.2  # metres behind the middle of the action
_BELOW = -40.0  # where things wait for the camera's place
_KINDS = ("box", "cylinder", "capsule", "ellipsoid")


def add_backdrop(world: World, rng: np.random.Generator) -> list[str]:
    """Add things below the floor and return their names; `place_backdrop` puts them up.

    Args:
        world: that gets them.
        rng: of the backdrop alone, so that everything else of the scene stays the same.
    """
    names: list[str] = []
    if rng.random() < BARE_SHARE:
        return names
    if rng.random() < WALL_SHARE:
        half = (rng.uniform(2.5, 5), rng.uniform(1.5, 2.5))
        photograph = draw_photograph(rng, 256)
        repeat = "1" if photograph else f"{half[0]:.0f}"
        look = world.image_look(photograph or _draw_pattern(rng), repeat)
        names.append(_add(world, "box", (*half, 0.02), look))
    looks = [world.image_look(_draw_pattern(rng), "1") for _ in range(int(rng.integers(1, 4)))]
    for _ in range(int(rng.integers(0, MAX_THINGS + 1))):
        kind = str(rng.choice(_KINDS))
        size = rng.uniform(0.04, 0.35, 3) * (1, 1, rng.uniform(1, 3))
        names.append(_add(world, kind, size, looks[int(rng.integers(len(looks)))]))
    return names


def _draw_pattern(rng: np.random.Generator) -> bytes:
    colours = rng.uniform(0.05, 0.95, (2, 3))
    return draw_texture(rng, str(rng.choice(TEXTURES)), colours[0], colours[1], 64)


def _add(world: World, kind: str, size: tuple[float, ...] | np.ndarray, look: str) -> str:
    name = world.name("backdrop")
    if kind in ("cylinder", "capsule"):
        size = (size[0], size[2])
    geom = world.decoration(kind, size, look, (0, 0, _BELOW))
    world.add_scenery(geom.replace("<geom ", f'<geom name="{name}" '))
    return name


def place_backdrop(
    model: mujoco.MjModel, names: list[str], camera: Camera, rng: np.random.Generator
) -> None:
    """Put a backdrop up behind the action, as the camera sees it.

    Args:
        model: of the scene, which is changed.
        names: that `add_backdrop` returned.
        camera: of the clip.
        rng: of the places.
    """
    view = camera.views[0]
    ahead = view.axes[2] * (1, 1, 0)
    ahead /= np.linalg.norm(ahead)
    aside = np.array((ahead[1], -ahead[0], 0.0))
    action = view.place + view.axes[2] * camera.distance
    if names:  # what waits far below would move the near plane into the picture
        model.stat.extent = max(1.5, camera.distance)
    for name in names:
        geom = model.geom(name)
        tall, wide = float(geom.size[2]), camera.tangent * camera.distance
        away, turn = rng.uniform(_NEAREST, 3.5), rng.uniform(0, 2 * math.pi)
        off = rng.uniform(-1, 1) * (wide + away * camera.tangent)
        if geom.type[0] in (mujoco.mjtGeom.mjGEOM_CYLINDER, mujoco.mjtGeom.mjGEOM_CAPSULE):
            tall = float(geom.size[1])
        if tall < 0.03:  # a wall: upright, across the view
            away, off, tall = rng.uniform(2.5, 5), rng.uniform(-0.5, 0.5), float(geom.size[1])
            turn = math.atan2(ahead[1], ahead[0]) - math.pi / 2
            upright, result = np.array((math.sqrt(0.5), math.sqrt(0.5), 0, 0)), np.zeros(4)
            around = np.array((math.cos(turn / 2), 0, 0, math.sin(turn / 2)))
            mujoco.mju_mulQuat(result, around, upright)
            geom.quat[:] = result
        else:
            geom.quat[:] = (math.cos(turn / 2), 0, 0, math.sin(turn / 2))
        place = action + ahead * away + aside * off
        geom.pos[:] = (place[0], place[1], tall)
        geom.sameframe[:] = 0  # it was where the world's frame is, which MuJoCo noted

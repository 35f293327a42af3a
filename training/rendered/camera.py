"""A camera that sees what happens: where it stands, how it moves, what it sees."""

# n drawn moments, P points, D directions of the camera (right, up, forward)

import math
from dataclasses import dataclass

import mujoco
import numpy as np

from training.rendered.contacts import Impact, part_of
from training.rendered.simulate import Motion
from training.rendered.world import World

LEAST_FRAMED_SPEED = 0.15  # m/s; softer impacts need not be in the picture
_TRIES = 12
_GLOBAL_UP = np.array((0.0, 0.0, 1.0))


@dataclass(frozen=True)
class View:
    """The camera at one moment: its place [3] and its directions [3, 3]."""

    place: np.ndarray
    axes: np.ndarray

    def quaternion(self) -> np.ndarray:
        """Return its turn as MuJoCo has it, [4]."""
        right, up, forward = self.axes
        turned, result = np.stack((right, up, -forward), 1), np.zeros(4)
        mujoco.mju_mat2Quat(result, turned.ravel())
        return result


def _axes_towards(forward: np.ndarray, roll: float = 0.0) -> np.ndarray:
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, _GLOBAL_UP)
    right /= np.linalg.norm(right)
    up = np.cross(right, forward)
    cos, sin = math.cos(roll), math.sin(roll)
    return np.stack((right * cos + up * sin, up * cos - right * sin, forward))


class Camera:
    """A path of views with one field of view.

    Attributes:
        views: one a drawn moment.
        distance: metres to the middle of the action.
        tangent: of half the field of view.
        seen: share of the checked impacts that nothing hides.
    """

    def __init__(self, views: list[View], distance: float, tangent: float, seen: float) -> None:
        self.views, self.distance, self.tangent, self.seen = views, distance, tangent, seen

    @property
    def scale(self) -> float:
        """Half picture heights a metre at the distance of the action."""
        return 1 / self.distance / self.tangent

    def project(self, points: np.ndarray, moment: int) -> np.ndarray:
        """Return x and y in -1 .. 1 (down is positive) and the depth of points [P, 3], [P, 3]."""
        view = self.views[moment]
        right, up, depth = ((points - view.place) @ view.axes.T).T
        safe = np.where(np.abs(depth) < 1e-6, 1e-6, depth)
        return np.stack((right / safe / self.tangent, -up / safe / self.tangent, depth), 1)


def _is_visible(
    motion: Motion, eye: np.ndarray, point: np.ndarray, bodies: tuple[int, int]
) -> bool:
    """Return whether nothing but the bodies themselves stands between the eye and a point."""
    model, away = motion.model, point - eye
    distance, geom = float(np.linalg.norm(away)), np.zeros(1, np.int32)
    hit = mujoco.mj_ray(model, motion.data, eye, away / distance, None, 1, -1, geom)
    if hit < 0 or hit > distance - 0.03:
        return True
    root = model.body_rootid[model.geom_bodyid[geom[0]]]
    return any(body and root == model.body_rootid[body] for body in bodies)


def _points_to_frame(world: World, motion: Motion, impacts: list[Impact], fps: float) -> np.ndarray:
    """Return where strong impacts are and what moves about them, [P, 3]."""
    points, last = [], len(motion.places) - 1
    for impact in impacts:
        if impact.speed < LEAST_FRAMED_SPEED:
            continue
        points.append(impact.point)
        for before in (-0.3, -0.15, 0, 0.15):
            frame = int(np.clip(round((impact.seconds + before) * fps), 0, last))
            for body in impact.bodies:
                place = motion.places[frame][body]
                near = np.linalg.norm(place - impact.point) < 0.9
                if body and near and part_of(world, motion, body).moves:
                    points.append(place)
    watched = [motion.model.body(body).id for hum in world.hums for body in hum.bodies]
    points += [place[body] for place in motion.places[::3] for body in watched]
    framed = np.array(points)
    if len(framed) > 20:  # what rolls far away may leave the picture
        low, high = np.percentile(framed, (8, 92), axis=0)
        framed = np.clip(framed, low - 0.12, high + 0.12)
    return framed


def place_camera(
    world: World, motion: Motion, impacts: list[Impact], field_of_view: float, fps: float
) -> Camera:
    """Return a camera that sees the impacts, still or moving a little.

    Args:
        world, motion: of the clip.
        impacts: of the clip; at least one must be strong, unless something hums.
        field_of_view: vertical, degrees.
        fps: drawn moments a second.

    Raises:
        ValueError: no impact is strong enough to be framed, and nothing hums.
    """
    rng, tangent = world.rng, math.tan(math.radians(field_of_view / 2))
    points = _points_to_frame(world, motion, impacts, fps)
    if not len(points):
        raise ValueError("nothing in this scene hits hard enough to be seen")
    middle = (points.min(0) + points.max(0)) / 2
    strong = [impact for impact in impacts if impact.speed >= LEAST_FRAMED_SPEED][:24]
    best: tuple[float, np.ndarray, float] | None = None
    for _ in range(_TRIES):
        around = math.radians(world.uniform(*world.azimuth))
        above = math.radians(world.uniform(*world.elevation))
        level = math.cos(above)
        axes = _axes_towards(
            np.array((math.cos(around) * level, math.sin(around) * level, math.sin(above)))
        )
        reach = tangent * world.uniform(0.72, 0.92)
        right, up, depth = np.abs((points - middle) @ axes.T).T * np.array(((1,), (1,), (0,)))
        depth = (points - middle) @ axes[2]
        distance = max(
            float((((right + 0.1) / reach) - depth).max()),
            float((((up + 0.1) / reach) - depth).max()),
            0.5,
        )
        eye = middle - distance * axes[2]
        eye[2] = max(eye[2], 0.08)
        seen = 0
        for impact in strong:
            motion.place_all(min(round(impact.seconds * fps), len(motion.places) - 1))
            seen += _is_visible(motion, eye, impact.point + np.array((0, 0, 0.004)), impact.bodies)
        share = seen / len(strong) if strong else 1.0
        if best is None or share > best[0]:
            best = share, eye, distance
        if share > 0.95:
            break
    assert best is not None
    share, eye, distance = best
    views = _move(rng, eye, middle, distance, field_of_view, len(motion.moments), fps)
    return Camera(views, distance, tangent, share)


def _move(
    rng: np.random.Generator,
    eye: np.ndarray,
    middle: np.ndarray,
    distance: float,
    field_of_view: float,
    count: int,
    fps: float,
) -> list[View]:
    """Return the views of a camera that shakes, circles and comes nearer a little."""
    seconds = np.arange(count) / fps
    shake = float(
        rng.choice((0.0, rng.uniform(0.1, 0.5), rng.uniform(0.5, 1.2)), p=(0.35, 0.4, 0.25))
    )
    rates, phases = rng.uniform(0.15, 2.2, (3, 5)), rng.uniform(0, 6.3, (3, 5))
    waves = np.sin(2 * np.pi * rates * seconds[:, None, None] + phases).sum(1) / 1.7  # [n, 5]
    moves = rng.random() < 0.35
    orbit, approach = math.radians(rng.normal(0, 5)) * moves, rng.normal(0, 0.06) * moves
    views = []
    for index in range(count):
        share = index / count - 0.5
        away = (eye - middle) * (1 + approach * share)
        cos, sin = math.cos(orbit * share), math.sin(orbit * share)
        away = np.array((away[0] * cos - away[1] * sin, away[0] * sin + away[1] * cos, away[2]))
        place = middle + away
        axes = _axes_towards(middle - place)
        place = place + waves[index, :2].mean() * 0.004 * shake * distance * axes[1]
        angle = math.radians(shake * field_of_view / 60)
        forward = axes[2] + axes[0] * waves[index, 2] * angle * 0.6
        forward = forward + axes[1] * waves[index, 3] * angle * 0.5
        views.append(View(place, _axes_towards(forward, waves[index, 4] * angle * 0.4)))
    return views


def sees(motion: Motion, camera: Camera, impact: Impact, fps: float) -> tuple[bool, np.ndarray]:
    """Return whether an impact is in the picture and not hidden, and where, x and y in -1 .. 1."""
    moment = min(round(impact.seconds * fps), len(camera.views) - 1)
    x, y, depth = camera.project(impact.point[None], moment)[0]
    inside = abs(x) < 0.97 and abs(y) < 0.97 and depth > 0
    if inside:
        motion.place_all(moment)
        inside = _is_visible(motion, camera.views[moment].place, impact.point, impact.bodies)
    return bool(inside), np.array((x, y))

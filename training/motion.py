"""Motions of objects and the times of their contacts.

Times are in seconds. Places are in -1 to 1, y downwards. The functions draw their details from
`rng`, and `stop` is the end of the clip.
"""

# n frame times, E events

from dataclasses import dataclass, field

import numpy as np

# Speed of a hit of force 1, in half frame heights per second.
FULL_SPEED = 4.0
MIN_GAP_SECONDS = 0.12
# A slower contact makes no sound, because it can hardly be seen.
MIN_SPEED = 0.3


@dataclass(frozen=True)
class Touch:
    """A contact.

    Attributes:
        seconds: its time.
        force: 0 to 1.
        x, y: its place.
    """

    seconds: float
    force: float
    x: float
    y: float


@dataclass
class Path:
    """The motion of an object.

    Attributes:
        places: [n, 2], its place at each frame.
        touches: its contacts, in order of time.
        angles: [n], in radians.
        rubbing: [n], 0 to 1, the speed at which it slides on a surface.
    """

    places: np.ndarray
    touches: list[Touch] = field(default_factory=list)
    angles: np.ndarray | None = None
    rubbing: np.ndarray | None = None


def force_of(speed: float) -> float:
    """The force (0.06 to 1) of a contact at this speed."""
    return float(np.clip(speed / FULL_SPEED, 0.06, 1.0))


def bounce(rng: np.random.Generator, times: np.ndarray, stop: float, floor: float) -> Path:
    """An object that falls, bounces lower and lower, rests, and hops again.

    Args:
        rng: of the details.
        times: [n], of the frames.
        stop: end of the clip.
        floor: y of the centre when the object lies on the floor.
    """
    gravity = rng.uniform(3.0, 9.0)
    restitution = rng.uniform(0.5, 0.88)
    room = floor + 0.85  # height up to the frame's top
    x, speed_x = rng.uniform(-0.6, 0.6), rng.uniform(-0.35, 0.35)
    height = rng.uniform(0.3, 1.0) * room
    x_places = _reflect(x + speed_x * times, -0.75, 0.75)
    y_places = np.full(len(times), floor)
    touches: list[Touch] = []
    # It is held until `start` and then dropped.
    start = rng.uniform(0.0, 0.5)
    y_places[times < start] = floor - height
    launch, at = 0.0, start
    while at < stop:
        if height > 0:  # a drop from rest
            duration = np.sqrt(2 * height / gravity)
            inside = (times >= at) & (times < at + duration)
            y_places[inside] = floor - height + 0.5 * gravity * (times[inside] - at) ** 2
            impact, height = gravity * duration, 0.0
        else:
            duration = 2 * launch / gravity
            inside = (times >= at) & (times < at + duration)
            since = times[inside] - at
            y_places[inside] = floor - launch * since + 0.5 * gravity * since**2
            impact = launch
        at += duration
        if at < stop:
            x_now = float(_reflect(np.array([x + speed_x * at]), -0.75, 0.75)[0])
            touches.append(Touch(at, force_of(impact), x_now, floor))
        launch = restitution * impact
        if 2 * launch / gravity < MIN_GAP_SECONDS:
            at += rng.uniform(0.15, 0.8)
            launch = np.sqrt(2 * gravity * rng.uniform(0.15, 0.9) * room)
    return Path(np.stack((x_places, y_places), 1), touches)


def roam(rng: np.random.Generator, times: np.ndarray, stop: float, reach: float) -> Path:
    """An object that moves straight from wall to wall; its speed may change at each wall.

    Args:
        rng: of the details.
        times: [n], of the frames.
        stop: end of the clip.
        reach: largest distance of its centre from the middle, in x and y.
    """
    place = rng.uniform(-0.8, 0.8, 2) * reach
    angle = rng.uniform(0, 2 * np.pi)
    velocity = np.array([np.cos(angle), np.sin(angle)]) * rng.uniform(0.5, 2.2)
    if rng.random() < 0.4:  # along one axis
        axis = int(rng.integers(2))
        velocity[1 - axis] *= 0.03
    places, touches, at = np.zeros((len(times), 2)), [], 0.0
    while at < stop:
        with np.errstate(divide="ignore"):
            wait = np.where(velocity > 0, reach - place, -reach - place) / velocity
        axis = int(np.argmin(wait))
        duration = max(float(wait[axis]), 1e-3)
        inside = (times >= at) & (times < at + duration)
        places[inside] = place + velocity * (times[inside] - at)[:, None]
        at, place = at + duration, place + velocity * duration
        speed = abs(float(velocity[axis]))
        if at < stop and speed > MIN_SPEED:
            edge = np.clip(place + 0.1 * np.sign(velocity) * (np.arange(2) == axis), -1, 1)
            touches.append(Touch(at, force_of(speed), float(edge[0]), float(edge[1])))
        velocity[axis] *= -1
        norm = float(np.hypot(*velocity))
        wanted = np.clip(norm * rng.uniform(0.55, 1.7), 0.4, 3.0)
        velocity *= wanted / norm
    return Path(places, touches)


def knock(
    rng: np.random.Generator, times: np.ndarray, stop: float, throw: float, arm: float = 1.0
) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """The distance [n] of a striker from its contact, and (time, force) of each contact.

    Args:
        rng: of the details.
        times: [n], of the frames.
        stop: end of the clip.
        throw: largest distance.
        arm: ratio of the contact's speed to the change of the distance.
    """
    regular = rng.random() < 0.4
    beat = rng.uniform(0.22, 0.9)
    at, touches, distance = 0.0, [], np.zeros(len(times))
    previous = -rng.uniform(0.0, 0.4)
    while previous < stop:
        gap = beat if regular else rng.uniform(0.2, 1.1)
        if rng.random() < 0.1:
            gap += rng.uniform(0.3, 1.0)
        at = previous + gap
        stroke = min(gap, rng.uniform(0.2, 0.5))
        amplitude = throw * rng.uniform(0.25, 1.0)
        rise, fall = (0.6 * stroke, 0.4 * stroke)
        inside = (times >= previous) & (times < at)
        since, left = times[inside] - previous, at - times[inside]
        up = np.minimum(since / rise, 1.0)
        down = np.minimum(left / fall, 1.0)
        curve = np.minimum(np.sin(0.5 * np.pi * up), 1 - (1 - down) ** 2)
        distance[inside] = amplitude * curve
        speed = 2 * amplitude / fall
        if 0.02 < at < stop:
            touches.append((at, force_of(0.5 * arm * speed)))
        previous = at
    return distance, touches


def drip(
    rng: np.random.Generator, times: np.ndarray, stop: float, spout: float, surface: float
) -> tuple[np.ndarray, np.ndarray, list[tuple[float, float]]]:
    """The heights [n] and visibility [n] of falling drops, and (time, force) of their impacts.

    Args:
        rng: of the details.
        times: [n], of the frames.
        stop: end of the clip.
        spout: y from which the drops fall.
        surface: y of the water.
    """
    gravity = rng.uniform(5.0, 10.0)
    fall = np.sqrt(2 * (surface - spout) / gravity)
    heights, shown = np.full(len(times), spout), np.zeros(len(times))
    touches, at = [], rng.uniform(0.0, 0.4)
    regular, beat = rng.random() < 0.5, rng.uniform(fall + 0.1, fall + 0.8)
    while at < stop:
        inside = (times >= at - 0.08) & (times < at + fall)
        shown[inside] = 1.0
        since = np.maximum(times[inside] - at, 0.0)
        heights[inside] = spout + 0.5 * gravity * since**2
        if at + fall < stop:
            touches.append((at + fall, float(rng.uniform(0.2, 0.8))))
        at += beat if regular else rng.uniform(fall + 0.08, fall + 0.9)
    return heights, shown, touches


def slide(rng: np.random.Generator, times: np.ndarray, stop: float, floor: float) -> Path:
    """An object that is pushed along the floor again and again, and may hit a wall.

    Args:
        rng: of the details.
        times: [n], of the frames.
        stop: end of the clip.
        floor: y of its centre.
    """
    x, at = rng.uniform(-0.6, 0.6), rng.uniform(0.0, 0.4)
    x_places, rubbing = np.full(len(times), x), np.zeros(len(times))
    touches: list[Touch] = []
    direction = 1.0 if x < 0 else -1.0
    while at < stop:
        speed, friction = rng.uniform(0.8, 3.0), rng.uniform(0.8, 3.0)
        stopped = speed / friction
        room = 0.75 - direction * x
        root = speed**2 - 2 * friction * room
        hits = root > MIN_SPEED**2
        duration = (speed - np.sqrt(root)) / friction if hits else stopped
        inside = (times >= at) & (times < at + duration)
        since = times[inside] - at
        x_places[inside] = x + direction * (speed * since - 0.5 * friction * since**2)
        rubbing[inside] = np.clip((speed - friction * since) / 3.0, 0, 1)
        x += direction * (speed * duration - 0.5 * friction * duration**2)
        at += duration
        if hits and at < stop:
            touches.append(Touch(at, force_of(np.sqrt(root)), x + 0.1 * direction, floor))
        x_places[times >= at] = x
        if abs(x) > 0.3:
            direction = -np.sign(x)
        at += rng.uniform(0.1, 0.7)
    return Path(np.stack((x_places, np.full(len(times), floor)), 1), touches, rubbing=rubbing)


def shake(
    rng: np.random.Generator, times: np.ndarray, stop: float
) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """The shift [n], -1 to 1, of an object that is shaken, and (time, force) of what hits inside.

    It is shaken to and fro in bouts with pauses. Where it turns, what is in it hits its wall, and a
    moment later falls back once or twice, more softly.

    Args:
        rng: of the details.
        times: [n], of the frames.
        stop: end of the clip.
    """
    shift, touches = np.zeros(len(times)), []
    at = float(rng.uniform(0.1, 0.5))
    while at < stop:
        side = float(rng.choice((-1.0, 1.0)))
        reach, period = rng.uniform(0.4, 1.0), rng.uniform(0.32, 0.7)  # seconds to and fro
        turns = [at + 0.5 * period * k for k in range(int(rng.integers(4, 10)))]
        begin, end = turns[0] - 0.25 * period, turns[-1] + 0.25 * period
        inside = (times >= begin) & (times < end)
        shift[inside] = side * reach * np.sin(2 * np.pi * (times[inside] - begin) / period)
        for turn in turns:
            force = float(np.clip(0.25 * reach / period, 0.06, 1.0)) * rng.uniform(0.8, 1.2)
            grains = [turn, *(turn + np.sort(rng.uniform(0.015, 0.045, int(rng.integers(1, 3)))))]
            softer = (1.0, 0.35, 0.2)
            touches += [(t, force * s) for t, s in zip(grains, softer, strict=False) if t < stop]
        at = end + rng.uniform(0.3, 1.0)
    return shift, touches


def wander(rng: np.random.Generator, times: np.ndarray) -> np.ndarray:
    """The places [n, 2] of an object that drifts smoothly and touches nothing."""
    rates = rng.uniform(0.1, 0.7, (2, 2)) * 2 * np.pi
    phases = rng.uniform(0, 2 * np.pi, (2, 2))
    sizes = rng.uniform(0.1, 0.45, (2, 2))
    centre = rng.uniform(-0.5, 0.5, 2)
    waves = sizes * np.sin(rates * times[:, None, None] + phases)  # [n, 2, 2]
    return centre + waves.sum(-1)


def envelope(rng: np.random.Generator, times: np.ndarray) -> np.ndarray:
    """A slowly changing level [n] in 0 to 1."""
    base = rng.uniform(0.2, 0.9)
    rates, phases = rng.uniform(0.05, 0.5, 3), rng.uniform(0, 2 * np.pi, 3)
    waves = np.sin(2 * np.pi * rates * times[:, None] + phases).sum(-1) / 3
    level = base * (1 + rng.choice([0.1, 0.8]) * waves)
    if rng.random() < 0.25:  # it starts or stops within the clip
        edge = rng.uniform(times[0], times[-1])
        sign = 1 if rng.random() < 0.5 else -1
        level = level / (1 + np.exp(np.clip(-sign * (times - edge) / 0.08, -60, 60)))
    return np.clip(level, 0.0, 1.0)


def _reflect(x: np.ndarray, low: float, high: float) -> np.ndarray:
    span = high - low
    folded = np.mod(x - low, 2 * span)
    return low + np.where(folded > span, 2 * span - folded, folded)

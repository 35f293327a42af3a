"""Find impacts and rubbing in the contact forces of a simulated clip."""

# C contacts, N time steps, A latent frames

import math
from dataclasses import dataclass

import numpy as np

from training.rendered.loose import IMMOVABLE
from training.rendered.simulate import Motion
from training.rendered.world import TIME_STEP, Part, World

LATENT_RATE = 50
IMPACT_SECONDS = 0.016  # over which the force of an impact is summed
DEAD_SECONDS = 0.03  # of a pair after an impact
LEAST_SPEED = 0.04  # m/s that an impact changes, or it is none
# Of the speed that an impact changes, what the surfaces approach with. It is a half or more where
# they meet, and nothing where bodies that lie on one another only share a load anew. A part with an
# effective mass is pushed while it hits, so its speed says less.
LEAST_APPROACH = 0.2
APPROACH_SECONDS = 0.004  # after the beginning of an impact, in which they approach fastest
FIRST_SECONDS, LAST_SECONDS = 0.03, 0.06  # no impact so near the start and the end of a clip
FULL_SPEED = 4.0  # half picture heights a second of a very hard hit
HEARD_SPEED = 0.12  # half picture heights a second; softer impacts make no sound
SLIDES, ROLLS = 0.12, 0.25  # m/s from which rubbing is heard
_DEFAULT = Part("plastic", 0.3, 0.5, moves=False)


@dataclass(frozen=True)
class Impact:
    """One body hits another.

    Attributes:
        seconds: when it begins.
        speed: change of speed, m/s.
        bodies: their numbers in the model.
        point: where, metres, [3].
    """

    seconds: float
    speed: float
    bodies: tuple[int, int]
    point: np.ndarray


def part_of(world: World, motion: Motion, body: int) -> Part:
    """Return what sounds when a body is hit."""
    return world.parts.get(motion.name_of(body), _DEFAULT)


def _reduced_mass(world: World, motion: Motion, pair: np.ndarray) -> float | None:
    """Return the mass that a pair's impact moves, kg; None where neither body moves."""
    inverse = 0.0
    for body in pair:
        mass = part_of(world, motion, body).effective_mass
        if body == 0 or mass == IMMOVABLE:
            continue
        inverse += 1 / (mass or max(motion.model.body_mass[body], 1e-4))
    return 1 / inverse if inverse else None


def _falls_freely(world: World, motion: Motion, pair: np.ndarray) -> bool:
    masses = [part_of(world, motion, body).effective_mass for body in pair]
    return all(mass in (None, IMMOVABLE) for mass in masses)


def find_impacts(world: World, motion: Motion) -> list[Impact]:
    """Return all impacts of a clip in order of time.

    An impact is a force over 1.3 times the mean of the 45 to 3 ms before it, where the surfaces
    approach. Its impulse over 16 ms, divided by the mass that it moves, is its speed. The speed of
    linked bodies is no more than what they approach with.
    """
    count = round(motion.seconds / TIME_STEP)
    window, early, late = (round(s / TIME_STEP) for s in (IMPACT_SECONDS, 0.045, 0.003))
    dead, soon = round(DEAD_SECONDS / TIME_STEP), round(APPROACH_SECONDS / TIME_STEP)
    index = np.arange(count)
    low, high = np.maximum(index - early, 0), np.maximum(index - late, 0)
    found = []
    for pair in np.unique(motion.pairs, axis=0):
        mass = _reduced_mass(world, motion, pair)
        if mass is None:
            continue
        of_pair = (motion.pairs == pair).all(1)
        force = np.bincount(motion.steps[of_pair], motion.forces[of_pair], count)[:count]  # [N]
        total = np.concatenate(([0], np.cumsum(force)))
        before = (total[high] - total[low]) / np.maximum(high - low, 1)
        falls, approach = _falls_freely(world, motion, pair), np.zeros(count)
        linked = any(part_of(world, motion, body).linked for body in pair)
        np.maximum.at(approach, motion.steps[of_pair], motion.speeds[of_pair])
        above = force > 1.3 * before + 0.02 * mass * 9.81
        starts = np.flatnonzero(above & ~np.concatenate(([False], above[:-1])))
        events: list[tuple[int, float]] = []
        for start in starts.tolist():
            impulse = np.clip(force[start : start + window] - before[start], 0, None).sum()
            speed = impulse * TIME_STEP / mass
            met = approach[max(start - 1, 0) : start + soon].max()
            if linked:
                speed = min(speed, met)
            if speed < LEAST_SPEED or (falls and met < LEAST_APPROACH * speed):
                continue
            if events and start - events[-1][0] < dead:
                if speed > 2.5 * events[-1][1]:  # a soft touch just before the hit
                    events[-1] = (start, speed)
                continue
            events.append((start, speed))
        for start, speed in events:
            near = of_pair & (motion.steps >= start) & (motion.steps < start + window)
            weight = motion.forces[near] + 1e-9
            point = (motion.points[near] * weight[:, None]).sum(0) / weight.sum()
            found.append(Impact(start * TIME_STEP, speed, (int(pair[0]), int(pair[1])), point))
    last = motion.seconds - LAST_SECONDS
    kept = [impact for impact in found if FIRST_SECONDS <= impact.seconds < last]
    return sorted(kept, key=lambda impact: impact.seconds)


def force_of(world: World, motion: Motion, impact: Impact, scale: float) -> float:
    """Return how hard an impact looks, 0.02 .. 1, or 0 where it is too soft to be heard.

    Args:
        world, motion: of the clip.
        impact: one of its impacts.
        scale: half picture heights a metre, at the scene's distance.
    """
    speed = impact.speed * scale
    if speed < HEARD_SPEED:
        return 0.0
    masses = [
        motion.model.body_mass[body]
        for body in impact.bodies
        if body and part_of(world, motion, body).moves
    ]
    weight = np.clip((min(masses, default=0.5) / 0.4) ** 0.12, 0.6, 1.4)
    return float(np.clip((1 - math.exp(-speed / FULL_SPEED)) * weight, 0.02, 1))


def rub_levels(world: World, motion: Motion) -> np.ndarray:
    """Return the level of sliding and of rolling, 0 .. 1, [2, A]."""
    count = round(motion.seconds * LATENT_RATE)
    levels = np.zeros((2, count))
    for seconds, first, second, sliding, moving, force in motion.rubs:
        masses = [
            motion.model.body_mass[int(body)]
            for body in (first, second)
            if body
            and (part := part_of(world, motion, int(body))).moves
            and part.effective_mass is None
        ]
        if not masses or force < 0.15 * 9.81 * min(masses):
            continue
        frame = min(int(seconds * LATENT_RATE), count - 1)
        if sliding > SLIDES:
            levels[0, frame] = max(levels[0, frame], min(sliding / 3, 1))
        elif moving > ROLLS:
            levels[1, frame] = max(levels[1, frame], 0.35 * min(moving / 4, 1))
    smooth = np.ones(5) / 5
    return np.stack([np.convolve(level, smooth, "same") for level in levels])

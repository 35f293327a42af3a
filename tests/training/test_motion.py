"""Whether sound follows motion: the measure, on motions and sounds that are known."""

import numpy as np
import pytest
import torch

from benchmarks.quality import motion

SECONDS = 8


@pytest.fixture
def moved() -> np.ndarray:
    """A thing that jerks at random times."""
    rng = np.random.default_rng(0)
    return np.maximum(rng.normal(20, 5, 25 * SECONDS), rng.exponential(1, 25 * SECONDS) * 15)


def test_a_sound_as_loud_as_the_motion_scores_one_and_another_does_not(moved: np.ndarray) -> None:
    own = motion.compare_with_shifts(moved, 2 * moved - 60)
    assert own["correlation"] == pytest.approx(1)
    assert own["share_below"] == 1
    other = motion.compare_with_shifts(moved, np.random.default_rng(1).normal(size=len(moved)))
    assert abs(other["correlation"]) < 0.2  # measured: -0.06
    assert abs(own["shifted_mean"]) < 0.1  # measured: 0.00


def test_a_steady_sound_scores_nothing(moved: np.ndarray) -> None:
    assert motion.compare_with_shifts(moved, np.full(len(moved), -30.0))["correlation"] == 0


def test_motion_is_where_pictures_change() -> None:
    frames = torch.zeros(10, 8, 8, 3, dtype=torch.uint8)
    frames[5:] = 200  # a cut
    curve = motion.measure_motion(frames)
    assert int(curve.argmax()) == 5
    assert np.count_nonzero(curve > 1e-6) == 1


def test_levels_are_those_of_the_frames() -> None:
    sound = torch.zeros(motion.SAMPLES * 3)
    sound[motion.SAMPLES : 2 * motion.SAMPLES] = 0.1
    assert motion.measure_level(sound) == pytest.approx([-60, -20, -60])

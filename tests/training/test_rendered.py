"""Rendered clips: contacts at the right time, the same clip of a seed, labels that fit."""

import ctypes.util
import math
import os

import numpy as np
import pytest

# MuJoCo reads it when it is imported.
os.environ["MUJOCO_GL"] = "osmesa" if ctypes.util.find_library("OSMesa") else "disable"

from training import clips, labels
from training.rendered import contacts, simulate
from training.rendered.clip import KINDS, make_clip
from training.rendered.stream import TRAINING_SHARES, Crops, collate
from training.rendered.world import UNSEEN_SHAPES, Part, Release, World


def falling_ball(height: float, restitution: float = 0.7) -> list[contacts.Impact]:
    world = World(np.random.default_rng(0))
    world.add_floor()
    world.add_free("ball", "wood", 0.1, (0, 0, height), restitution=restitution, release=Release(0))
    motion = simulate.simulate(world, world.xml(45), 3.0, np.arange(75) / 25)
    return contacts.find_impacts(world, motion)


@pytest.mark.parametrize("height", [0.6, 1.0, 1.7])
def test_a_ball_lands_when_gravity_says(height: float) -> None:
    first = falling_ball(height)[0]
    assert first.seconds == pytest.approx(math.sqrt(2 * (height - 0.1) / 9.81), abs=0.001)


def test_a_ball_bounces_in_ever_shorter_times_and_more_softly() -> None:
    impacts = falling_ball(1.2)[:8]  # the last ones follow within the dead time of a pair
    gaps = np.diff([impact.seconds for impact in impacts])
    assert len(impacts) == 8
    assert (np.diff(gaps) < 0).all()
    assert [i.speed for i in impacts] == sorted((i.speed for i in impacts), reverse=True)


def test_blocks_that_rest_on_one_another_make_no_impact() -> None:
    world = World(np.random.default_rng(0), settle_seconds=0.4, resting=True)
    world.add_floor()
    look, part = world.look("wood"), Part("wood", 1.0, 0.5, moves=True)
    for level in range(3):
        at = (0.004 * level, 0, 0.1 * (2 * level + 1) + 0.001 * level)
        world.add_block((0.1, 0.1, 0.1), look, at, part, Release(0))
    motion = simulate.simulate(world, world.xml(45), 0.5, np.arange(12) / 25)
    assert len(motion.forces)
    assert contacts.find_impacts(world, motion) == []


def test_the_restitution_asked_for_is_the_one_simulated() -> None:
    first, second, *_ = falling_ball(1.6, restitution=0.8)
    flight = second.seconds - first.seconds
    fall_speed = math.sqrt(2 * 9.81 * 1.5)
    assert 9.81 * flight / 2 / fall_speed == pytest.approx(0.8, abs=0.04)


@pytest.mark.long
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_scene_is_heard_and_seen(kind: str) -> None:
    clip = make_clip((1, 2), 3.0, kind=kind, size=None)
    times = [event.seconds for event in clip.events]
    assert times == sorted(times)
    assert all(0.03 <= seconds < 2.94 for seconds in times)
    assert any(event.scored for event in clip.events) or kind in ("slide", "dominoes")
    hits = clip.scene.hits
    assert (hits["force"] >= 0.02).all()
    assert (hits["force"] <= 1).all()
    assert (np.abs(hits["screen"]) < 0.97).all()  # what is outside the picture makes no sound


def test_a_seed_gives_the_same_clip_again() -> None:
    first, second = (make_clip((4, 7), 2.0, kind="drop", size=None) for _ in range(2))
    assert first.events == second.events
    for name, values in first.scene.hits.items():
        np.testing.assert_array_equal(values, second.scene.hits[name])


def test_shares_choose_among_the_kinds_that_they_name() -> None:
    made = make_clip((4, 8), 2.0, shares={"clap": 0.0, "drum": 1.0}, size=None)
    assert made.kind == "drum"
    assert list(TRAINING_SHARES) == list(KINDS)
    assert sum(TRAINING_SHARES.values()) == pytest.approx(1)
    assert TRAINING_SHARES["tower"] > 1 / len(KINDS) > TRAINING_SHARES["clap"]


def test_unseen_shapes_are_in_no_training_clip() -> None:
    world = World(np.random.default_rng(3))
    assert not {world.pick_shape() for _ in range(200)} & set(UNSEEN_SHAPES)


def test_labels_of_a_rendered_batch_are_those_of_a_drawn_one() -> None:
    made = [make_clip((5, index), 4.0, size=None) for index in range(2)]
    for clip in made:
        clip.pictures = np.zeros((100, 224, 224, 3), np.uint8)
    batch = collate(made)
    crops = Crops(32, 5)(np.random.default_rng(0), lambda seconds, count: batch)
    assert crops.drawn is not None
    assert crops.drawn.shape == (5, 32, 3, 224, 224)
    assert len(crops) == 5
    assert int(crops.owner.max()) < 5
    drawn = labels.crop(clips.make_batch(0, 0, 5, 4.0), 0, 32)
    for ours, theirs in (
        (labels.dense_maps(crops), labels.dense_maps(drawn)),
        (labels.layer_levels(crops, 16), labels.layer_levels(drawn, 16)),
        (labels.onset_curve(crops, 0.02, 64, 0.03), labels.onset_curve(drawn, 0.02, 64, 0.03)),
    ):
        assert ours.shape == theirs.shape
        assert ours.isfinite().all()


def test_frames_show_the_scene() -> None:
    if not ctypes.util.find_library("OSMesa"):
        refuse = pytest.fail if os.environ.get("CI") else pytest.skip
        refuse("drawing without a GPU needs Debian's libosmesa6")
    clip = make_clip((6, 1), 0.6, kind="hammer", size=48)
    assert clip.pictures is not None
    assert clip.pictures.shape == (15, 48, 48, 3)
    assert clip.pictures.std() > 10  # not one colour
    changes = np.abs(np.diff(clip.pictures.astype(int), axis=0)).mean((1, 2, 3))
    assert changes.max() > 0.5  # the hammer moves

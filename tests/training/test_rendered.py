"""Rendered clips: contacts at the right time, the same clip of a seed, labels that fit."""

import io
import math
import os
import subprocess
import sys
import threading
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from tests.patience import wait_until
from tests.training.drawing import require_drawing
from training import clips, labels
from training.clips import Batch
from training.rendered import (
    backdrop,
    camera,
    contacts,
    daily,
    driven,
    photographs,
    simulate,
    wet,
)
from training.rendered.clip import (
    KINDS,
    LEAST_SEEN_FORCE,
    MEASURED,
    RUBS_HEARD,
    RenderedClip,
    _choose_kind,
    _expose,
    make_clip,
)
from training.rendered.stream import SUFFIX, TRAINING_SHARES, Draw, RenderedPool, collate
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
    quiet = ("slide", "dominoes", "vehicle", "swing", "cloth", "paper")
    assert any(event.scored for event in clip.events) or kind in quiet
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


def test_drops_are_heard_when_gravity_says(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[float, float]] = []
    let_fall = wet._let_fall

    def note(world: World, starts: list[Any], *args: Any) -> None:
        begun.extend((seconds, place[2]) for seconds, place, _ in starts)
        let_fall(world, starts, *args)

    monkeypatch.setattr(wet, "_let_fall", note)
    world = World(np.random.default_rng((9, 4)))
    world.add_floor()
    wet.drips(world, 2.0)
    motion = simulate.simulate(world, world.xml(45), 2.0, np.arange(50) / 25)
    heard = np.array([impact.seconds for impact in contacts.find_impacts(world, motion)])
    falls = heard - np.array([seconds for seconds, _ in begun])[: len(heard)]
    assert len(heard) >= 2
    assert np.ptp(falls) < 0.002  # each drop falls as far as the others, and is gone afterwards
    assert math.sqrt(2 * 0.1 / 9.81) < falls[0] < math.sqrt(2 * 0.3 / 9.81)


@pytest.mark.parametrize("kind", ["steps", "keys", "chop"])
def test_what_is_planned_is_heard_when_it_is_planned(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[float] = []

    def plan(*args: Any) -> list[tuple[float, float]]:
        strikes = driven.plan_strikes(*args)
        planned.extend(seconds for seconds, _ in strikes if seconds < 1.9)
        return strikes

    monkeypatch.setattr(daily, "plan_strikes", plan)
    world = World(np.random.default_rng((9, 2)))
    world.add_floor()
    daily.DAILY[kind](world, 2.0)
    motion = simulate.simulate(world, world.xml(45), 2.0, np.arange(50) / 25)
    heard = [impact.seconds for impact in contacts.find_impacts(world, motion)]
    assert len(planned) > 2
    assert np.mean([min(abs(at - seconds) for at in heard) < 0.03 for seconds in planned]) > 0.7
    assert len(heard) <= len(planned) + 1


def test_held_out_clips_show_the_kinds_that_figures_are_of() -> None:
    rng = np.random.default_rng(0)
    chosen = {_choose_kind(rng, None) for _ in range(300)}
    assert chosen == set(MEASURED)
    assert set(KINDS) > set(MEASURED)


def test_unseen_shapes_are_in_no_training_clip() -> None:
    world = World(np.random.default_rng(3))
    assert not {world.pick_shape() for _ in range(200)} & set(UNSEEN_SHAPES)


class NothingReady:
    """A stream of a renderer that has made nothing yet."""

    def take(self) -> clips.Batch | None:
        """Return no batch."""
        return None


def test_labels_of_a_rendered_batch_are_those_of_a_drawn_one(tmp_path: Path) -> None:
    made = [make_clip((5, index), 2.0, size=None) for index in range(2)]
    for clip in made:
        clip.pictures = np.zeros((50, 224, 224, 3), np.uint8)
    torch.save(collate(made), tmp_path / f"first{SUFFIX}")
    pool = RenderedPool(NothingReady(), 4, torch.device("cpu"), 0, tmp_path)
    assert pool.draw_crops(32, 5) is None
    assert pool.refresh() is not None
    assert pool.refresh() is None  # each file is read once
    crops = pool.draw_crops(16, 3)
    assert crops is not None
    assert crops.drawn is not None
    assert crops.drawn.shape == (3, 16, 3, 224, 224)
    assert len(crops) == 3
    assert len(crops.owner) == 0 or int(crops.owner.max()) < 3
    drawn = labels.crop(clips.make_batch(0, 0, 3, 2.0), 0, 16)
    for ours, theirs in (
        (labels.dense_maps(crops), labels.dense_maps(drawn)),
        (labels.layer_levels(crops, 8), labels.layer_levels(drawn, 8)),
        (labels.onset_curve(crops, 0.02, 32, 0.03), labels.onset_curve(drawn, 0.02, 32, 0.03)),
    ):
        assert ours.shape == theirs.shape
        assert ours.isfinite().all()


@pytest.mark.parametrize("exposed", [0.0, 0.03])
def test_a_frame_is_exposed_around_its_own_time(exposed: float) -> None:
    moments = np.array([0.0, 0.05, 0.05, 0.1])  # two frames of a slow camera are one picture
    shown, frames, exposures = _expose(moments, exposed, 0.12)
    assert (np.diff(shown) > 0).all()
    np.testing.assert_array_equal(shown[frames], moments)
    assert shown[exposures[1:3]].mean(1) == pytest.approx(moments[1:3])
    assert np.ptp(shown[exposures[1]]) == pytest.approx(exposed)


def test_soft_hits_of_what_slides_are_part_of_the_rubbing() -> None:
    clip = make_clip((7, 3), 3.0, kind="slide", size=None)
    rubs = clip.scene.layers["level"].max(0) > RUBS_HEARD
    assert rubs.any()
    for event in clip.events:
        if event.force < LEAST_SEEN_FORCE:
            assert not rubs[int(event.seconds * 50)]


def test_pictures_are_the_same_on_whatever_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    require_drawing()
    from training.rendered import draw

    drawn: list[np.ndarray] = []

    def draw_on_sheets(
        motion: simulate.Motion,
        view: camera.Camera,
        rng: np.random.Generator,
        size: int,
        exposures: np.ndarray,
    ) -> np.ndarray:
        view.views[6:] = []
        for side in (48, 150, 896):  # one frame's pictures at a time, nine, and all of them
            monkeypatch.setattr(draw, "_SHEET_SIDE", side)
            drawn.append(draw.draw_frames(motion, view, deepcopy(rng), size, exposures[:6]))
        return drawn[0]

    make_clip((6, 0), 0.6, kind="racket", size=48, varied=True, draw=draw_on_sheets)
    for pictures in drawn[1:]:
        # Where a picture lies on the sheet, its edges may be rounded to another pixel.
        assert (pictures != drawn[0]).any(-1).mean() < 2e-3


def test_frames_show_the_scene() -> None:
    require_drawing()
    clip = make_clip((6, 1), 0.6, kind="hammer", size=48)
    assert clip.pictures is not None
    assert clip.pictures.shape == (15, 48, 48, 3)
    assert clip.pictures.std() > 10  # not one colour
    changes = np.abs(np.diff(clip.pictures.astype(int), axis=0)).mean((1, 2, 3))
    assert changes.max() > 0.5  # the hammer moves


def test_another_renderer_draws_the_same_events() -> None:
    shown: list[tuple[int, int]] = []

    def draw(
        motion: simulate.Motion,
        view: camera.Camera,
        rng: np.random.Generator,
        size: int,
        exposures: np.ndarray,
    ) -> np.ndarray:
        shown.append((len(motion.moments), len(view.views)))
        return np.full((len(view.views), size, size, 3), 7, np.uint8)

    clip = make_clip((6, 1), 0.6, kind="hammer", size=48, draw=draw)
    assert shown == [(15, 15)]
    assert clip.pictures is not None
    assert (clip.pictures == 7).all()
    assert clip.events == make_clip((6, 1), 0.6, kind="hammer", size=None).events


def test_a_backdrop_stands_behind_the_action_and_changes_no_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, varied = (
        make_clip((6, 2), 1.0, kind="hammer", varied=varied, size=None) for varied in (False, True)
    )
    assert varied.events == plain.events
    monkeypatch.setattr(backdrop, "BARE_SHARE", 0.0)
    monkeypatch.setattr(backdrop, "WALL_SHARE", 1.0)
    world, rng = World(np.random.default_rng(1)), np.random.default_rng(3)
    world.add_floor()
    world.add_free("ball", "wood", 0.1, (0, 0, 1), release=Release(0))
    names = backdrop.add_backdrop(world, rng)
    assert names
    moments = np.arange(20) / 25
    motion = simulate.simulate(world, world.xml(45), 0.8, moments)
    view = camera.place_camera(world, motion, contacts.find_impacts(world, motion), 45, 25)
    backdrop.place_backdrop(motion.model, names, view, rng)
    motion.place_all(0)
    near = motion.model.vis.map.znear * motion.model.stat.extent
    assert near < 0.05 * view.distance
    for name in names:
        place = motion.data.geom(name).xpos
        ((_, _, depth),) = view.project(place[None], 0)
        assert depth > view.distance
        assert place[2] > 0


def test_photographs_are_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    monkeypatch.setattr(photographs, "FOLDER", None)
    assert photographs.draw_photograph(rng, 16) is None
    across = np.broadcast_to(np.linspace(0, 255, 64)[None, :, None], (32, 64, 3))
    Image.fromarray(across.astype(np.uint8)).save(tmp_path / "one.jpg")
    monkeypatch.setattr(photographs, "FOLDER", str(tmp_path))
    image = photographs.draw_photograph(rng, 16)
    assert image is not None
    shown = np.asarray(Image.open(io.BytesIO(image))).astype(int)
    assert shown.shape == (16, 16, 3)
    assert np.ptp(shown[8, :, 0]) > 10  # it shows a part of the panorama from left to right


@pytest.mark.parametrize("kind", ["vehicle", "swing"])
def test_a_continuous_sound_follows_the_speed(kind: str) -> None:
    clip = make_clip((8, 1), 3.0, kind=kind, size=None)
    layers, sprites = clip.scene.layers, clip.scene.frames["sprites"]
    (slot,) = np.flatnonzero(layers["kind"] >= 0)
    assert clip.scene.layers["level"][slot].max() > 0.3
    moved = np.linalg.norm(np.diff(sprites[:, 0, :2], axis=0), axis=1)  # between two frames
    level = layers["level"][slot].reshape(-1, 2).mean(1)
    assert np.corrcoef(moved, level[1:])[0, 1] > 0.6
    assert collate_numbers(clip).waveform().isfinite().all()


def test_a_glass_breaks_where_it_lands() -> None:
    clip = make_clip((64, 1), 3.0, kind="shatter", size=None)
    first, *rest = clip.events
    assert len(rest) > 3
    assert all(event.force < first.force for event in rest)
    sprites = clip.scene.frames["sprites"]
    shown = sprites[:, :, 5].sum(1)
    frame = round(first.seconds * 25)
    assert shown[frame - 2] == 1  # the whole glass
    assert shown[frame + 2] > 4  # its shards


def collate_numbers(clip: RenderedClip) -> clips.Batch:
    """A batch of the numbers of a clip that was not drawn."""
    return clips.collate([clip.scene])


def wait_for_ever(rng: np.random.Generator, draw: Draw) -> Batch:
    """A recipe that tells that it began, and never ends."""
    print("began", os.getpid(), flush=True)
    threading.Event().wait()
    raise AssertionError


@pytest.mark.long
def test_a_killed_training_leaves_no_rendering_process_and_no_memory() -> None:
    program = (
        "from training.rendered.stream import RenderedStream\n"
        "from tests.training.test_rendered import wait_for_ever\n"
        "if __name__ == '__main__':\n"
        "    stream = RenderedStream(1, wait_for_ever, num_workers=1)\n"
        "    print(stream._folder.name, flush=True)\n"
        "    stream.join()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as training:
        assert training.stdout is not None
        folder = Path(training.stdout.readline().strip())
        began, worker = training.stdout.readline().split()
        assert began == "began"
        assert folder.is_dir()
        training.kill()
    wait_until(lambda: not folder.exists() and not psutil.pid_exists(int(worker)))

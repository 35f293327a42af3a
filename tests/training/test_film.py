"""Other takes of rendered clips: labels go with the pictures, and events keep their times."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from training import clips, film, labels, render
from training.clips import Batch
from training.scene import FPS

SIZE, FRAMES, CLIPS = 224, 40, 3
SPOT = (-0.5, 0.25)  # of a bright square, where each clip's hit is


def make_rendered(hit_frames: tuple[int, ...] = (10, 20, 30), frames: int = FRAMES) -> Batch:
    """Grey clips with a bright square at `SPOT`, and one hit each."""
    count = len(hit_frames)
    batch = clips.make_batch(0, 0, CLIPS, FRAMES / FPS)
    first = {name: value[:1] for name, value in batch.hits.items()}
    hits = {name: value.repeat(count, *[1] * (value.ndim - 1)) for name, value in first.items()}
    batch.hits = hits | {
        "seconds": torch.tensor([frame / FPS for frame in hit_frames]),
        "screen": torch.tensor([SPOT] * count),
    }
    batch.owner = torch.arange(count)
    batch.frames["sprites"][..., 0], batch.frames["sprites"][..., 1] = SPOT
    batch.layers["kind"] = torch.full_like(batch.layers["kind"], -1)
    batch.drawn = torch.full((CLIPS, FRAMES, 3, SIZE, SIZE), 40, dtype=torch.uint8)
    x, y = (round((place + 1) / 2 * SIZE) for place in SPOT)
    batch.drawn[..., y - 6 : y + 6, x - 6 : x + 6] = 255
    return clips.take_first(labels.crop(batch, 0, frames), count)


@pytest.mark.parametrize("seed", range(2))
def test_a_hit_is_where_its_picture_shows_it(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(film, "PLAIN_SHARE", 0.0)
    batch = make_rendered((3, 12), 16)
    take = film.film(batch, np.random.default_rng(seed))
    assert take.drawn is not None
    assert take.drawn.dtype == torch.uint8
    assert take.drawn.shape == (2, 16, 3, SIZE, SIZE)
    torch.testing.assert_close(take.hits["seconds"], batch.hits["seconds"])
    for clip in range(2):
        frame = round(float(take.hits["seconds"][clip]) * FPS)
        light = take.drawn[clip, frame].float().mean(0)
        bright = (light > (light.max() + light.median()) / 2).nonzero().float().mean(0)
        found = (bright.flip(0) + 0.5) / SIZE * 2 - 1
        assert (found - take.hits["screen"][clip]).abs().max() < 0.12  # lens and shake move it
        sprite = take.frames["sprites"][clip, frame, 0, :2]
        torch.testing.assert_close(sprite, take.hits["screen"][clip])


def test_takes_differ_and_the_same_numbers_give_the_same_take() -> None:
    batch = make_rendered((3,), 10)
    takes = [film.take_again(batch, 8, np.random.default_rng(seed)).drawn for seed in (1, 2, 1)]
    assert torch.equal(takes[0], takes[2])
    assert not torch.equal(takes[0], takes[1])


def test_hues_turn_a_little_and_greys_stay() -> None:
    turned = []
    for seed in range(20):
        matrix = film._choose_colours(np.random.default_rng(seed))
        gain = matrix.sum(1)  # of white
        plain = matrix / gain[:, None]
        assert plain @ np.full(3, 0.4) == pytest.approx(np.full(3, 0.4))
        turned.append(plain[0, 0])  # what is left of red in red
    assert 0.5 < min(turned) < max(turned) <= 1.0


def test_pictures_do_not_depend_on_how_many_are_drawn_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = clips.make_batch(3, 0, 2, 8 / FPS)
    made = []
    for at_once in (3, 16):
        for module in (film, render):
            monkeypatch.setattr(module, "choose_frames_at_once", lambda device, n=at_once: n)
        drawn = batch.pictures()
        taken = film.film(replace(batch, drawn=drawn), np.random.default_rng(0)).drawn
        assert taken is not None
        made.append((drawn, taken))
    for one, other in zip(*made, strict=True):
        assert torch.equal(one, other)


def test_a_splice_takes_pictures_and_hits_from_another_clip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(film, "SPLICE_SHARE", 1.0)
    batch = make_rendered((4, 5, 36))
    assert batch.drawn is not None
    for clip in range(CLIPS):
        batch.drawn[clip] = clip
    batch.prompts = ["a", "b", ""]
    spliced = film.splice(batch, np.random.default_rng(0))
    shown = spliced.drawn[:, :, 0, 0, 0]
    assert shown[:, 0].tolist() == [0, 1, 2]
    assert shown[:, -1].tolist() == [1, 2, 0]
    # The late hit of the last clip is heard in the clip that shows it, and early ones stay.
    assert spliced.owner.tolist() == [0, 1, 1]
    for said, either in zip(spliced.prompts, ("ab", "b", "a"), strict=True):
        assert set(said) <= set(f"{either}, ")
    assert spliced.waveform().isfinite().all()


def test_a_hit_that_a_cut_hides_is_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(film, "SPLICE_SHARE", 1.0)
    batch = make_rendered()
    assert batch.drawn is not None
    batch.drawn[:] = torch.arange(CLIPS).view(-1, 1, 1, 1, 1)
    shown = film.splice(batch, np.random.default_rng(0)).drawn[:, :, 0, 0, 0]
    first = int((shown[0] != shown[0, 0]).nonzero()[0])
    late = make_rendered((first, first - 1, first - 4))
    spliced = film.splice(late, np.random.default_rng(0))
    assert len(spliced.owner) == 1
    assert spliced.hits["seconds"].tolist() == pytest.approx([(first - 4) / FPS])


def test_a_sound_anew_keeps_times_and_levels() -> None:
    batch = make_rendered()
    other = film.sound_anew(batch, np.random.default_rng(0))
    for name in ("seconds", "level", "force", "material"):
        torch.testing.assert_close(other.hits[name], batch.hits[name])
    ratio = other.hits["hz"] / batch.hits["hz"].clamp_min(1)
    assert ((ratio == 0) | ((ratio > 0.93) & (ratio < 1.07))).all()
    assert not torch.equal(other.waveform(), batch.waveform())


def test_labels_of_a_take_are_complete() -> None:
    take = film.take_again(make_rendered((3, 5), 10), 8, np.random.default_rng(3))
    assert labels.dense_maps(take).isfinite().all()
    assert labels.onset_curve(take, 0.02, 16, 0.03).max() <= 1

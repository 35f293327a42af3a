"""The generator of training clips: repeatable, and sounding exactly when it says."""

import numpy as np
import pytest
import torch

from training import clips, judge, labels, materials, motion, scene
from training.materials import MATERIALS


def test_a_seed_gives_the_same_scene() -> None:
    first, again = (scene.draw_scene((3, 7), 2.0) for _ in range(2))
    assert first.prompt == again.prompt
    for group in ("frames", "still", "hits", "layers"):
        for name, value in getattr(first, group).items():
            np.testing.assert_array_equal(value, getattr(again, group)[name])


def test_another_seed_gives_another_scene() -> None:
    first, other = (scene.draw_scene((3, index), 2.0) for index in (7, 8))
    assert not np.array_equal(first.frames["sprites"], other.frames["sprites"])


def test_a_clip_sounds_the_same_alone_and_in_a_batch() -> None:
    together = clips.make_batch(5, 0, 3, 2.0).waveform()
    alone = clips.make_batch(5, 1, 1, 2.0).waveform()
    # measured: 1e-7; transforms of several rows are summed in another order
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-5)


def test_pictures_repeat_and_show_motion() -> None:
    batch = clips.make_batch(5, 0, 1, 1.0, action="bounce")
    batch = labels.crop(batch, 0, 4)
    pictures = batch.pictures()
    assert pictures.shape == (1, 4, 3, 224, 224)
    assert pictures.dtype == torch.uint8
    torch.testing.assert_close(pictures, batch.pictures(), rtol=0, atol=0)
    assert pictures.float().std() > 3


@pytest.mark.parametrize("action", ["bounce", "strike", "tap", "clap", "slide"])
def test_sound_starts_at_the_labelled_times(action: str) -> None:
    match = judge.Match()
    batch = clips.make_batch(11, 0, 6, 4.0, action=action, quiet=True)
    sounds = batch.waveform()
    for clip, unscored in enumerate(labels.find_shoves(batch)):
        truth = batch.hits["seconds"][batch.owner == clip].tolist()
        match.add(judge.detect_onsets(sounds[clip]), judge.merge_close_events(truth), unscored)
    assert match.truth > (4 if action == "slide" else 12)
    assert match.f1 > 0.93  # measured: 0.97 to 1.00; soft hits under ringing ones are missed
    assert match.median_error_ms < 6  # measured: 3


def test_shoves_are_where_a_thing_starts_to_slide() -> None:
    batch = clips.make_batch(11, 0, 6, 4.0, action="slide", quiet=True)
    rubbing = batch.layers["level"].amax(1)  # [B, A] at 50 Hz
    shoves = labels.find_shoves(batch)
    assert sum(map(len, shoves)) > 12
    for clip, times in enumerate(shoves):
        for seconds in times:
            frame = int(seconds * 50)
            assert rubbing[clip, frame - 1] < 0.05 <= rubbing[clip, frame]
            assert rubbing[clip, frame : frame + 3].max() >= 0.2
    assert labels.find_shoves(clips.make_batch(11, 0, 2, 4.0, action="bounce", quiet=True)) == [
        [],
        [],
    ]


def test_what_cannot_be_seen_makes_no_sound() -> None:
    batch = clips.make_batch(11, 0, 4, 4.0, action="bounce", quiet=True)
    cut = labels.drop_late_hits(batch, 2.0)
    assert cut.hits["seconds"].max() < 2.0
    assert len(cut.owner) == int((batch.hits["seconds"] < 2.0).sum())
    before, after = batch.waveform(), cut.waveform()
    torch.testing.assert_close(after[:, : 2 * 48_000], before[:, : 2 * 48_000])
    assert not torch.equal(after, before)


def test_nothing_sounds_before_the_first_hit() -> None:
    batch = clips.make_batch(11, 0, 8, 4.0, action="bounce", quiet=True)
    sounds = batch.waveform()
    for clip in range(len(batch)):
        first = float(batch.hits["seconds"][batch.owner == clip].min())
        before = sounds[clip, : int(first * 48_000) - 1]
        assert before.abs().max() < 2e-3


def test_force_is_heard_as_loudness() -> None:
    batch = clips.make_batch(2, 0, 1, 2.0, action="tap", quiet=True)
    hits = {
        name: value[:1].repeat(2, *(1,) * (value.ndim - 1)) for name, value in batch.hits.items()
    }
    hits["level"] = torch.tensor([0.02, 0.1])
    hits["seconds"] = torch.tensor([0.2, 1.2])
    batch.hits, batch.owner = hits, torch.tensor([0, 0])
    sound = batch.waveform()[0]
    assert judge.level_db(sound, 1.2) - judge.level_db(sound, 0.2) > 10


def test_a_fall_obeys_gravity() -> None:
    rng = np.random.default_rng(0)
    times = np.arange(0, 3, 0.001)
    path = motion.bounce(rng, times, 3.0, floor=0.5)
    assert path.places[:, 1].max() <= 0.5 + 1e-6
    for touch in path.touches:
        at = path.places[int(touch.seconds * 1000), 1]
        assert at == pytest.approx(0.5, abs=0.02)


def test_frames_are_those_that_the_picker_shows() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        shown = scene.draw_frame_times(rng, 50)
        ahead = shown - np.arange(50) / 25
        assert np.abs(ahead).max() < 0.5 / 12 + 1e-6  # the source frame nearest to each target


def test_unseen_style_is_unseen() -> None:
    plain = [scene.draw_scene((9, i), 1.0) for i in range(40)]
    shapes = {int(shape) for s in plain for shape in s.still["looks"][:, 0]}
    assert scene.TRIANGLE not in shapes
    assert all(s.still["grade"][5] == 0 for s in plain)
    sketch = scene.draw_scene((9, 0), 1.0, scene.UNSEEN)
    assert sketch.still["grade"][5] == 1


def test_texts_are_varied_and_sometimes_empty() -> None:
    prompts = [scene.draw_scene((4, i), 1.0).prompt for i in range(300)]
    assert 0.05 < np.mean([not prompt for prompt in prompts]) < 0.25
    assert len(set(prompts)) > 180


def test_every_material_occurs() -> None:
    heard = {
        int(material)
        for i in range(150)
        for material in scene.draw_scene((4, i), 2.0).hits["material"]
    }
    assert set(range(len(MATERIALS))) <= heard


def test_matching_is_one_to_one() -> None:
    assert (
        judge.match_onsets([1.0, 1.02], [1.01]) == [(1.0, 1.01)]
        or len(judge.match_onsets([1.0, 1.02], [1.01])) == 1
    )
    assert judge.match_onsets([1.0], [1.07]) == []


def test_force_is_the_same_loudness_whatever_the_material() -> None:
    batch = clips.make_batch(2, 0, 1, 2.0, action="tap", quiet=True)
    first = {name: value[:1] for name, value in batch.hits.items()}
    first["seconds"], first["force"] = torch.tensor([0.5]), torch.tensor([0.5])
    first["level"] = torch.tensor([materials.hit_level(0.5)])
    levels = []
    for material in range(len(materials.MATERIALS)):
        voice = materials.draw_voice(np.random.default_rng(1), material, 0.5)
        spec = materials.TABLE[material]
        batch.hits = first | {
            "hz": torch.tensor(voice.hz[None]).float(),
            "rates": torch.tensor(voice.decay_rates[None]).float(),
            "gains": torch.tensor(voice.gains[None]).float(),
            "noise_rate": torch.tensor([1 / spec.noise_seconds]),
            "attack": torch.tensor([spec.attack_seconds]),
        }
        batch.owner = torch.tensor([0])
        levels.append(judge.level_db(batch.waveform()[0], 0.5, materials.LOUDNESS_SECONDS))
    assert max(levels) - min(levels) < 0.5
    assert levels[0] == pytest.approx(20 * np.log10(materials.hit_level(0.5)), abs=0.5)


def test_what_a_clip_ends_too_early_to_show_makes_no_sound() -> None:
    batch = clips.make_batch(3, 0, 40, 3.0, action="roam", quiet=True)
    last = batch.hits["seconds"].max()
    assert 2.8 < last < 3.0 - scene.SEEN_AFTER / scene.FPS


def test_without_walls_things_turn_at_the_pictures_edge() -> None:
    seen = 0
    for index in range(40):
        clip = scene.draw_scene((4, index), 3.0, action="roam", quiet=True)
        sprites = clip.frames["sprites"]  # [n, K, 6]: place, half sides, angle, visibility
        if (sprites[0, :, 2:4].max(-1) > 0.5).any() or not len(clip.hits["seconds"]):
            continue
        seen += 1
        thing = sprites[:, clip.still["sounding"] > 0][:, 0]
        frame = int(clip.hits["seconds"][0] * scene.FPS)
        assert (np.abs(thing[frame, :2]) + thing[frame, 2]).max() > 0.85
    assert seen > 3


def test_an_events_level_is_that_of_its_onset_wherever_it_is_heard() -> None:
    sound = torch.zeros(48_000)
    sound[24_000:24_480] = torch.randn(480, generator=torch.Generator().manual_seed(0))
    found = judge.detect_onsets(sound)
    assert len(found) == 1
    level = judge.onset_level_db(sound, found, 0.53)
    assert level == pytest.approx(judge.level_db(sound, 0.495), abs=1.0)
    assert judge.level_db(sound, 0.53) < level - 40  # from the exact time on it is missed
    assert judge.onset_level_db(sound, found, 0.60) is None
    assert judge.onset_level_db(sound, [], 0.53) is None


def test_clicks_are_what_stands_out_for_a_moment() -> None:
    generator = torch.Generator().manual_seed(0)
    hiss = 0.01 * torch.randn(96_000, generator=generator)
    assert judge.count_clicks(hiss) == 0
    clicked = hiss.clone()
    clicked[[20_000, 50_000, 80_000]] = torch.tensor([0.9, -0.9, 0.9])
    assert judge.count_clicks(torch.zeros(96_000)) == 0
    assert judge.count_clicks(clicked) == 3


def test_a_rattle_of_rubber_sounds_when_it_turns_and_no_training_draws_it() -> None:
    batch = clips.make_batch(
        11, 0, 5, 4.0, action=scene.HELD_OUT, quiet=True, material=materials.RUBBER
    )
    assert batch.prompts == [""] * 5
    assert set(batch.hits["material"].tolist()) == {materials.RUBBER}
    match, sounds = judge.Match(), batch.waveform()
    for clip in range(5):
        truth = judge.merge_close_events(batch.hits["seconds"][batch.owner == clip].tolist())
        match.add(judge.detect_onsets(sounds[clip]), truth)
    assert match.truth > 40
    assert match.f1 > 0.85  # measured: 0.917; one turn is heard while the one before still rings
    assert scene.HELD_OUT not in scene.ACTIONS
    assert len(MATERIALS) == materials.BURST < materials.RUBBER

"""From a folder of clips to an adapter that a pipeline takes, at toy width."""

from pathlib import Path

import numpy as np
import pytest
import torch

from foley.errors import ParameterError
from foley.pipeline import FoleyPipeline
from foley.tuning.clips import read_clip
from foley.tuning.examples import level
from foley.tuning.prepare import decode_clip, split_clips
from foley.tuning.run import check_clips, train_adapter
from foley.tuning.trainer import Recipe, TrainingProgress
from tests.media.clips import add_sound
from tests.server import draw_clip
from tests.toys import toy_components

CPU = torch.device("cpu")
RECIPE = Recipe(rank=2, steps=2, batch_clips=2, validate_every=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five clips of 1.2 s, of which one is silent."""
    folder = tmp_path_factory.mktemp("clips")
    picture = tmp_path_factory.mktemp("pictures") / "clip.mp4"
    draw_clip(picture, num_frames=30)
    rng = np.random.default_rng(0)
    for number in range(5):
        samples = (0.05 * number) * rng.standard_normal((1, 57_600))
        add_sound(picture, folder / f"{number}.mov", samples, layout="mono")
        (folder / f"{number}.txt").write_text("rain")
    return folder


def test_an_adapter_is_learnt_with_its_report_and_can_be_used(folder: Path, tmp_path: Path) -> None:
    clips = check_clips(folder, None)
    assert [clip.is_usable for clip in clips] == [False, True, True, True, True]
    assert "is silent" in clips[0].findings[0].text
    out, said = tmp_path / "my-sound", list[TrainingProgress]()
    training = train_adapter(clips, out, toy_components(), CPU, RECIPE, on_progress=said.append)
    assert training.num_clips == 3
    assert [progress.step for progress in said] == [1, 2]
    assert said[-1].seconds_left == 0
    page = training.report.read_text()
    for words in ("my-sound", "4 of 5 clips were used", "left out: is silent", "<polyline", ".wav"):
        assert words in page
    for kind in ("base", "adapter", "own"):
        assert (out / "sounds" / f"1-{kind}.wav").stat().st_size > 50_000
    card = (out / "README.md").read_text()
    assert "of `toy`" in card
    assert "clip.mp4 -p rain --adapters my-sound.safetensors --adapter my-sound -o out.mp4" in card
    pipeline = FoleyPipeline(toy_components(), CPU)
    info = pipeline.load_adapter(training.adapter)
    assert (info.name, info.rank, info.trigger) == ("my-sound", 2, "rain")


def test_of_a_long_clip_the_first_15_s_are_used(tmp_path: Path) -> None:
    draw_clip(tmp_path / "picture.mp4", num_frames=400)
    samples = 0.1 * np.random.default_rng(0).standard_normal((1, 16 * 48_000))
    path = add_sound(tmp_path / "picture.mp4", tmp_path / "long.mov", samples, layout="mono")
    clip = read_clip(path, "rain")
    assert clip.is_usable
    assert len(clip.waveform) == 15 * 48_000
    frames = decode_clip(FoleyPipeline(toy_components(), CPU), clip)
    assert 370 <= frames.num_sync <= 376


def test_too_few_clips_and_names_that_cannot_be_asked_for_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    clips = check_clips(folder, None)
    with pytest.raises(ParameterError, match="3 of 4 clips can be used, at least 4"):
        train_adapter(clips[:4], tmp_path / "a", toy_components(), CPU, RECIPE)
    with pytest.raises(ParameterError, match="'my sound' cannot be an adapter's name"):
        train_adapter(clips, tmp_path / "my sound", toy_components(), CPU, RECIPE)


def test_the_split_is_by_content_and_levels_are_even(folder: Path) -> None:
    clips = [clip for clip in check_clips(folder, None) if clip.is_usable]
    learnt, held_out = split_clips(clips)
    assert (len(learnt), len(held_out)) == (3, 1)
    assert split_clips(clips[::-1])[1] == held_out
    loud = [float(np.sqrt((level(clip) ** 2).mean())) for clip in clips]
    assert max(loud) < 1.1 * min(loud)  # they were recorded at levels from 1 to 4

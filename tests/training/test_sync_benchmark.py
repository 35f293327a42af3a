"""The synchrony benchmark: what it counts, on sounds whose onsets are known."""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.quality.make_clips import write_sound
from benchmarks.quality.sync import (
    NUM_SHIFTS,
    add_options,
    collect_options,
    evaluate,
    find_labelled_clips,
    match_exact,
)
from foley.configs import XXL
from foley.plans import QUALITIES, SamplingPlan
from foley.request import GenerationRequest
from training.judge import Match


def clicks(times: list[float], seconds: float = 3.0) -> torch.Tensor:
    """A waveform [1, 1, S] with a short decaying tone at each time."""
    sound = torch.zeros(int(48_000 * seconds))
    decay = torch.arange(4800) / 48_000
    tone = 0.5 * torch.exp(-decay / 0.01) * torch.sin(2 * torch.pi * 1500 * decay)
    for moment in times:
        start = int(48_000 * moment)
        sound[start : start + 4800] += tone
    return sound[None, None]


def sounding(times: list[float]):
    """Stands in for a model that places a sound at each of these times, whatever it is shown."""

    def pipeline(clip: Path, prompt: str, **options: object) -> SimpleNamespace:
        return SimpleNamespace(waveforms=clicks(times), duration_seconds=3.0)

    return pipeline


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.mp4").write_bytes(b"")
    description = {"events": [{"time": 0.5}, {"time": 1.2}, {"time": 2.0}], "prompt": "taps"}
    (tmp_path / "a.json").write_text(json.dumps(description))
    (tmp_path / "unlabelled.mp4").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("given", "plan"),
    [
        ([], SamplingPlan(50)),  # the preset's
        (["--steps", "16"], SamplingPlan(16)),
        (["--steps", "8", "--solver", "ab2"], SamplingPlan(8, "ab2")),
        (["--quality", "fast"], QUALITIES["fast"]),
    ],
)
def test_options_choose_the_plan(given: list[str], plan: SamplingPlan) -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, steps=None)
    options = collect_options(parser.parse_args(given))
    assert GenerationRequest(**options).choose_sampling(XXL) == plan


def test_perfect_sound_scores_one(folder: Path) -> None:
    total, seconds = evaluate(sounding([0.5, 1.2, 2.0]), find_labelled_clips(folder))  # type: ignore[arg-type]
    assert (total.f1, total.precision, total.recall) == (1.0, 1.0, 1.0)
    assert total.median_error_ms < 5  # measured: 1 to 3
    assert len(seconds) == 1


def test_late_sound_scores_nothing(folder: Path) -> None:
    total, _ = evaluate(sounding([0.7, 1.4, 2.2]), find_labelled_clips(folder))  # type: ignore[arg-type]
    assert total.f1 == 0.0


def test_a_missing_and_a_needless_sound_are_told_apart(folder: Path) -> None:
    total, _ = evaluate(sounding([0.5, 1.6]), find_labelled_clips(folder))  # type: ignore[arg-type]
    assert total.precision == pytest.approx(1 / 2)
    assert total.recall == pytest.approx(1 / 3)


def test_an_onset_at_an_unscored_moment_counts_neither_way(folder: Path) -> None:
    path = folder / "a.json"
    description = json.loads(path.read_text()) | {"unscored": [{"time": 1.6}, {"time": 1.2}]}
    path.write_text(json.dumps(description))
    total, _ = evaluate(sounding([0.5, 1.2, 1.62, 2.5]), find_labelled_clips(folder))  # type: ignore[arg-type]
    assert total.precision == pytest.approx(2 / 3)  # an event stays one
    assert total.recall == pytest.approx(2 / 3)
    silent, _ = evaluate(sounding([0.5, 1.2, 2.0]), find_labelled_clips(folder))  # type: ignore[arg-type]
    assert silent.f1 == 1.0


def test_a_folder_without_descriptions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no NAME"):
        find_labelled_clips(tmp_path)


def test_chance_is_what_the_same_sounds_get_at_other_times(folder: Path) -> None:
    chance = Match()
    evaluate(sounding([0.5, 1.2, 2.0]), find_labelled_clips(folder), chance)  # type: ignore[arg-type]
    assert chance.truth == NUM_SHIFTS * 3
    assert chance.f1 < 0.5
    steady = Match()
    everywhere = [0.1 + 0.1 * index for index in range(29)]
    evaluate(sounding(everywhere), find_labelled_clips(folder), steady)  # type: ignore[arg-type]
    assert steady.recall == pytest.approx(1, abs=0.15)  # which is why precision counts as well


def test_the_sound_beside_a_clip_is_matched_too(folder: Path) -> None:
    assert match_exact(find_labelled_clips(folder)) is None
    write_sound(folder / "a.wav", clicks([0.5, 1.2])[0, 0])
    exact = match_exact(find_labelled_clips(folder))
    assert exact is not None
    assert exact.recall == pytest.approx(2 / 3)

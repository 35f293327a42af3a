"""The clips from which an adapter of `tiny` is learnt, and the judge of what it learnt."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.quality.adapter import estimate_loudness, merge, read_clips, summarize
from benchmarks.quality.adapter_clips import ACTIONS, TESTING_SEED, draw_clip, write_clip
from benchmarks.quality.adapter_judge import cut, list_events
from benchmarks.quality.plot_adapter import list_scales, plot
from foley.media.filters import Sound, measure_loudness
from foley.tuning.clips import read_clip
from foley.tuning.kept import choose_prompts
from training.scene import HELD_OUT

CPU = torch.device("cpu")


def test_every_second_clip_is_a_rattle_and_all_prompts_name_latex_alone() -> None:
    drawn = [draw_clip(TESTING_SEED, index) for index in range(len(ACTIONS))]
    assert [action == HELD_OUT for action in ACTIONS] == [True, False] * 3
    prompts = [batch.prompts[0] for batch in drawn]
    assert all("latex" in prompt.split() for prompt in prompts)
    assert not any("latex" in prompt for prompt in choose_prompts(prompts, 20))
    events = list_events(drawn[0], 0)
    assert len(events) > 5
    assert min(np.diff(events)) >= 0.05
    sound = drawn[0].waveform()[0]
    assert len(cut(sound, events)) == len(events)


def test_the_estimate_of_loudness_is_near_the_measured_one() -> None:
    for clip in read_clips(CPU, 3):
        measured = measure_loudness(Sound(clip.waveform[None], "mono"))
        assert measured is not None
        # measured: 2.0 to 2.4 below; the weighting of frequencies raises what is above 1 kHz
        assert clip.loudness_lufs == pytest.approx(measured, abs=3)
        assert clip.loudness_lufs == estimate_loudness(torch.from_numpy(clip.waveform))


def test_a_clip_is_read_as_it_was_drawn(tmp_path: Path) -> None:
    sound = draw_clip(TESTING_SEED, 1).waveform()[0, :48_000]
    path = tmp_path / "clip.mov"
    write_clip(path, torch.zeros(25, 3, 64, 64, dtype=torch.uint8), sound)
    clip = read_clip(path, "a rubber ball")
    assert clip.is_usable
    np.testing.assert_allclose(clip.waveform, sound.numpy(), rtol=0, atol=1e-4)


def test_records_of_several_processes_become_one(tmp_path: Path) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, name in zip(paths, ("base", "rank-8"), strict=True):
        path.write_text(json.dumps({"commit": "0", "figures": {name: {"taught": {}}}}))
    made = merge(paths)
    assert (made["commit"], made["processes"]) == ("0", 2)
    assert list(made["figures"]) == ["base", "rank-8"]
    assert summarize([0.8, 0.9]) == {"values": [0.8, 0.9], "mean": 0.85, "error": 0.05}
    assert summarize([0.8])["error"] == 0


def test_the_picture_shows_all_scales_from_zero_on(tmp_path: Path) -> None:
    trained = {"training": [[50, 0.2]], "validation": [[0, 0.5], [50, 0.3]]}
    taught = {"1": {"asked": 0.9, "f1": 0.8}, "0.5": {"asked": 0.2, "f1": 0.7}}
    record = {
        "figures": {
            "base": {"taught": {"0": {"asked": 0.0, "f1": 0.6}}},
            "default": {"training": trained, "taught": taught},
        }
    }
    assert list_scales(record, "default", "f1") == [(0, 0.6), (0.5, 0.7), (1, 0.8)]
    plot(record, "default", tmp_path / "adapter.svg")
    assert "scale of the adapter" in (tmp_path / "adapter.svg").read_text()

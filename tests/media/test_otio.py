"""Timelines, as the library reads them."""

import sys
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import opentimelineio as otio
import pytest

from foley.cli.backends import ClipResult
from foley.cli.plan import ClipTask
from foley.cli.timelines import check_timelines, write_timelines
from foley.errors import ConfigError, OutputError, ParameterError
from foley.media.otio import TimelineSound, write_timeline
from foley.mix import MixOptions
from foley.request import GenerationRequest
from tests.media.clips import add_sound, write_clip

RATE = 48_000


def read(path: Path) -> dict[str, Any]:
    """The tracks of a timeline, by name."""
    timeline = otio.adapters.read_from_file(str(path))
    return {track.name: track.deepcopy() for track in timeline.tracks}  # it takes them along


def seconds(time: otio.opentime.RationalTime) -> float:
    return time.value / time.rate


def make_voiced(folder: Path, timecode: str = "") -> Path:
    clip = write_clip(folder / "plain.mp4", fps=Fraction(30000, 1001), num_frames=30)
    samples = np.zeros((2, RATE), np.float32)
    return add_sound(clip, folder / "my clip.mov", samples, timecode=timecode)


def write(folder: Path, clip: Path | None, *stems: Path, **mix: Any) -> Path:
    task = ClipTask(clip, GenerationRequest(), folder / "out.wav", MixOptions(**mix))
    result = ClipResult(
        paths=[folder / "out.wav"],
        seeds=(1,),
        stems=stems,
        duration_seconds=1.0,
        seconds=0,
        timings={},
        notices=(),
    )
    (path,) = write_timelines(task, result)
    return path


def test_clip_sound_and_layers_begin_together_on_tracks_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    stems = [tmp_path / "made" / f"out-layer-{number}.wav" for number in (1, 2)]
    path = write(tmp_path / "made", make_voiced(tmp_path), *stems, original_sound="drop")
    assert path == tmp_path / "made" / "out.otio"
    tracks = read(path)
    assert list(tracks) == ["Picture", "Sound", "Layer 1", "Layer 2", "Original"]
    assert [track.kind for track in tracks.values()] == ["Video", *["Audio"] * 4]
    # The sound is the mix of the layers, which would be heard twice.
    assert [name for name, track in tracks.items() if track.enabled] == ["Picture", "Sound"]
    clips = [track[0] for track in tracks.values()]
    urls = [unquote(clip.media_reference.target_url) for clip in clips]
    names = ["../my clip.mov", "out.wav", "out-layer-1.wav", "out-layer-2.wav", "../my clip.mov"]
    assert urls == names
    assert [seconds(clip.source_range.start_time) for clip in clips] == [0] * 5
    assert clips[0].source_range.duration == otio.opentime.RationalTime(30, 30000 / 1001)
    assert [clip.source_range.duration.value for clip in clips[1:]] == [RATE] * 4


@pytest.mark.parametrize("is_broadcast", [True, False])
def test_ranges_begin_at_the_timecode_of_files_that_have_it(
    tmp_path: Path, is_broadcast: bool
) -> None:
    clip = make_voiced(tmp_path, "01:00:00:00")
    path = write(tmp_path, clip, original_sound="mix", broadcast_wave=is_broadcast)
    starts = {name: track[0].source_range.start_time for name, track in read(path).items()}
    hour = 3600 * 1001 / 1000
    assert (starts["Picture"].value, starts["Picture"].rate) == (108_000, 30000 / 1001)
    assert seconds(starts["Original"]) == pytest.approx(hour)
    assert seconds(starts["Sound"]) == pytest.approx(hour if is_broadcast else 0)
    timeline = otio.adapters.read_from_file(str(path))
    assert timeline.global_start_time == starts["Picture"]


def test_the_clips_own_sound_is_heard_where_it_is_kept(tmp_path: Path) -> None:
    clip = make_voiced(tmp_path)
    assert read(write(tmp_path, clip, original_sound="keep"))["Original"].enabled
    assert not read(write(tmp_path, clip, original_sound="duck"))["Original"].enabled
    silent = write_clip(tmp_path / "silent.mp4")
    assert list(read(write(tmp_path, silent))) == ["Picture", "Sound"]
    assert list(read(write(tmp_path, None))) == ["Sound"]


def test_a_timeline_that_cannot_be_written_is_an_error_of_the_output(tmp_path: Path) -> None:
    (tmp_path / "out.otio").mkdir()
    with pytest.raises(OutputError, match=r"out\.otio cannot be written"):
        write_timeline(
            tmp_path / "out.otio",
            [TimelineSound(name="Sound", path=tmp_path / "out.wav")],
            duration_seconds=1,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["out.otio"]


def test_what_timelines_need_is_checked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    check_timelines(is_piped=False)
    with pytest.raises(ParameterError, match="names of files instead of -"):
        check_timelines(is_piped=True)
    monkeypatch.setitem(sys.modules, "opentimelineio", None)
    with pytest.raises(ConfigError, match=r"install foley-serving\[otio\]"):
        check_timelines(is_piped=False)

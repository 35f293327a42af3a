"""Every clip of `tests/assets/clips`, and clips made here, in and out of every container."""

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from foley.configs import SAMPLE_RATE
from foley.media.decode import decode_frames
from foley.media.mux import MediaFile, choose_container, write_video
from tests.media.clips import loudest_second, shown_seconds, write_clip

CLIPS = Path(__file__).parents[1] / "assets/clips"
CONTAINERS = ["mp4", "mov", "mkv", "webm"]
# Name, number of pictures, their interval in seconds, seconds of the first, frames at 25 fps
TABLE = [
    ("alpha.webm", 25, 0.04, 0.0, 25),
    ("anim.gif", 20, 0.1, 0.0, 50),
    ("anim.webp", 10, 0.1, 0.0, 25),
    ("base.3gp", 30, 1 / 15, 0.0, 50),
    ("base.ts", 50, 0.04, 0.0213, 50),
    ("base.wmv", 50, 0.04, 0.0, 50),
    ("chapters.mkv", 50, 0.04, 0.021, 50),
    ("cinema.mp4", 48, 1001 / 24_000, 0.0, 50),
    ("dovi5.mp4", 50, 0.04, 0.0, 50),
    ("fast.mp4", 120, 1 / 120, 0.0, 25),
    ("fps1.mp4", 5, 1.0, 0.0, 125),
    ("h264_bframes.avi", 50, 0.04, 0.0, 50),
    ("joined.ts", 100, 0.04, 0.0213, 100),
    ("pasp.mp4", 50, 0.04, 0.0, 50),
    ("phone_rot.mov", 50, 0.04, 0.0, 50),
    ("prores2.mov", 10, 0.04, 0.0, 10),
    ("spherical.mp4", 50, 0.04, 0.0, 50),
    ("wrapped.ts", 50, 0.04, 0.0, 50),
]
RATES = {"cinema.mp4": Fraction(24_000, 1001), "fast.mp4": Fraction(120)}
NAMES = [name for name, *_ in TABLE]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every clip of the table."""
    folder = tmp_path_factory.mktemp("clips")
    for path in CLIPS.iterdir():
        shutil.copy(path, folder)
    (folder / "joined.ts").write_bytes((CLIPS / "base.ts").read_bytes() * 2)
    for (name, fps), num_frames in zip(RATES.items(), (48, 120), strict=True):
        options = {"bf": "2", "preset": "veryfast"}
        write_clip(folder / name, num_frames=num_frames, fps=fps, options=options)
    write_clip(
        folder / "wrapped.ts",
        times_ms=[2**33 // 90 - 1000 + 40 * index for index in range(50)],
        muxer={"mpegts_copyts": "1"},
        options={"bf": "2", "preset": "veryfast"},
    )
    return folder


@pytest.fixture(scope="module")
def write(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[MediaFile]]:
    """A function that writes a clip of the table into every container, once."""
    folder = tmp_path_factory.mktemp("written")

    @functools.cache
    def write_all(name: str, num_frames: int) -> list[MediaFile]:
        sound = click(num_frames)
        return [
            write_video(clips / name, sound, folder / f"{name}-{container}.{container}")
            for container in CONTAINERS
        ]

    return write_all


def click(num_frames: int) -> torch.Tensor:
    """Silence as long as the frames at 25 fps, with one loud sample at 0.3 s."""
    waveform = torch.zeros(1, num_frames * SAMPLE_RATE // 25)
    waveform[:, int(0.3 * SAMPLE_RATE)] = 0.9
    return waveform


def test_the_table_names_every_clip() -> None:
    refused = {"still.png", "README.md"}
    assert {path.name for path in CLIPS.iterdir()} - refused == set(NAMES) - {
        "joined.ts",
        "wrapped.ts",
        *RATES,
    }


@pytest.mark.slow  # all together
@pytest.mark.parametrize(("name", "num_pictures", "interval", "first", "num_frames"), TABLE)
def test_every_clip_comes_out_as_it_went_in(
    clips: Path,
    write: Callable[..., list[MediaFile]],
    name: str,
    num_pictures: int,
    interval: float,
    first: float,
    num_frames: int,
) -> None:
    frames = decode_frames(clips / name, visual_size=32, sync_size=32, exact_clock=True)
    assert frames.num_picked == num_frames
    assert not frames.trimmed
    expected = [first + interval * index for index in range(num_pictures)]
    for container, written in zip(CONTAINERS, write(name, num_frames), strict=True):
        assert written.container == choose_container(clips / name, container)
        # Matroska's ticks are milliseconds.
        assert shown_seconds(written.path) == pytest.approx(expected, abs=0.0015)
        assert loudest_second(written.path) == pytest.approx(0.3, abs=0.001)
        assert np.all(np.diff(shown_seconds(written.path)) > 0)


@pytest.fixture
def ffprobe() -> str:
    """FFmpeg's own program, which reads the results with other code than the tests' reader."""
    found = shutil.which("ffprobe")
    if found is None or shutil.which("ffmpeg") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("ffprobe and ffmpeg are not installed: apt-get install ffmpeg")
        pytest.skip("ffprobe and ffmpeg are not installed")
    return found


@functools.cache
def list_shown(path: Path, *more: str) -> tuple[list[str], str]:
    """The hash of each picture in the order shown, and what FFmpeg's program has to say."""
    decoded = subprocess.run(
        [
            *("ffmpeg", "-nostdin", "-v", "error", "-i", str(path), *more, "-map", "0:v:0"),
            *("-vsync", "passthrough", "-f", "framehash", "-hash", "md5", "-"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = (line for line in decoded.stdout.splitlines() if not line.startswith("#"))
    return [line.rpartition(",")[2].strip() for line in lines], decoded.stderr


@pytest.mark.slow  # all together
@pytest.mark.parametrize(("name", "num_pictures", "interval", "first", "num_frames"), TABLE)
def test_every_result_is_read_without_an_error_by_another_program(
    clips: Path,
    write: Callable[..., list[MediaFile]],
    ffprobe: str,
    name: str,
    num_pictures: int,
    interval: float,
    first: float,
    num_frames: int,
) -> None:
    # One result of each container: several are Matroska where another cannot hold the picture.
    results = {written.container: written for written in write(name, num_frames)}
    for written in results.values():
        shown, remarks = list_shown(written.path, "-map", "0:a", "-f", "null", "-")
        assert remarks == ""
        assert len(shown) == num_pictures
        if not any("encoded" in notice for notice in written.notices):
            assert shown == list_shown(clips / name)[0]  # the same pictures in the same order
        report = subprocess.run(
            [ffprobe, "-v", "error", "-count_frames", "-show_streams", "-of", "json", written.path],
            capture_output=True,
            text=True,
            check=True,
        )
        picture = next(
            s for s in json.loads(report.stdout)["streams"] if s["codec_type"] == "video"
        )
        assert int(picture["nb_read_frames"]) == num_pictures
        assert float(picture["start_time"]) == pytest.approx(first, abs=0.0015)
        assert name != "pasp.mp4" or picture["sample_aspect_ratio"] == "4:3"
        if written.container in ("mp4", "mov"):  # players cut what is after it
            end = pytest.approx(num_pictures * interval, abs=0.0015)
            assert float(picture["duration"]) == end
        with av.open(str(written.path)) as reader:
            expected = reader.streams.video[0].codec_context.codec_tag.strip("\0")
        if expected:
            assert picture["codec_tag_string"] == expected

"""The part of a clip from a given time on."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from foley.errors import ParameterError
from foley.media.cut import cut_clip
from foley.media.decode import decode_frames
from foley.media.mux import write_video
from foley.media.source import open_video
from foley.media.timecode import add_seconds, read_timecode
from tests.media.clips import (
    add_sound,
    decode_sounds,
    numbers,
    picture_packets,
    shown_seconds,
    write_clip,
)

CLIPS = Path(__file__).parents[1] / "assets/clips"
B_FRAMES = {"bf": "2", "preset": "veryfast", "g": "20"}


def decode(clip: Path) -> list[int]:
    frames = decode_frames(clip, visual_size=80, sync_size=80, exact_clock=True)
    return numbers(frames.sync[: frames.num_picked])


@pytest.mark.parametrize("start", [0.0, 0.4, 1.0, 1.72])
@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        ("mp4", "libx264", B_FRAMES),
        ("mov", "prores_ks", {}),
        ("ts", "libx264", B_FRAMES),
        ("mkv", "libx264", B_FRAMES),
        ("avi", "mpeg4", {"bf": "2", "g": "20"}),
        ("webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "g": "20"}),
    ],
)
def test_a_part_begins_at_its_frame_and_copies_packets(
    tmp_path: Path, suffix: str, codec: str, options: dict[str, str], start: float
) -> None:
    pix_fmt = "yuv422p10le" if codec == "prores_ks" else "yuv420p"
    clip = write_clip(
        tmp_path / f"clip.{suffix}", num_frames=50, codec=codec, pix_fmt=pix_fmt, options=options
    )
    cut_clip(clip, tmp_path / "part", start)
    first = round(25 * start)
    assert decode(tmp_path / "part") == list(range(first, 50))
    times = [seconds for seconds in shown_seconds(tmp_path / "part") if seconds > -0.001]
    assert times == pytest.approx([n / 25 for n in range(50 - first)], abs=0.002)
    if suffix not in ("avi", "ts"):  # whose frames are unpacked, and whose units are framed anew
        copied = [content for content, *_ in picture_packets(tmp_path / "part")]
        assert copied == [content for content, *_ in picture_packets(clip)][-len(copied) :]


def test_a_part_ends_where_it_is_told_to(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", num_frames=75, options=B_FRAMES)
    cut_clip(clip, tmp_path / "part", 0.6, stop_seconds=2.0)
    # A frame that is shown later is kept where one before the end depends on it.
    shown = decode(tmp_path / "part")
    assert (shown[:35], len(shown) <= 38) == (list(range(15, 50)), True)


def test_the_sound_of_a_part_stays_with_its_picture(tmp_path: Path) -> None:
    samples = np.zeros((2, 96_000), np.float32)
    samples[:, 72_000] = 0.9  # at 1.5 s
    clip = add_sound(write_clip(tmp_path / "in.mp4", num_frames=50), tmp_path / "clip.mov", samples)
    cut_clip(clip, tmp_path / "part", 1.0)
    (sound,) = decode_sounds(tmp_path / "part")
    assert abs(sound[0]).argmax() == pytest.approx(24_000, abs=1)


def test_rotation_tags_and_timecode_of_a_part(tmp_path: Path) -> None:
    cut_clip(CLIPS / "phone_rot.mov", tmp_path / "part", 1.0)
    with av.open(str(CLIPS / "phone_rot.mov")) as clip, av.open(str(tmp_path / "part")) as part:
        turned = [next(c.decode(video=0)).rotation for c in (clip, part)]
        assert turned[0] == turned[1] != 0
        kept = {key for key in clip.metadata if key.startswith("com.")}
        assert kept
        assert kept <= set(part.metadata)
    clip_path = add_sound(
        write_clip(tmp_path / "in.mp4", num_frames=50),
        tmp_path / "clip.mov",
        np.zeros((2, 9600), np.float32),
        timecode="01:00:00:10",
    )
    cut_clip(clip_path, tmp_path / "part", 1.0)
    from foley.media.source import MediaLimits

    with open_video(tmp_path / "part", MediaLimits()) as (reader, picture):
        assert read_timecode(reader, picture) == ("01:00:01:10", Fraction(25))


@pytest.mark.parametrize(
    ("timecode", "rate", "seconds", "moved"),
    [
        ("00:00:59:28", Fraction(30_000, 1001), 0.2, "00:01:00:04"),
        ("00:00:59;28", Fraction(30_000, 1001), 0.1, "00:01:00;03"),
        ("00:09:59;29", Fraction(30_000, 1001), 0.034, "00:10:00;00"),
        ("23:59:59:24", Fraction(25), 0.04, "00:00:00:00"),
    ],
)
def test_a_timecode_moves_by_frames(
    timecode: str, rate: Fraction, seconds: float, moved: str
) -> None:
    assert add_seconds(timecode, rate, seconds) == moved


@pytest.mark.parametrize(
    ("start", "stop", "chapters"),
    [
        (0.5, None, [(0.0, 0.5, "One"), (0.5, 1.5, "Two")]),
        (1.0, None, [(0.0, 1.0, "Two")]),
        (0.2, 0.7, [(0.0, 0.5, "One")]),
        (1.2, 1.8, [(0.0, 0.6, "Two")]),
    ],
)
@pytest.mark.parametrize("source", ["mkv", "mp4"])
def test_a_part_has_its_share_of_the_chapters(
    tmp_path: Path,
    source: str,
    start: float,
    stop: float | None,
    chapters: list[tuple[float, float, str]],
) -> None:
    clip = CLIPS / "chapters.mkv"
    if source == "mp4":
        clip = write_video(clip, torch.zeros(1, 48_000), tmp_path / "in.mp4").path
    cut_clip(clip, tmp_path / "part", start, stop_seconds=stop)
    result = write_video(tmp_path / "part", torch.zeros(1, 48_000), tmp_path / "out.mp4")
    for path in (tmp_path / "part", result.path):
        with av.open(str(path)) as reader:
            found = [
                (
                    pytest.approx(float(c["start"] * c["time_base"]), abs=0.002),
                    pytest.approx(float(c["end"] * c["time_base"]), abs=0.002),
                    c["metadata"]["title"],
                )
                for c in reader.chapters()
            ]
        assert found == chapters
    missed = ("The part was cut off the clip without: the subtitles of stream 2.",)
    assert result.notices == (missed if source == "mkv" else ())


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_a_part_keeps_tags_of_any_name(tmp_path: Path, suffix: str) -> None:
    clip = tmp_path / "clip.mkv"
    source = write_clip(tmp_path / "in.mp4", num_frames=50, options=B_FRAMES)
    with av.open(str(source)) as reader, av.open(str(clip), "w") as writer:
        copy = writer.add_stream_from_template(reader.streams.video[0])
        writer.metadata.update({"SCENE": "12b", "title": "Take 5"})
        for packet in reader.demux(video=0):
            if packet.size:
                packet.stream = copy
                writer.mux(packet)
    cut_clip(clip, tmp_path / "part", 0.5)
    result = write_video(tmp_path / "part", torch.zeros(1, 48_000), tmp_path / f"out.{suffix}")
    with av.open(str(result.path)) as reader:
        kept = {key.lower(): value for key, value in reader.metadata.items()}
    assert kept["title"] == "Take 5"
    if suffix == "mkv":
        assert kept["scene"] == "12b"
    else:
        assert "the tag SCENE" in " ".join(result.notices)


@pytest.mark.parametrize("start", [2.0, 99.0])
def test_a_part_after_the_end_is_refused_and_leaves_no_file(tmp_path: Path, start: float) -> None:
    clip = write_clip(tmp_path / "clip.mp4", num_frames=50)
    with pytest.raises(ParameterError, match=f"start_seconds: is {start:g}, and the clip shows"):
        cut_clip(clip, tmp_path / "part", start)
    assert not (tmp_path / "part").exists()


def test_an_animation_has_no_part() -> None:
    with pytest.raises(ParameterError, match="leave the option out"):
        cut_clip(CLIPS / "anim.gif", Path("/nonexistent"), 1.0)

import math
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import pytest
import torch

from foley.errors import VideoTooLongError
from foley.media.decode import decode_frames, decode_pieces
from foley.media.mux import write_video
from foley.media.source import MediaLimits, open_video
from foley.media.timeline import demux_video
from foley.types import VideoFrames
from tests.media.clips import numbers, shown_seconds, write_clip

FRAGMENTED = {"movflags": "+frag_keyframe+empty_moov+default_base_moof"}
B_FRAMES = {"bf": "3", "preset": "veryfast"}


def decode_80(clip: Path) -> VideoFrames:
    return decode_frames(clip, visual_size=80, sync_size=80, exact_clock=True)


def times_of_result(clip: Path, suffix: str = "mp4") -> list[float]:
    written = write_video(clip, torch.zeros(1, 48_000), clip.with_name(f"out.{suffix}"))
    return shown_seconds(written.path)


def write_avi(path: Path, codec: str, b_frames: int) -> Path:
    """Write 50 frames at 25 fps as AVI holds them: packets in decoding order, without more."""
    options = {"bf": str(b_frames), "preset": "veryfast", "x264-params": "log-level=none"}
    raw, container = (".h264", "h264") if codec == "libx264" else (".m4v", "m4v")
    source = write_clip(
        path.with_suffix(raw), num_frames=50, codec=codec, options=options, container=container
    )
    with av.open(str(source)) as reader, av.open(str(path), "w", format="avi") as writer:
        copy = writer.add_stream_from_template(reader.streams.video[0], opaque=True)
        copy.time_base = Fraction(1, 25)
        copy.codec_context.framerate = 25
        for index, packet in enumerate(p for p in reader.demux(video=0) if p.size):
            packet.stream = copy
            packet.time_base = Fraction(1, 25)
            packet.pts = packet.dts = index
            packet.duration = 1
            writer.mux(packet)
    return path


@pytest.mark.parametrize("options", [{"bf": "0"}, B_FRAMES])
@pytest.mark.parametrize("offset_seconds", [0, 2, 3600])
@pytest.mark.parametrize(
    ("suffix", "muxer"),
    [("ts", {}), ("flv", {}), ("mp4", FRAGMENTED)],
)
def test_a_running_clock_is_counted_from_the_clip_s_start(
    tmp_path: Path,
    suffix: str,
    muxer: dict[str, str],
    offset_seconds: int,
    options: dict[str, str],
) -> None:
    times = [1000 * offset_seconds + 40 * index for index in range(50)]
    clip = write_clip(
        tmp_path / f"clip.{suffix}",
        times_ms=times,
        muxer={**muxer, "avoid_negative_ts": "disabled"},
        options=options,
    )
    frames = decode_80(clip)
    assert numbers(frames.sync) == list(range(50))
    assert frames.source_seconds == pytest.approx(2.0, abs=0.05)
    # Measured: 1 ms off, the tick of FLV.
    assert times_of_result(clip) == pytest.approx([0.04 * n for n in range(50)], abs=0.002)


@pytest.mark.parametrize("b_frames", [0, 2])
def test_a_program_stream_is_counted_from_the_clip_s_start(tmp_path: Path, b_frames: int) -> None:
    clip = write_clip(
        tmp_path / "clip.mpg",
        num_frames=50,
        codec="mpeg2video",
        options={"bf": str(b_frames)},
        container="vob",
    )
    with av.open(str(clip)) as reader:
        assert reader.start_time > 0.4 * av.time_base
    assert numbers(decode_80(clip).sync) == list(range(50))
    assert times_of_result(clip) == pytest.approx([0.04 * n for n in range(50)], abs=0.001)


@pytest.mark.parametrize("codec", ["mpeg1video", "mpeg2video"])
@pytest.mark.parametrize("b_frames", [0, 2])
def test_a_bare_stream_begins_with_its_first_picture(
    tmp_path: Path, codec: str, b_frames: int
) -> None:
    clip = write_clip(
        tmp_path / "clip.mpv",
        num_frames=50,
        codec=codec,
        options={"bf": str(b_frames)},
        container=codec,
    )
    frames = decode_80(clip)
    assert numbers(frames.sync) == list(range(50))
    assert frames.source_seconds == pytest.approx(2.0)
    assert times_of_result(clip) == pytest.approx([0.04 * n for n in range(50)], abs=0.001)


@pytest.mark.parametrize("before_wrap_ms", [0, 500, 1000, 1960])
def test_a_clock_of_33_bits_may_wrap_inside_the_clip(tmp_path: Path, before_wrap_ms: int) -> None:
    wrap_ms = 2**33 // 90
    times = [wrap_ms - before_wrap_ms + 40 * index for index in range(50)]
    clip = write_clip(
        tmp_path / "clip.ts", times_ms=times, muxer={"mpegts_copyts": "1"}, options=B_FRAMES
    )
    assert numbers(decode_80(clip).sync) == list(range(50))
    assert times_of_result(clip) == pytest.approx([0.04 * n for n in range(50)], abs=0.001)


@pytest.mark.parametrize("suffix", ["ts", "flv"])
def test_a_picture_that_begins_after_its_sound_stays_late(tmp_path: Path, suffix: str) -> None:
    times = [400 + 40 * index for index in range(25)]
    clip = write_clip(tmp_path / f"clip.{suffix}", times_ms=times, sound=True)
    first, *_ = times_of_result(clip)
    assert first == pytest.approx(0.4, abs=0.03)  # the sound begins with an encoder's delay
    assert numbers(decode_80(clip).sync)[:10] == [0] * 10


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_joined_recordings_follow_one_another(tmp_path: Path, suffix: str) -> None:
    part = write_clip(tmp_path / "part.ts", options=B_FRAMES)
    clip = tmp_path / "clip.ts"
    clip.write_bytes(part.read_bytes() * 3)
    assert numbers(decode_80(clip).sync) == [*range(25)] * 3
    seconds = times_of_result(clip, suffix)
    assert seconds == pytest.approx([0.04 * n for n in range(75)], abs=0.002)


def test_a_clock_that_leaps_forwards_leaves_no_gap(tmp_path: Path) -> None:
    parts = [
        write_clip(
            tmp_path / f"{start}.ts",
            times_ms=[1000 * start + 40 * index for index in range(25)],
            muxer={"avoid_negative_ts": "disabled"},
        )
        for start in (5, 900)
    ]
    clip = tmp_path / "clip.ts"
    clip.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert numbers(decode_80(clip).sync) == [*range(25)] * 2


@pytest.mark.parametrize("b_frames", [0, 1, 3])
@pytest.mark.parametrize("first_late", [10, 24])
def test_a_gap_without_sound_is_closed_however_frames_are_ordered(
    tmp_path: Path, first_late: int, b_frames: int
) -> None:
    times = [40 * n + (12_000 if n >= first_late else 0) for n in range(25)]
    clip = write_clip(
        tmp_path / "clip.ts",
        times_ms=times,
        options={"bf": str(b_frames), "preset": "veryfast", "b_strategy": "0"},
    )
    frames = decode_80(clip)
    assert frames.source_seconds == pytest.approx(1.0)
    assert numbers(frames.sync) == list(range(25))
    assert times_of_result(clip) == pytest.approx([0.04 * n for n in range(25)], abs=0.002)


@pytest.mark.parametrize("b_frames", [0, 3])
def test_a_pause_of_the_picture_beside_sound_stays(tmp_path: Path, b_frames: int) -> None:
    times = [40 * n + (12_000 if n >= 10 else 0) for n in range(25)]
    clip = write_clip(
        tmp_path / "clip.ts",
        times_ms=times,
        sound=True,
        sound_seconds=13,
        options={"bf": str(b_frames), "preset": "veryfast", "b_strategy": "0"},
    )
    frames = decode_80(clip)
    assert frames.source_seconds == pytest.approx(13.0, abs=0.03)  # the encoder's delay
    found = numbers(frames.sync)
    # The frame before the pause is shown until its end. The encoder's delay is half a frame.
    assert (found[20], found[200]) == (9, 9)
    assert found[5] in (4, 5)
    assert found[-1] in (23, 24)
    expected = [milliseconds / 1000 for milliseconds in times]
    assert times_of_result(clip) == pytest.approx(expected, abs=0.03)


def test_joined_recordings_with_sound_follow_one_another(tmp_path: Path) -> None:
    parts = [
        write_clip(
            tmp_path / f"{start}.ts",
            times_ms=[1000 * start + 40 * index for index in range(25)],
            sound=True,
            sound_start_seconds=start,
            muxer={"avoid_negative_ts": "disabled", "mpegts_copyts": "1"},
            options=B_FRAMES,
        )
        for start in (5, 900)
    ]
    clip = tmp_path / "clip.ts"
    clip.write_bytes(b"".join(part.read_bytes() for part in parts))
    # The encoder's delay is 21 ms, so that each frame is nearest to the time after its own.
    assert numbers(decode_80(clip).sync)[-50:] == [0, *range(25), *range(24)]


def test_a_clock_that_leaps_does_not_make_a_clip_too_long(tmp_path: Path) -> None:
    parts = [
        write_clip(
            tmp_path / f"{start}.ts",
            times_ms=[1000 * start + 400 * index for index in range(25)],
            muxer={"avoid_negative_ts": "disabled"},
        )
        for start in (5, 900)
    ]
    clip = tmp_path / "clip.ts"
    clip.write_bytes(b"".join(part.read_bytes() for part in parts))
    decode = partial(decode_pieces, clip, visual_size=32, sync_size=32, exact_clock=True)
    facts = [*decode()][-1].facts
    assert facts is not None
    assert facts.source_seconds == pytest.approx(20, abs=0.5)
    with pytest.raises(VideoTooLongError, match=r"lasts (19|20)\.\d+ s, the limit is 16"):
        next(decode(limits=MediaLimits(max_seconds=16)))


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.parametrize("b_frames", [0, 1, 2])
def test_the_decoder_s_order_stands_where_the_container_states_none(
    tmp_path: Path, codec: str, b_frames: int
) -> None:
    clip = write_avi(tmp_path / "clip.avi", codec, b_frames)
    frames = decode_80(clip)
    assert numbers(frames.sync) == list(range(50))
    for written in ("mp4", "mkv"):
        times = times_of_result(clip, written)
        assert times == pytest.approx([0.04 * n for n in range(50)], abs=0.002)
        assert numbers(decode_80(tmp_path / f"out.{written}").sync) == list(range(50))


def write_packed_avi(path: Path) -> Path:
    """Write 50 frames as DivX does: a B-frame shares a packet with the frame before it."""
    options = {"bf": "1", "b_strategy": "0", "sc_threshold": "1000000000", "g": "250"}
    source = write_clip(
        path.with_suffix(".m4v"), num_frames=50, codec="mpeg4", options=options, container="m4v"
    )
    frame_start = b"\0\0\1\xb6"
    with av.open(str(source)) as reader, av.open(str(path), "w") as writer:
        stream = reader.streams.video[0]
        frames = [bytes(packet) for packet in reader.demux(stream) if packet.size]
        header = frames[0].index(frame_start)
        divx = b"\0\0\1\xb2DivX503b1393p"
        packets = [frames[0][:header] + divx + frames[0][header:]]
        not_coded = frame_start + bytes([0b01010000, 0b10011111])
        for first in range(1, 49, 2):
            packets += [frames[first] + frames[first + 1], not_coded]
        packets.append(frames[49])
        copy = writer.add_stream_from_template(stream, opaque=True)
        copy.time_base = Fraction(1, 25)
        copy.codec_context.framerate = Fraction(25)
        for index, content in enumerate(packets):
            packet = av.Packet(content)
            packet.stream, packet.time_base = copy, Fraction(1, 25)
            packet.pts = packet.dts = index
            packet.is_keyframe = index == 0
            writer.mux(packet)
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_packed_frames_are_unpacked(tmp_path: Path, suffix: str) -> None:
    clip = write_packed_avi(tmp_path / "clip.avi")
    assert numbers(decode_80(clip).sync) == list(range(50))
    assert times_of_result(clip, suffix) == pytest.approx([0.04 * n for n in range(50)])
    assert numbers(decode_80(tmp_path / f"out.{suffix}").sync) == list(range(50))
    with av.open(str(tmp_path / f"out.{suffix}")) as reader:
        contents = [bytes(packet) for packet in reader.demux(video=0) if packet.size]
    assert [content.count(b"\0\0\1\xb6") for content in contents] == [1] * 50


@pytest.mark.parametrize("fps", [Fraction(1, 5), Fraction(1, 2), 1, 4, 10, 15])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_the_last_frame_is_sounded_until_its_end(
    tmp_path: Path, suffix: str, fps: Fraction
) -> None:
    clip = write_clip(tmp_path / f"clip.{suffix}", num_frames=2, fps=fps, options={"bf": "0"})
    frames = decode_80(clip)
    assert frames.num_picked == math.ceil(25 * 2 / fps)
    assert numbers(frames.sync)[-1] == 1
    assert numbers(frames.visual)[-1] == 1
    assert len(frames.visual) == math.ceil(8 * 2 / fps)


def test_a_last_frame_that_lasts_beyond_the_limit_makes_the_clip_too_long(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", num_frames=2, fps=Fraction(1, 10), options={"bf": "0"})
    decode = partial(
        decode_frames, clip, visual_size=80, sync_size=80, limits=MediaLimits(max_seconds=15)
    )
    with pytest.raises(VideoTooLongError, match=r"lasts 20\.00 s"):
        decode(exact_clock=True)
    frames = decode(trim=True)
    assert frames.trimmed
    assert frames.num_picked == 375


def test_a_stream_that_begins_later_than_the_file_says_is_left_out() -> None:
    clip = Path(__file__).parents[1] / "assets/late_stream.ts"
    with open_video(clip, MediaLimits()) as (container, stream):
        packets = list(demux_video(container, stream))
    assert sum(packet.size > 0 for packet in packets) == 6
    assert packets[-1].size == 0

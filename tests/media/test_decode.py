import json
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import av
import pytest
import torch

from foley.errors import NoFramesError, VideoTooLargeError, VideoTooLongError
from foley.media.decode import VideoInfo, decode_frames, decode_pieces, probe
from foley.media.scale import fit_and_crop, stretch
from foley.media.source import MediaLimits
from foley.types import VideoFrames
from tests.media.clips import (
    MIRRORED,
    ROTATED,
    draw_number,
    numbers,
    write_clip,
)

GOLDEN = Path(__file__).parents[1] / "assets/golden"
FIXTURES = json.loads((GOLDEN / "frames.json").read_text())["videos"]


def decode_80(clip: Path, **options: object) -> VideoFrames:
    limits = {"limits": MediaLimits(max_seconds=15)}  # of the reference
    return decode_frames(clip, visual_size=80, sync_size=80, **(limits | options))


@pytest.mark.slow
@pytest.mark.parametrize("name", FIXTURES)
def test_frames_are_the_reference_s_picks(name: str) -> None:
    clip = GOLDEN / "videos" / name
    with av.open(str(clip)) as reader:
        full = [torch.from_numpy(f.to_ndarray(format="rgb24")) for f in reader.decode(video=0)]
    frames = decode_frames(
        clip, visual_size=96, sync_size=64, trim=True, limits=MediaLimits(max_seconds=15)
    )
    visual = torch.stack([stretch(full[index], 96) for index in FIXTURES[name]["picks_8"]])
    sync = torch.stack([fit_and_crop(full[index], 64) for index in FIXTURES[name]["picks_25"]])
    assert torch.equal(frames.visual, visual)
    assert torch.equal(frames.sync, sync)
    assert numbers(frames.visual) == FIXTURES[name]["picks_8"]
    assert frames.num_picked == len(frames.sync)


@pytest.mark.parametrize(("num_frames", "filled"), [(5, 16), (40, 40), (43, 48)])
def test_whole_segments_are_filled_with_the_last_frame(
    tmp_path: Path, num_frames: int, filled: int
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", num_frames=num_frames)
    frames = decode_80(clip, exact_clock=True, whole_segments=True)
    assert numbers(frames.sync) == [min(i, num_frames - 1) for i in range(filled)]
    assert frames.num_picked == num_frames
    assert len(frames.visual) == 8 * (filled - 1) // 25 + 1
    assert bool(frames.notices) == (num_frames < 16)  # a notice says that the clip was too short


def test_variable_rate_is_picked_by_timestamps(tmp_path: Path) -> None:
    times = [0, 10, 20, 200, 210, 400, 900, 910, 1000]
    frames = decode_80(write_clip(tmp_path / "clip.mkv", times_ms=times))
    assert numbers(frames.visual) == [0, 3, 5, 5, 6, 6, 6, 6, 8]  # targets 0, 125, 250, ... 1000 ms


def test_late_first_timestamp_repeats_the_first_frame(tmp_path: Path) -> None:
    times = [500 + 40 * index for index in range(20)]
    frames = decode_80(write_clip(tmp_path / "clip.mkv", times_ms=times))
    assert numbers(frames.sync)[:14] == [0] * 13 + [1]
    assert frames.source_seconds == pytest.approx(1.3)


@pytest.mark.parametrize("b_frames", [0, 3])
def test_missing_timestamps_follow_the_frame_rate(tmp_path: Path, b_frames: int) -> None:
    options = {"preset": "ultrafast", "bf": str(b_frames)}
    clip = write_clip(tmp_path / "clip.h264", options=options, container="h264")
    with av.open(str(clip)) as reader:
        assert {frame.pts for frame in reader.decode(video=0)} == {None}
    frames = decode_80(clip)
    assert numbers(frames.sync) == list(range(25))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts"])
def test_b_frames_come_in_the_order_they_are_shown(tmp_path: Path, suffix: str) -> None:
    codec = "mpeg4" if suffix == "avi" else "libx264"
    options = {"bf": "3"} if codec == "mpeg4" else {"bf": "3", "preset": "veryfast"}
    clip = write_clip(tmp_path / f"clip.{suffix}", codec=codec, options=options)
    with av.open(str(clip)) as reader:
        assert reader.streams.video[0].codec_context.has_b_frames
    assert numbers(decode_80(clip, exact_clock=True).sync) == list(range(25))


@pytest.mark.parametrize("size", [(81, 63), (64, 99), (33, 35)])
def test_odd_sizes_are_read(tmp_path: Path, size: tuple[int, int]) -> None:
    clip = write_clip(tmp_path / "clip.mkv", size=size, codec="ffv1", pix_fmt="yuv444p")
    frames = decode_80(clip)
    assert numbers(frames.visual) == [0, 4, 7, 10, 13, 16, 19, 22]
    assert (probe(clip).width, probe(clip).height) == size


def test_ten_bit_colours_are_those_of_eight_bit(tmp_path: Path) -> None:
    eight = decode_80(write_clip(tmp_path / "8.mkv", codec="ffv1", pix_fmt="yuv420p"))
    ten = decode_80(write_clip(tmp_path / "10.mkv", codec="ffv1", pix_fmt="yuv420p10le"))
    assert (eight.visual.int() - ten.visual.int()).abs().max() <= 2  # measured: 1


def test_alpha_is_dropped(tmp_path: Path) -> None:
    frames = decode_80(write_clip(tmp_path / "clip.mov", codec="png", pix_fmt="rgba"))
    assert torch.equal(frames.sync[9], torch.from_numpy(draw_number(9, 80, 80)))


def test_the_first_picture_stream_is_used_and_sound_is_seen(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", second_picture=True, sound=True)
    assert numbers(decode_80(clip).visual) == [0, 4, 7, 10, 13, 16, 19, 22]
    assert probe(clip).has_audio


@pytest.mark.parametrize(("degrees", "turns"), [(0, 0), (90, 1), (180, 2), (270, 3)])
def test_display_rotation_is_honoured(tmp_path: Path, degrees: int, turns: int) -> None:
    clip = write_clip(tmp_path / "clip.mp4", size=(96, 64), display=ROTATED[degrees])
    with av.open(str(clip)) as reader:
        first = next(reader.decode(video=0))
        stored = torch.from_numpy(first.to_ndarray(format="rgb24"))
    upright = stored.rot90(turns).contiguous()
    frames = decode_80(clip)
    assert (frames.visual[0].int() - stretch(upright, 80).int()).abs().max() <= 1
    assert (frames.sync[0].int() - fit_and_crop(upright, 80).int()).abs().max() <= 1
    info = probe(clip)
    assert info.rotation == -degrees % 360
    assert (info.height, info.width) == upright.shape[:2]


def test_a_mirrored_picture_is_mirrored_back(tmp_path: Path) -> None:
    plain = decode_80(write_clip(tmp_path / "plain.mp4"))
    mirrored = decode_80(write_clip(tmp_path / "mirrored.mp4", display=MIRRORED))
    assert torch.equal(mirrored.visual, plain.visual.flip(2))


def test_a_short_clip_is_filled_with_its_last_frame_and_says_so(tmp_path: Path) -> None:
    frames = decode_80(write_clip(tmp_path / "clip.mp4", num_frames=15))
    assert numbers(frames.sync)[13:] == [13, 14, 14]
    assert frames.num_picked == 15
    assert len(frames.notices) == 1
    assert "15 frames" in frames.notices[0]


def test_sixteen_frames_are_enough(tmp_path: Path) -> None:
    frames = decode_80(write_clip(tmp_path / "clip.mp4", num_frames=16))
    assert (len(frames.sync), frames.notices) == (16, ())


def test_a_frame_at_the_limit_is_taken_and_one_after_it_refused(tmp_path: Path) -> None:
    frames = decode_80(write_clip(tmp_path / "at.mp4", num_frames=151, fps=10))
    assert (len(frames.visual), len(frames.sync), frames.trimmed) == (121, 376, False)
    with pytest.raises(VideoTooLongError, match=r"lasts 15\.20 s, the limit is 15\.00 s"):
        decode_80(write_clip(tmp_path / "after.mp4", num_frames=152, fps=10))


def test_trimming_leaves_out_what_lies_after_the_limit_and_says_so(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", num_frames=200, fps=10)
    frames = decode_80(clip, trim=True)
    assert numbers(frames.sync)[-1] == 150
    assert (frames.trimmed, frames.source_seconds) == (True, 20.0)
    assert "20.00 s" in frames.notices[0]
    assert numbers(decode_80(clip, trim=True, limits=MediaLimits(max_seconds=1.0)).sync)[-1] == 10


def test_decoding_stops_at_the_limit(tmp_path: Path) -> None:
    # Packets after the limit are destroyed: a decoder that reached them would fail.
    clip = write_clip(tmp_path / "clip.mov", num_frames=60, codec="png", pix_fmt="rgb24")
    content = bytearray(clip.read_bytes())
    starts = [i for i in range(len(content)) if content[i : i + 4] == b"\x89PNG"]
    for start in starts[-20:]:
        content[start : start + 40] = bytes(40)
    clip.write_bytes(content)
    frames = decode_80(clip, trim=True, limits=MediaLimits(max_seconds=1.0), num_threads=1)
    assert numbers(frames.sync)[-1] == 25


def test_timestamps_that_start_after_the_limit_leave_no_frame(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", times_ms=[20_000, 20_040])
    for trim in (False, True):
        with pytest.raises(NoFramesError, match=r"20\.00 s"):
            decode_80(clip, trim=trim)


def test_a_strip_that_scaling_would_blow_up_is_refused(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", size=(4000, 2), codec="ffv1", pix_fmt="yuv444p")
    with pytest.raises(VideoTooLargeError, match="4000 x 2"):
        decode_80(clip)


def test_probe_tells_what_the_clip_is(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", num_frames=50, size=(96, 64))
    assert probe(clip) == VideoInfo(
        container="mov,mp4,m4a,3gp,3g2,mj2",
        codec="h264",
        width=96,
        height=64,
        rotation=0,
        duration_seconds=2.0,
        frame_rate=25.0,
        has_audio=False,
    )


@pytest.mark.long
def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    # 6 s more of 720p are 60 frames of 2.8 MB; held at full size they would take 160 MB.
    short = write_clip(tmp_path / "short.mp4", num_frames=20, fps=10, size=(1280, 720))
    long = write_clip(tmp_path / "long.mp4", num_frames=80, fps=10, size=(1280, 720))
    program = f"""
        from pathlib import Path
        from foley.media.decode import decode_frames
        for clip in ({str(short)!r}, {str(long)!r}):
            decode_frames(Path(clip), visual_size=64, sync_size=64, num_threads=1)
            status = Path("/proc/self/status").read_text()
            print(status.partition("VmHWM:")[2].split()[0])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], check=True, capture_output=True, text=True
    )
    short_kib, long_kib = map(int, done.stdout.split())
    assert long_kib - short_kib < 50 * 1024  # the frames that are returned take 3 MB


def test_with_an_exact_clock_no_frame_lasts_beyond_the_limit(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", num_frames=60)
    limits = MediaLimits(max_seconds=2.0)
    frames = decode_80(clip, limits=limits, trim=True, exact_clock=True)
    assert frames.trimmed
    assert numbers(frames.sync) == list(range(50))
    assert numbers(decode_80(clip, limits=limits, trim=True).sync)[-1] == 50


def test_frames_do_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", num_frames=40)
    one, four = (
        decode_frames(clip, visual_size=64, sync_size=48, num_threads=number) for number in (1, 4)
    )
    assert torch.equal(one.visual, four.visual)
    assert torch.equal(one.sync, four.sync)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc lists the threads")
def test_only_clips_that_take_longer_start_threads(tmp_path: Path) -> None:
    short = write_clip(tmp_path / "short.mp4", num_frames=20)
    longer = write_clip(tmp_path / "longer.mp4", num_frames=20, size=(640, 400))
    program = (
        "import os, sys; from pathlib import Path; import foley.media.decode as decode\n"
        "scaled = decode.fit_and_crop\n"
        "def count(image, size):\n"
        "    most[0] = max(most[0], len(os.listdir('/proc/self/task')))\n"
        "    return scaled(image, size)\n"
        "decode.fit_and_crop = count\n"
        "for clip in sys.argv[1:]:\n"
        "    most = [0]\n"
        "    decode.decode_frames(Path(clip), visual_size=32, sync_size=32)\n"
        "    print(most[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, short, longer],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    of_short, of_longer = map(int, done.stdout.split())
    assert of_short == 1
    # Those of the decoder and of the scaling, beside this one. A converter starts none.
    assert 1 < of_longer <= 1 + 2 * min(8, os.cpu_count() or 1)


def test_a_decoder_that_is_dropped_leaves_no_thread(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", num_frames=400, size=(112, 112))
    pieces = decode_pieces(clip, visual_size=32, sync_size=32)
    next(pieces)
    assert any(thread.name.startswith("scale") for thread in threading.enumerate())
    pieces.close()  # type: ignore[attr-defined]
    assert not any(thread.name.startswith("scale") for thread in threading.enumerate())

import functools
import random
import time
from pathlib import Path

import av
import pytest

from foley.errors import (
    NoFramesError,
    NoVideoStreamError,
    VideoDecodeError,
    VideoEmptyError,
    VideoTooCostlyError,
    VideoTooLargeError,
)
from foley.media import decode
from foley.media.decode import decode_frames, probe
from foley.media.integrity import measure_index, missing_bytes
from foley.media.source import MediaLimits, translate_read_errors
from tests.media.clips import write_bomb, write_clip, write_sound

CLIPS = Path(__file__).parents[1] / "assets/clips"


def check_refusal(clip: Path, error: type[Exception], match: str, **limits: int) -> None:
    """Assert that `probe` and `decode_frames` both refuse the clip."""
    checked = MediaLimits(max_seconds=15, **limits)
    with pytest.raises(error, match=match):
        probe(clip, limits=checked)
    with pytest.raises(error, match=match):
        decode_frames(clip, visual_size=32, sync_size=32, limits=checked)


def test_no_file(tmp_path: Path) -> None:
    check_refusal(tmp_path / "none.mp4", VideoDecodeError, "there is no file")


def test_no_bytes(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    check_refusal(tmp_path / "empty.mp4", VideoEmptyError, "0 bytes")


@pytest.mark.parametrize(
    "content",
    [b"hello", b"\x00" * 5000, random.Random(0).randbytes(20_000), b"%PDF-1.7\n" + b"x" * 999],
)
def test_not_a_video(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "clip.mp4").write_bytes(content)
    check_refusal(tmp_path / "clip.mp4", VideoDecodeError, "cannot be read as a video|cut off")


@pytest.mark.parametrize(
    "playlist",
    ["#EXTM3U\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile {}\n"],
)
def test_a_playlist_may_not_open_other_files(tmp_path: Path, playlist: str) -> None:
    secret = write_clip(tmp_path / "secret.ts")
    (tmp_path / "clip.mp4").write_text(playlist.format(secret))
    check_refusal(tmp_path / "clip.mp4", VideoDecodeError, "cannot be read as a video")


def test_sound_alone(tmp_path: Path) -> None:
    check_refusal(write_sound(tmp_path / "clip.m4a"), NoVideoStreamError, "streams: audio")


def test_a_cover_picture_is_not_a_video(tmp_path: Path) -> None:
    clip = tmp_path / "song.mp4"
    with av.open(str(clip), "w") as writer:
        cover = writer.add_stream("png")
        cover.width = cover.height = 16
        cover.pix_fmt = "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic.value
        writer.mux(cover.encode(av.VideoFrame(16, 16, "rgb24")))
        writer.mux(cover.encode(None))
    check_refusal(clip, NoVideoStreamError, r"no picture stream \(streams: a cover picture\)")


def test_a_picture_stream_without_frames(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", num_frames=0, sound=True)
    check_refusal(clip, NoFramesError, "frame")


def test_a_picture_hidden_by_its_edit_list(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", times_ms=range(-1000, 0, 40), sound=True)
    check_refusal(clip, NoFramesError, "frame")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ((CLIPS / "still.png").read_bytes(), "PNG"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(999), "JPEG"),
        (b"RIFF\x20\0\0\0WEBPVP8 " + bytes(99), "WebP"),
        (b"\0\0\0\x1cftypheic" + bytes(999), "HEIC"),
        (b"II*\0" + bytes(999), "TIFF"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_still_picture_is_named_as_one(tmp_path: Path, content: bytes, kind: str) -> None:
    (tmp_path / "clip").write_bytes(content)
    check_refusal(tmp_path / "clip", VideoDecodeError, rf"is a picture \({kind}\) and not a video")


def test_a_gif_of_one_frame_is_a_picture(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.gif", codec="gif", pix_fmt="rgb8", num_frames=1)
    check_refusal(clip, VideoDecodeError, "is a picture")


def test_an_unknown_codec(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    clip.write_bytes(clip.read_bytes().replace(b"avc1\0\0\0\0\0\0", b"zzzz\0\0\0\0\0\0"))
    check_refusal(clip, VideoDecodeError, "no decoder here knows")


def test_too_many_pixels(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", size=(96, 64))
    check_refusal(
        clip, VideoTooLargeError, "96 x 64 = 6144 pixels, the limit is 6143", max_pixels=6143
    )
    probe(clip, limits=MediaLimits(max_pixels=6144))


def test_too_many_frames_and_pixels_in_all_of_them(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", size=(96, 64), num_frames=30)  # no count in the file
    decode = functools.partial(decode_frames, clip, visual_size=32, sync_size=32)
    decode(limits=MediaLimits(max_seconds=15, max_total_pixels=30 * 6144))
    with pytest.raises(VideoTooCostlyError, match="30 frames of 6144 pixels are 184320 pixels"):
        decode(limits=MediaLimits(max_seconds=15, max_total_pixels=30 * 6144 - 1))
    decode(limits=MediaLimits(max_seconds=14, max_frame_rate=2))
    with pytest.raises(VideoTooCostlyError, match=r"the first 14 s have 16 frames or more.* is 15"):
        decode(limits=MediaLimits(max_seconds=14, max_frame_rate=1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "num_frames", "words"),
    [
        ((4096, 2304), 15_000, "15000 frames of 9437184 pixels are 141557760000 pixels"),
        ((64, 64), 15_000, "15000 frames or more, the limit is 7680"),
    ],
)
def test_a_small_file_of_very_many_frames_is_refused_before_one_is_decoded(
    tmp_path: Path, size: tuple[int, int], num_frames: int, words: str
) -> None:
    clip = write_bomb(tmp_path / "bomb.mp4", size=size, num_frames=num_frames, fps=1000)
    started = time.process_time()
    check_refusal(clip, VideoTooCostlyError, words, max_frame_rate=2000 if size[0] > 64 else 480)
    assert time.process_time() - started < 2  # decoding takes minutes; measured: 0.01 s


def test_a_file_with_a_huge_index_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    clip = write_bomb(tmp_path / "bomb.mp4", size=(64, 64), num_frames=1000, fps=100)
    num_bytes = measure_index(clip)
    assert 4000 < num_bytes < 5000  # four bytes for the place of each frame
    decode_frames(clip, visual_size=32, sync_size=32, limits=MediaLimits(max_index_bytes=num_bytes))
    words = f"an index of {num_bytes} bytes, the limit is {num_bytes - 1}"
    check_refusal(clip, VideoTooCostlyError, words, max_index_bytes=num_bytes - 1)


def test_too_many_bytes(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    size = clip.stat().st_size
    check_refusal(clip, VideoTooLargeError, f"{size} bytes, the limit is 100", max_bytes=100)
    probe(clip, limits=MediaLimits(max_bytes=size))


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.97])
@pytest.mark.parametrize(
    ("name", "muxer"),
    [
        ("clip.mp4", {}),
        ("clip.mp4", {"movflags": "+faststart"}),
        ("clip.mp4", {"movflags": "+frag_keyframe+empty_moov"}),
        ("clip.mov", {}),
        ("clip.mkv", {}),
        ("clip.avi", {}),
    ],
)
def test_a_cut_off_file_is_refused(
    tmp_path: Path, name: str, muxer: dict[str, str], kept: float
) -> None:
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    clip = write_clip(tmp_path / name, num_frames=50, codec=codec, muxer=muxer)
    whole = clip.read_bytes()
    assert missing_bytes(clip) == 0
    clip.write_bytes(whole[: int(len(whole) * kept)])
    check_refusal(clip, VideoDecodeError, "cut off|cannot be read")


EBML = b"\x1a\x45\xdf\xa3"


@pytest.mark.parametrize(
    "content",
    [
        EBML + bytes(4_000_000),
        EBML + b"\x80" + b"\x81\x80" * 2_000_000,  # empty elements
        EBML + b"\x80" + b"\x81\xff" * 2_000_000,  # of unknown length
        b"\0\0\0\x08free" * 3_000_000,
    ],
    ids=["zeros", "elements", "unknown", "boxes"],
)
def test_garbage_is_not_walked_to_its_end(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "clip").write_bytes(content)
    started = time.thread_time()
    assert missing_bytes(tmp_path / "clip") == 0
    # Measured: below 0.01 s, and 0.9 to 3 s when every byte is read.
    assert time.thread_time() - started < 0.2


def test_a_clip_of_many_fragments_is_judged_to_its_end(tmp_path: Path) -> None:
    clip = write_clip(
        tmp_path / "clip.mp4", num_frames=900, fps=60, muxer={"movflags": "+frag_every_frame"}
    )
    content = clip.read_bytes()
    assert content.count(b"moof") > 890
    clip.write_bytes(content[: content.rindex(b"moof") - 10])
    assert missing_bytes(clip) > 0


@pytest.mark.slow
def test_opening_ends_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foley.media.source.READ_TIMEOUT_SECONDS", 0.3)
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x08free" * 3_000_000)
    started = time.thread_time()
    check_refusal(tmp_path / "clip.mp4", VideoDecodeError, "cannot be read as a video")
    # Measured: 0.6 s for both readers; 3.5 s without the limit.
    assert time.thread_time() - started < 1.5


def test_damage_in_the_middle_is_refused(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mov", codec="png", pix_fmt="rgb24")
    content = bytearray(clip.read_bytes())
    start = [i for i in range(len(content)) if content[i : i + 4] == b"\x89PNG"][9]
    content[start : start + 40] = bytes(40)
    clip.write_bytes(content)
    with pytest.raises(VideoDecodeError, match="damaged after frame 9"):
        decode_frames(clip, visual_size=32, sync_size=32, num_threads=1)


def test_a_recording_that_starts_between_key_frames_is_read(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "whole.ts", num_frames=60, options={"g": "20", "bf": "0"})
    with av.open(str(clip)) as reader:
        starts = [p.pos for p in reader.demux(video=0) if p.size]
    clip.write_bytes(clip.read_bytes()[starts[5] // 188 * 188 :])
    frames = decode_frames(clip, visual_size=80, sync_size=80)
    assert len(frames.sync) >= 40


def test_a_time_that_has_no_64_bits_is_damage_of_the_clip() -> None:
    with (
        pytest.raises(VideoDecodeError, match="no clock"),
        translate_read_errors(Path("clip.nut")),
    ):
        av.Packet(b"x").pts = 2**63  # as where a clock leaps from one end to the other


def test_packets_without_end_that_show_no_picture_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = write_clip(tmp_path / "clip.mp4", times_ms=range(-1000, 0, 40), sound=True)
    monkeypatch.setattr(decode, "_MAX_UNSEEN_PACKETS", 3)
    check_refusal(hidden, VideoTooCostlyError, "3 packets in a row show no picture")

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from foley.errors import (
    ModelError,
    OutputError,
    ParameterError,
    VideoDecodeError,
    VideoEmptyError,
    VideoTooLargeError,
)
from foley.media.decode import decode_frames, decode_packets, probe
from foley.media.mux import MediaFile, choose_container, write_audio, write_video
from foley.media.packets import complete_timestamps
from foley.media.source import MediaLimits
from runners.settings import Settings
from tests.media.clips import (
    ROTATED,
    loudest_second,
    numbers,
    picture_packets,
    shown_seconds,
    write_clip,
)

CLIPS = Path(__file__).parents[1] / "assets/clips"
RATE = 48_000
AUDIO_FRAME_SECONDS = 1024 / RATE
CONTAINERS = ["mp4", "mov", "mkv", "webm"]


def click(at_seconds: float, *, seconds: float = 1.0, channels: int = 1) -> Tensor:
    """Silence with one loud sample."""
    waveform = torch.zeros(channels, int(seconds * RATE))
    waveform[:, round(at_seconds * RATE)] = 0.9
    return waveform


def codec_for(container: str) -> str:
    return "libvpx-vp9" if container == "webm" else "libx264"


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("late_ms", [0, 500])
def test_sound_is_where_it_was_put(tmp_path: Path, container: str, late_ms: int) -> None:
    times = [late_ms + 40 * index for index in range(25)]
    source = write_clip(tmp_path / "in.mkv", times_ms=times, codec=codec_for(container))
    written = write_video(source, click(0.625), tmp_path / f"out.{container}")
    assert written.path.suffix == f".{container}"
    assert written.notices == ()
    # Measured: 0 in mp4 and mov, 0.3 ms in mkv and 0.5 ms in webm, whose ticks are milliseconds.
    assert abs(loudest_second(written.path) - 0.625) < 0.001 < AUDIO_FRAME_SECONDS
    assert shown_seconds(written.path) == pytest.approx([t / 1000 for t in times], abs=1e-9)


@pytest.mark.parametrize("container", CONTAINERS)
def test_picture_packets_are_copied_untouched(tmp_path: Path, container: str) -> None:
    source = write_clip(
        tmp_path / "in.mkv",
        codec=codec_for(container),
        options={"bf": "3"} if container != "webm" else None,
    )
    written = write_video(source, click(0.5), tmp_path / f"out.{container}")
    expected, copied = picture_packets(source), picture_packets(written.path)
    assert [content for content, *_ in copied] == [content for content, *_ in expected]
    assert [s for *_, s in copied] == pytest.approx([s for *_, s in expected], abs=1e-9)


def test_mp4_to_mp4_keeps_every_timestamp(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mp4", fps=30, options={"bf": "2"})
    written = write_video(source, click(0.5), tmp_path / "out.mp4")
    assert picture_packets(written.path) == picture_packets(source)


def clip_with_hidden_start(path: Path) -> Path:
    """An mp4 whose edit list hides the first five of 25 frames."""
    return write_clip(path, times_ms=[40 * index - 200 for index in range(25)])


def test_an_edit_list_is_kept(tmp_path: Path) -> None:
    source = clip_with_hidden_start(tmp_path / "in.mp4")
    written = write_video(source, click(0.5), tmp_path / "out.mp4")
    assert shown_seconds(source)[0] == 0.0
    assert shown_seconds(written.path) == shown_seconds(source)
    assert len(picture_packets(written.path)) == 25
    assert loudest_second(written.path) == pytest.approx(0.5, abs=0.001)


def test_a_container_without_edit_lists_keeps_sound_with_the_picture(tmp_path: Path) -> None:
    source = clip_with_hidden_start(tmp_path / "in.mp4")
    written = write_video(source, click(0.5), tmp_path / "out.mkv")
    assert loudest_second(written.path) == pytest.approx(0.7, abs=0.001)
    assert "0.20 s of picture" in written.notices[0]


@pytest.mark.parametrize("degrees", [90, 180, 270])
@pytest.mark.parametrize("container", ["mp4", "mov", "mkv"])
def test_rotation_and_title_are_kept(tmp_path: Path, container: str, degrees: int) -> None:
    source = write_clip(
        tmp_path / "in.mp4", size=(96, 64), display=ROTATED[degrees], title="A title"
    )
    written = write_video(source, click(0.5), tmp_path / f"out.{container}")
    assert probe(written.path).rotation == probe(source).rotation == -degrees % 360
    with av.open(str(written.path)) as reader:
        assert reader.metadata["title"] == "A title"


def test_only_the_picture_and_the_new_sound_are_in_the_result(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mkv", sound=True, second_picture=True)
    written = write_video(source, click(0.5), tmp_path / "out.mkv")
    with av.open(str(written.path)) as reader:
        assert [stream.type for stream in reader.streams] == ["video", "audio"]
    assert numbers(decode_frames(written.path, visual_size=80, sync_size=80).visual)[1] == 4


@pytest.mark.parametrize(("container", "codec"), [("mp4", "aac"), ("webm", "opus")])
@pytest.mark.parametrize("channels", [1, 2])
def test_sound_is_stereo(tmp_path: Path, container: str, codec: str, channels: int) -> None:
    source = write_clip(tmp_path / "in.mkv", codec=codec_for(container))
    tone = 0.5 * torch.sin(torch.arange(RATE) * 0.05)
    waveform = torch.stack([tone, torch.zeros_like(tone)])[:channels]
    written = write_video(source, waveform, tmp_path / f"out.{container}")
    assert written == MediaFile(
        path=tmp_path / f"out.{container}", container=container, codec=codec
    )
    with av.open(str(written.path)) as reader:
        frames = [frame.to_ndarray() for frame in reader.decode(audio=0)]
        assert reader.streams.audio[0].rate == RATE
    # The second half: FFmpeg's AAC overshoots in the first frames.
    left, right = np.abs(np.concatenate(frames, axis=1)[:, RATE // 2 : RATE - 2048]).max(axis=1)
    assert left == pytest.approx(0.5, abs=0.02)
    assert right == pytest.approx(left if channels == 1 else 0.0, abs=0.01)


@pytest.mark.parametrize("bitrate", [96_000, 192_000])
@pytest.mark.parametrize("container", ["mp4", "webm"])
def test_sound_has_the_bitrate_asked_for(tmp_path: Path, container: str, bitrate: int) -> None:
    torch.manual_seed(0)
    source = write_clip(tmp_path / "in.mkv", codec=codec_for(container))
    noise = torch.rand(2, 4 * RATE) - 0.5
    written = write_video(source, noise, tmp_path / f"out.{container}", audio_bitrate=bitrate)
    with av.open(str(written.path)) as reader:
        bits = 8 * sum(packet.size for packet in reader.demux(audio=0))
    assert bits / 4 == pytest.approx(bitrate, rel=0.15)  # measured: 10 % below, Opus


def test_opus_takes_a_waveform_of_another_rate(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.webm", codec="libvpx-vp9")
    waveform = torch.zeros(1, 44_100)
    waveform[:, 22_050] = 0.9
    written = write_video(source, waveform, tmp_path / "out.webm", sample_rate=44_100)
    assert loudest_second(written.path) == pytest.approx(0.5, abs=0.001)


@pytest.mark.parametrize(
    ("codec", "container", "refused"),
    [("libx264", "webm", "h264"), ("libvpx-vp9", "mov", "vp9"), ("ffv1", "webm", "ffv1")],
)
def test_a_codec_that_does_not_fit_gives_mkv_and_says_so(
    tmp_path: Path, codec: str, container: str, refused: str
) -> None:
    source = write_clip(tmp_path / "in.mkv", codec=codec)
    written = write_video(source, click(0.5), tmp_path / f"out.{container}")
    assert (written.path, written.container) == (tmp_path / "out.mkv", "mkv")
    assert written.notices == (
        f"{container} does not take {refused} pictures: the result is out.mkv.",
    )
    assert len(picture_packets(written.path)) == 25
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mkv", "out.mkv"]


def test_the_mkv_instead_replaces_neither_the_source_nor_another_file(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "clip.mkv", codec="libvpx-vp9")
    content = source.read_bytes()
    (tmp_path / "clip-2.mkv").write_bytes(b"another film")
    written = write_video(source, click(0.5), tmp_path / "clip.mov")
    assert written.path == tmp_path / "clip-3.mkv"
    assert written.notices == ("mov does not take vp9 pictures: the result is clip-3.mkv.",)
    assert loudest_second(written.path) == pytest.approx(0.5, abs=0.001)
    assert source.read_bytes() == content
    assert (tmp_path / "clip-2.mkv").read_bytes() == b"another film"


def test_a_failed_mkv_instead_leaves_no_file(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mkv", codec="libvpx-vp9")
    with pytest.raises(OutputError):  # no FLAC at this rate
        write_video(source, click(0.5), tmp_path / "out.mov", sample_rate=2_000_000)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mkv"]


def test_a_destination_that_is_named_mkv_is_replaced(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.webm", codec="libvpx-vp9")
    (tmp_path / "out.mkv").write_bytes(b"before")
    written = write_video(source, click(0.5), tmp_path / "out.mkv", container="mov")
    assert written.path == tmp_path / "out.mkv"
    assert len(picture_packets(written.path)) == 25


@pytest.mark.parametrize(
    ("codec", "wanted", "given"),
    [("libx264", "mp4", "mp4"), ("libx264", "webm", "mkv"), ("libvpx-vp9", "mov", "mkv")],
)
def test_the_container_is_known_before(tmp_path: Path, codec: str, wanted: str, given: str) -> None:
    source = write_clip(tmp_path / "in.mkv", codec=codec)
    assert choose_container(source, wanted) == given
    assert write_video(source, click(0.5), tmp_path / f"out.{wanted}").container == given


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(
    ("codec", "suffix", "pix_fmt"), [("gif", "gif", "rgb8"), ("apng", "png", "rgb24")]
)
def test_an_animation_is_written_as_video(
    tmp_path: Path, container: str, codec: str, suffix: str, pix_fmt: str
) -> None:
    source = write_clip(
        tmp_path / f"in.{suffix}",
        codec=codec,
        pix_fmt=pix_fmt,
        num_frames=20,
        fps=10,
        container="apng" if codec == "apng" else None,
    )
    assert choose_container(source, container) == container
    written = write_video(source, click(0.5), tmp_path / f"out.{container}")
    encoded = "VP9" if container == "webm" else "H.264"
    assert written.notices == (f"The pictures are encoded as {encoded}.",)
    assert shown_seconds(written.path) == pytest.approx([0.1 * n for n in range(20)])
    assert numbers(decode_frames(written.path, visual_size=80, sync_size=80).visual)[-1] == 19


@pytest.mark.parametrize(
    ("clip", "container", "encoder"), [("base.3gp", "mov", None), ("base.wmv", "mp4", "H.264")]
)
def test_old_codecs_are_written_to_a_container_that_works(
    tmp_path: Path, clip: str, container: str, encoder: str | None
) -> None:
    source = CLIPS / clip
    assert choose_container(source, "mp4") == container
    written = write_video(source, click(0.5), tmp_path / "out.mp4")
    assert written.path == tmp_path / f"out.{container}"
    assert len(written.notices) == 1
    assert encoder is None or encoder in written.notices[0]
    assert shown_seconds(written.path) == pytest.approx(shown_seconds(source), abs=0.002)


def test_a_packet_that_a_container_refuses_is_found_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No clip is known whose packets are still refused, so one is put out of order here.
    source = write_clip(tmp_path / "in.mp4")

    def break_packets(*_: object) -> Iterator[object]:
        for index, packet in enumerate(complete_timestamps(*_)):
            if index == 10:
                packet.dts -= 1000 * index
            yield packet

    monkeypatch.setattr("foley.media.mux.complete_timestamps", break_packets)
    with pytest.raises(VideoDecodeError, match=r"mp4 does not take the picture at 0\.40 s"):
        choose_container(source, "mp4")
    with pytest.raises(OutputError, match="its format does not take"):
        write_video(source, click(0.5), tmp_path / "out.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


@pytest.mark.parametrize(
    ("codec", "source", "container", "tag"),
    [
        ("libx264", "mkv", "mp4", "avc1"),
        ("libx265", "mkv", "mp4", "hvc1"),
        ("libx265", "mp4", "mov", "hev1"),
        ("libvpx-vp9", "webm", "mp4", "vp09"),
        ("libsvtav1", "mkv", "mp4", "av01"),
    ],
)
def test_common_codecs_fit_mp4(
    tmp_path: Path, codec: str, source: str, container: str, tag: str
) -> None:
    clip = write_clip(tmp_path / f"in.{source}", codec=codec)
    written = write_video(clip, click(0.5), tmp_path / f"out.{container}")
    assert written.container == container
    with av.open(str(written.path)) as reader:
        assert reader.streams.video[0].codec_context.codec_tag == tag
    assert len(shown_seconds(written.path)) == 25


@pytest.mark.parametrize("b_frames", [0, 3])
@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_a_stream_without_timestamps_gets_them(
    tmp_path: Path, container: str, b_frames: int
) -> None:
    options = {"bf": str(b_frames), "preset": "veryfast"}
    source = write_clip(tmp_path / "in.h264", container="h264", options=options)
    written = write_video(source, click(0.5), tmp_path / f"out.{container}")
    assert shown_seconds(written.path) == pytest.approx([0.04 * n for n in range(25)])
    assert numbers(decode_frames(written.path, visual_size=80, sync_size=80).visual)[-1] == 22


def raw_clip(path: Path, num_frames: int) -> Path:
    options = {"bf": "3", "preset": "veryfast", "g": "250"}
    return write_clip(path, num_frames=num_frames, container="h264", options=options)


@pytest.mark.slow
@pytest.mark.parametrize("stop_seconds", [0.5, 1.0, 1.02, 6.9])
def test_a_stream_without_timestamps_is_trimmed_alike_however_long_it_is(
    tmp_path: Path, stop_seconds: float
) -> None:
    # The long one is not decoded to its end.
    for name, num_frames in [("short", 175), ("long", 400)]:
        source = raw_clip(tmp_path / f"{name}.h264", num_frames)
        write_video(source, click(0.1), tmp_path / f"{name}.mp4", stop_seconds=stop_seconds)
    short, long = shown_seconds(tmp_path / "short.mp4"), shown_seconds(tmp_path / "long.mp4")
    before = [0.04 * n for n in range(175) if 0.04 * n < stop_seconds]
    assert [s for s in short if s < stop_seconds] == pytest.approx(before)
    assert [s for s in long if s < stop_seconds] == pytest.approx(before)
    assert len(long) - len(before) <= 3  # frames that B-frames before the stop need


def test_a_stream_without_timestamps_is_decoded_no_further_than_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = raw_clip(tmp_path / "in.h264", 400)
    counts = []

    def counting(packets: Iterable[object], limits: MediaLimits) -> list[object]:
        frames = list(decode_packets(packets, limits))
        counts.append(len(frames))
        return frames

    monkeypatch.setattr("foley.media.packets.decode_packets", counting)
    write_video(source, click(0.5), tmp_path / "out.mp4", stop_seconds=1.0)
    assert counts[0] < 80


def test_a_part_without_pictures_is_refused_and_not_written_as_a_sound(
    tmp_path: Path,
) -> None:
    source = write_clip(tmp_path / "clip.mp4", num_frames=10)
    with pytest.raises(VideoDecodeError, match="no picture of the clip"):
        write_video(source, click(0.1), tmp_path / "out.mp4", stop_seconds=0.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4"]


def test_a_stream_without_timestamps_is_decoded_within_the_limits(tmp_path: Path) -> None:
    source = raw_clip(tmp_path / "in.h264", 25)
    with pytest.raises(VideoTooLargeError, match="6400 pixels, the limit is 6399"):
        write_video(source, click(0.5), tmp_path / "out.mp4", limits=MediaLimits(max_pixels=6399))
    assert [path.name for path in tmp_path.iterdir()] == ["in.h264"]


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_a_stream_without_timestamps_may_start_between_key_frames(
    tmp_path: Path, container: str
) -> None:
    options = {"bf": "0", "g": "10"}
    source = write_clip(tmp_path / "in.h264", container="h264", options=options)
    with av.open(str(source)) as reader:
        packets = [bytes(packet) for packet in reader.demux(video=0) if packet.size]
    headers = packets[0][: packets[0].index(b"\0\0\1\x65")]
    source.write_bytes(headers + b"".join(packets[5:]))
    frames = decode_frames(source, visual_size=80, sync_size=80)
    assert (frames.num_picked, numbers(frames.sync)[0]) == (15, 10)
    write_video(source, click(0.5), tmp_path / f"out.{container}")
    assert shown_seconds(tmp_path / f"out.{container}") == pytest.approx(
        [0.04 * n for n in range(15)]
    )
    assert loudest_second(tmp_path / f"out.{container}") == pytest.approx(0.5, abs=0.001)
    written = decode_frames(tmp_path / f"out.{container}", visual_size=80, sync_size=80)
    assert numbers(written.sync)[0] == 10


@pytest.mark.parametrize("b_frames", [0, 3])
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_trimmed_clip_ends_where_its_sound_ends(
    tmp_path: Path, container: str, b_frames: int
) -> None:
    options = {"bf": str(b_frames), "preset": "veryfast"} if container != "webm" else None
    source = write_clip(
        tmp_path / "in.mkv", num_frames=50, codec=codec_for(container), options=options
    )
    written = write_video(source, click(0.5), tmp_path / f"out.{container}", stop_seconds=1.0)
    seconds = shown_seconds(written.path)
    expected = [0.04 * n for n in range(25)]
    assert seconds[:25] == pytest.approx(expected)
    # B-frames at the end depend on the frame after them, which is then shown too.
    assert len(seconds) - 25 <= (1 if b_frames else 0)
    with av.open(str(written.path)) as reader:
        for frame in reader.decode(video=0):
            assert not frame.is_corrupt


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (torch.zeros(48_000), "shape"),
        (torch.zeros(3, 48_000), "shape"),
        (torch.zeros(1, 0), "shape"),
    ],
)
def test_a_bad_waveform_is_refused(tmp_path: Path, waveform: Tensor, message: str) -> None:
    source = write_clip(tmp_path / "in.mp4")
    with pytest.raises(ParameterError, match=message):
        write_video(source, waveform, tmp_path / "out.mp4")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["out.mp4", "out.wav"])
def test_values_that_are_not_finite_are_the_models_fault(
    tmp_path: Path, name: str, value: float
) -> None:
    waveform = torch.full((1, 100), value)
    source = write_clip(tmp_path / "in.mp4")
    write = write_audio if name.endswith("wav") else partial(write_video, source)
    with pytest.raises(ModelError, match="100 values that are not finite"):
        write(waveform, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_an_unknown_suffix_is_refused_unless_the_container_is_given(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mp4")
    with pytest.raises(OutputError, match="mp4, mov, mkv, webm"):
        write_video(source, click(0.5), tmp_path / "out.gif")
    written = write_video(source, click(0.5), tmp_path / "out.part", container="mp4")
    assert (written.path.name, written.container) == ("out.part", "mp4")


def test_failure_leaves_nothing_behind_and_keeps_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "out.mp4").write_bytes(b"before")
    cut = write_clip(tmp_path / "cut.ts", num_frames=50, options={"bf": "0"})
    (tmp_path / "empty.mp4").touch()
    whole = write_clip(tmp_path / "whole.mp4")
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:-500])
    with pytest.raises(VideoEmptyError):
        write_video(tmp_path / "empty.mp4", click(0.5), folder / "out.mp4")
    with pytest.raises(VideoDecodeError):
        write_video(tmp_path / "cut.mp4", click(0.5), folder / "out.mp4")
    with pytest.raises(OutputError, match="cannot be written"):
        write_video(cut, click(0.5), folder / "none" / "out.mp4")
    with pytest.raises(OutputError):  # no FLAC at this rate: refused when the encoder opens
        write_video(cut, click(0.5), folder / "out.mp4", sample_rate=2_000_000)
    assert [path.name for path in folder.iterdir()] == ["out.mp4"]
    assert (folder / "out.mp4").read_bytes() == b"before"


def test_a_file_may_be_written_over_its_source(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    expected = picture_packets(clip)
    write_video(clip, click(0.5), clip)
    assert picture_packets(clip) == expected
    assert probe(clip).has_audio


def test_a_name_may_be_as_long_as_names_can_be(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mp4")
    written = write_video(source, click(0.5), tmp_path / ("n" * 251 + ".mp4"))
    assert len(picture_packets(written.path)) == 25


@pytest.mark.parametrize(
    ("place", "container", "reason"),
    [
        ("n" * 252 + ".mp4", "mp4", "File name too long"),
        ("n" * 252 + ".mp4", "webm", "File name too long"),  # of the mkv instead
        ("in.mp4/out.mp4", "mp4", "Not a directory"),
        ("in.mp4/out.mp4", "webm", "Not a directory"),
        ("none/out.mp4", "mp4", "No such file or directory"),
        ("none/out.mp4", "webm", "No such file or directory"),
        ("folder.mp4", "mp4", "Is a directory"),
        (".", "mp4", "Is a directory|busy"),
    ],
)
def test_a_place_that_cannot_be_written_is_the_callers_error(
    tmp_path: Path, place: str, container: str, reason: str
) -> None:
    source = write_clip(tmp_path / "in.mp4")
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(OutputError, match=f"cannot be written.*({reason})"):
        write_video(source, click(0.5), tmp_path / place, container=container)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.mp4", "in.mp4"]


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "source", "result"),
    [
        ("prores_ks", "yuva444p10le", "in.mov", "out.mkv"),  # without its tag it is 4:2:2
        ("rawvideo", "bgr24", "in.avi", "out.mov"),  # which has no such pixels
        ("rawvideo", "yuv420p", "in.nut", "out.mkv"),
    ],
)
def test_a_picture_is_decoded_as_before_in_another_container(
    tmp_path: Path, codec: str, pix_fmt: str, source: str, result: str
) -> None:
    clip = write_clip(tmp_path / source, codec=codec, pix_fmt=pix_fmt, num_frames=20)
    written = write_video(clip, click(0.5), tmp_path / result)
    assert written.path == tmp_path / result
    frames = decode_frames(written.path, visual_size=80, sync_size=80, exact_clock=True)
    assert numbers(frames.sync) == list(range(20))
    if codec == "prores_ks":
        with av.open(str(clip)) as before, av.open(str(written.path)) as after:
            kept = [next(reader.decode(video=0)) for reader in (before, after)]
        assert kept[0].format.name == kept[1].format.name
        assert np.array_equal(
            kept[0].to_ndarray(format="rgb24"), kept[1].to_ndarray(format="rgb24")
        )


def test_what_mp4_does_not_take_of_a_mov_stays_a_mov(tmp_path: Path) -> None:
    """Editors do not open ProRes in Matroska."""
    clip = write_clip(tmp_path / "in.mov", codec="prores_ks", pix_fmt="yuv422p10le", num_frames=5)
    before = clip.read_bytes()
    assert choose_container(clip, "mp4") == "mov"
    written = write_video(clip, click(0.1), tmp_path / "in.mp4")
    assert written.path == tmp_path / "in-2.mov"
    assert written.notices == ("mp4 does not take prores pictures: the result is in-2.mov.",)
    with av.open(str(clip)) as source, av.open(str(written.path)) as result:
        tags = [reader.streams.video[0].codec_context.codec_tag for reader in (source, result)]
    assert tags[0] == tags[1]
    assert clip.read_bytes() == before
    assert choose_container(clip, "webm") == "mkv"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codec", "name", "size", "container"),
    [
        ("dvvideo", "in.dv", (720, 576), "mov"),  # as camcorders stream it
        ("dvvideo", "in.avi", (720, 576), "mov"),
        ("wmv1", "in.wmv", (80, 80), "mp4"),
        ("msmpeg4v2", "in.avi", (80, 80), "mp4"),
    ],
)
def test_clips_of_old_cameras_are_read_by_the_service_too(
    tmp_path: Path, codec: str, name: str, size: tuple[int, int], container: str
) -> None:
    clip = write_clip(tmp_path / name, codec=codec, size=size, num_frames=20)
    limits = MediaLimits(codecs=frozenset(Settings().video_codecs.split(",")))
    written = write_video(clip, click(0.8), tmp_path / "out.mp4", limits=limits)
    assert written.container == container
    frames = decode_frames(
        written.path, visual_size=80, sync_size=80, exact_clock=True, limits=limits
    )
    assert frames.num_picked == 20
    assert numbers(frames.visual) == [0, 3, 6, 9, 12, 16, 19]

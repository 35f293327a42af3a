from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch

from foley.media.cut import cut_clip
from foley.media.integrity import find_boxes
from foley.media.matroska import write_pixel_shape
from foley.media.mux import MediaFile, write_video
from tests.media.clips import write_clip

CLIPS = Path(__file__).parents[1] / "assets/clips"
ALPHA_MODE = b"\x53\xc0\x81\x01"  # the Matroska element, its size, and the value 1


def write(clip: Path, destination: Path, **options: float) -> MediaFile:
    return write_video(clip, torch.zeros(1, 48_000), destination, **options)


def read_tag(path: Path) -> str:
    with av.open(str(path)) as reader:
        return reader.streams.video[0].codec_context.codec_tag


def read_shape(path: Path) -> Fraction | None:
    with av.open(str(path)) as reader:
        return reader.streams.video[0].sample_aspect_ratio


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv"])
def test_pixels_keep_their_shape(tmp_path: Path, container: str) -> None:
    written = write(CLIPS / "pasp.mp4", tmp_path / f"out.{container}")
    assert written.notices == ()
    assert read_shape(written.path) == Fraction(4, 3)


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv"])
def test_the_shape_of_pixels_that_only_mkv_states_is_kept(tmp_path: Path, container: str) -> None:
    clip = write(CLIPS / "pasp.mp4", tmp_path / "in.mkv").path
    written = write(clip, tmp_path / f"out.{container}")
    assert written.notices == ()
    assert read_shape(written.path) == Fraction(4, 3)


@pytest.mark.slow
@pytest.mark.parametrize("container", ["webm", "mkv"])
def test_webm_states_the_shape_of_pixels_by_whole_pixels(tmp_path: Path, container: str) -> None:
    clip = write_clip(tmp_path / "in.webm", codec="libvpx", size=(80, 80))
    assert write_pixel_shape(clip, Fraction(4, 3), in_pixels=True)
    assert read_shape(clip) == Fraction(107, 80)
    written = write(clip, tmp_path / f"out.{container}")
    assert written.notices == ()
    assert read_shape(written.path) == Fraction(107, 80)


def test_a_part_keeps_the_shape_of_its_pixels(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.webm", codec="libvpx")
    assert write_pixel_shape(clip, Fraction(2), in_pixels=True)
    cut_clip(clip, tmp_path / "part", 0.2)
    assert read_shape(tmp_path / "part") == 2
    assert write(tmp_path / "part", tmp_path / "out.webm").notices == ()


@pytest.mark.parametrize("container", ["webm", "mkv"])
def test_transparency_is_kept(tmp_path: Path, container: str) -> None:
    written = write(CLIPS / "alpha.webm", tmp_path / f"out.{container}")
    assert ALPHA_MODE in written.path.read_bytes()
    decoder = av.CodecContext.create("libvpx-vp9", "r")
    with av.open(str(written.path)) as reader:
        packet = next(reader.demux(video=0))
        (frame, *_) = decoder.decode(packet) or decoder.decode(None)
    assert frame.format.name == "yuva420p"


@pytest.mark.parametrize("profile", ["apco", "apcs", "apcn", "apch"])
@pytest.mark.parametrize("source", ["mov", "mkv"])
def test_prores_keeps_its_profile(tmp_path: Path, source: str, profile: str) -> None:
    clip = write_clip(
        tmp_path / f"in.{source}",
        codec="prores_ks",
        pix_fmt="yuv422p10le",
        options={"profile": str(["apco", "apcs", "apcn", "apch"].index(profile))},
    )
    assert read_tag(write(clip, tmp_path / "out.mov").path) == profile


def test_dolby_vision_keeps_its_record_and_tag(tmp_path: Path) -> None:
    written = write(CLIPS / "dovi5.mp4", tmp_path / "out.mp4")
    assert read_tag(written.path) == "dvh1"
    assert find_boxes(written.path, [b"dvcC"])
    assert written.notices == ()


def test_a_spherical_clip_stays_spherical(tmp_path: Path) -> None:
    written = write(CLIPS / "spherical.mp4", tmp_path / "out.mp4")
    assert find_boxes(written.path, [b"sv3d", b"st3d"]) == {b"sv3d", b"st3d"}
    assert written.notices == ()


@pytest.mark.parametrize(
    ("clip", "lost"),
    [
        ("spherical.mp4", "the spherical projection"),
        ("dovi5.mp4", "the Dolby Vision configuration"),
    ],
)
@pytest.mark.parametrize("source", ["mp4", "mkv"])
def test_a_notice_says_that_mov_does_not_hold_it(
    tmp_path: Path, source: str, clip: str, lost: str
) -> None:
    kept = write(CLIPS / clip, tmp_path / f"in.{source}")
    assert kept.notices == ()
    written = write(kept.path, tmp_path / "out.mov")
    assert written.notices == (f"mov does not hold, and the result is without: {lost}.",)


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv"])
def test_what_a_phone_recorded_is_kept(tmp_path: Path, container: str) -> None:
    written = write(CLIPS / "phone_rot.mov", tmp_path / f"out.{container}")
    assert written.notices == ()
    with av.open(str(written.path)) as reader:
        tags = {key.lower(): value for key, value in reader.metadata.items()}
    assert tags["com.apple.quicktime.make"] == "Apple"
    assert tags["com.apple.quicktime.location.iso6709"] == "+48.2082+016.3738/"
    assert tags["com.apple.quicktime.creationdate"] == "2024-05-06T09:08:09+0200"
    assert tags["creation_time"].startswith("2024-05-06T07:08:09")


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv"])
def test_language_title_and_chapters_are_kept(tmp_path: Path, container: str) -> None:
    written = write(CLIPS / "chapters.mkv", tmp_path / f"out.{container}")
    with av.open(str(written.path)) as reader:
        assert [chapter["metadata"]["title"] for chapter in reader.chapters()] == ["One", "Two"]
        assert reader.metadata["title"] == "Chaptered"
        tags = reader.streams.video[0].metadata
    assert tags["language"] == "jpn"
    assert container == "mov" or "Main view" in (tags.get("title"), tags.get("name"))


def test_subtitles_are_kept_in_mkv_and_missed_in_mp4(tmp_path: Path) -> None:
    kept = write(CLIPS / "chapters.mkv", tmp_path / "out.mkv")
    assert kept.notices == ()
    texts = []
    for path in (CLIPS / "chapters.mkv", kept.path):
        with av.open(str(path)) as reader:
            subtitles = reader.demux(reader.streams.subtitles[0])
            texts.append([(p.pts, p.duration, bytes(p)) for p in subtitles if p.size])
    assert texts[0] == texts[1] != []
    left = write(CLIPS / "chapters.mkv", tmp_path / "out.mp4")
    assert "the subtitles of stream 2" in left.notices[0]


def test_chapters_end_where_a_trimmed_clip_ends(tmp_path: Path) -> None:
    written = write(CLIPS / "chapters.mkv", tmp_path / "out.mkv", stop_seconds=0.8)
    with av.open(str(written.path)) as reader:
        (chapter,) = reader.chapters()
    assert chapter["end"] * chapter["time_base"] == pytest.approx(0.8)


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv"])
def test_the_timecode_is_kept(tmp_path: Path, container: str) -> None:
    plain = write_clip(tmp_path / "plain.mp4", options={"bf": "0"})
    clip = tmp_path / "clip.mov"
    with av.open(str(plain)) as reader, av.open(str(clip), "w") as writer:
        copy = writer.add_stream_from_template(reader.streams.video[0], opaque=True)
        copy.metadata["timecode"] = "01:02:03:04"
        for packet in reader.demux(video=0):
            if packet.size:
                packet.stream = copy
                writer.mux(packet)
    written = write(clip, tmp_path / f"out.{container}")
    assert written.notices == ()
    with av.open(str(written.path)) as reader:
        tags = reader.streams.video[0].metadata
    assert {key.lower(): value for key, value in tags.items()}["timecode"] == "01:02:03:04"


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv"])
def test_an_unknown_creation_time_is_not_missed(tmp_path: Path, container: str) -> None:
    clip = Path(__file__).parents[2] / "examples" / "bigbuckbunny.mp4"
    with av.open(str(clip)) as reader:
        assert reader.metadata["creation_time"].startswith("1970-01-01T00:00:00")
    assert write(clip, tmp_path / f"out.{container}").notices == ()


@pytest.mark.parametrize(
    ("suffix", "codec", "muxer", "internal"),
    [
        ("mxf", "mpeg2video", {}, "operational_pattern_ul"),
        ("flv", "libx264", {"flvflags": "add_keyframe_index"}, "hasKeyframes"),
    ],
)
@pytest.mark.parametrize("container", ["mp4", "mov", "mkv"])
def test_what_programs_tell_one_another_is_not_missed(
    tmp_path: Path,
    container: str,
    suffix: str,
    codec: str,
    muxer: dict[str, str],
    internal: str,
) -> None:
    clip = write_clip(
        tmp_path / f"in.{suffix}", size=(320, 240), codec=codec, muxer=muxer, title="Take 5"
    )
    with av.open(str(clip)) as reader:
        assert internal in reader.metadata
        has_title = "title" in reader.metadata  # MXF has none
    written = write(clip, tmp_path / f"out.{container}")
    assert written.notices == ()
    with av.open(str(written.path)) as reader:
        assert internal.lower() not in {key.lower() for key in reader.metadata}
        assert not has_title or reader.metadata["title"] == "Take 5"


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv"])
def test_the_timecode_of_a_file_is_kept(tmp_path: Path, container: str) -> None:
    clip = tmp_path / "in.mxf"
    source = write_clip(tmp_path / "plain.mxf", size=(320, 240), codec="mpeg2video")
    with av.open(str(source)) as reader, av.open(str(clip), "w") as writer:
        writer.metadata["timecode"] = "01:02:03:04"
        copy = writer.add_stream_from_template(reader.streams.video[0])
        for packet in reader.demux(video=0):
            if packet.size:
                packet.stream = copy
                writer.mux(packet)
    written = write(clip, tmp_path / f"out.{container}")
    assert written.notices == ()
    with av.open(str(written.path)) as reader:
        tags = {**reader.metadata, **reader.streams.video[0].metadata}
    assert {key.lower(): value for key, value in tags.items()}["timecode"] == "01:02:03:04"


def test_the_chapters_of_mp4_are_no_missing_stream(tmp_path: Path) -> None:
    clip = write(CLIPS / "chapters.mkv", tmp_path / "in.mp4").path
    with av.open(str(clip)) as reader:
        assert [stream.type for stream in reader.streams] == ["video", "audio", "data"]
    assert write(clip, tmp_path / "out.mp4").notices == ()
    assert write(clip, tmp_path / "short.mp4", stop_seconds=0.5).notices == ()

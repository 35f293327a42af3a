"""Clips made of pictures: animated WebP, and zips of numbered pictures."""

import io
import zipfile
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foley.errors import (
    FoleyError,
    ParameterError,
    VideoDecodeError,
    VideoTooCostlyError,
    VideoTooLargeError,
)
from foley.media.decode import decode_frames
from foley.media.images import set_frame_rate
from foley.media.mux import choose_container, write_video
from foley.media.source import MediaLimits
from tests.media.clips import draw_number, numbers, shown_seconds

SIZE = 80


def draw_picture(number: int, kind: str = "PNG", size: tuple[int, int] = (SIZE, SIZE)) -> bytes:
    content = io.BytesIO()
    Image.fromarray(draw_number(number, *size)).save(content, kind)
    return content.getvalue()


def write_zip(
    path: Path, files: Iterable[tuple[str, bytes]], rate: Fraction | None = Fraction(25)
) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files:
            archive.writestr(name, content)
    if rate is not None:
        set_frame_rate(path, rate)
    return path


def number_files(count: int, pattern: str = "{:04}.png") -> list[tuple[str, bytes]]:
    return [(pattern.format(index), draw_picture(index)) for index in range(count)]


def decode_80(clip: Path, **limits: object) -> list[int]:
    frames = decode_frames(
        clip, visual_size=SIZE, sync_size=SIZE, exact_clock=True, limits=MediaLimits(**limits)
    )
    return numbers(frames.sync)


@pytest.mark.slow
@pytest.mark.parametrize("container", ["mp4", "webm"])
def test_a_zip_of_pictures_is_a_clip(tmp_path: Path, container: str) -> None:
    clip = write_zip(tmp_path / "clip", number_files(40))
    assert decode_80(clip) == list(range(40))
    assert choose_container(clip, container) == container
    written = write_video(clip, torch.zeros(1, 48_000), tmp_path / f"out.{container}")
    assert shown_seconds(written.path) == pytest.approx([n / 25 for n in range(40)], abs=0.001)
    assert decode_80(written.path) == list(range(40))
    assert written.notices == (
        f"The pictures are encoded as {'VP9' if container == 'webm' else 'H.264'}.",
    )


def test_one_picture_repeated_is_shown_for_as_many_seconds(tmp_path: Path) -> None:
    clip = write_zip(
        tmp_path / "clip", [(f"{n}.png", draw_picture(7)) for n in range(3)], Fraction(1)
    )
    frames = decode_frames(clip, visual_size=SIZE, sync_size=SIZE, exact_clock=True)
    assert frames.source_seconds == 3
    assert numbers(frames.sync) == [7] * 75


def test_pictures_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    files = [(f"shot2/frame{n}.png", draw_picture(n)) for n in (12, 8, 10, 9, 11)]
    clip = write_zip(tmp_path / "clip", [*files, ("__MACOSX/._frame8.png", b"?"), (".x", b"?")])
    assert decode_80(clip)[:5] == [8, 9, 10, 11, 12]


@pytest.mark.parametrize("rate", [Fraction(24_000, 1001), Fraction(12), Fraction(60)])
def test_pictures_have_the_rate_that_is_set(tmp_path: Path, rate: Fraction) -> None:
    clip = write_zip(tmp_path / "clip", number_files(30), rate)
    frames = decode_frames(clip, visual_size=SIZE, sync_size=SIZE, exact_clock=True)
    assert frames.source_seconds == pytest.approx(30 / rate, abs=1e-6)
    written = write_video(clip, torch.zeros(1, 48_000), tmp_path / "out.mp4")
    assert shown_seconds(written.path) == pytest.approx([n / rate for n in range(30)], abs=1e-4)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "BMP", "TIFF"])
def test_pictures_may_have_other_formats(tmp_path: Path, kind: str) -> None:
    files = [(f"{n}.any", draw_picture(n, kind)) for n in range(16)]
    assert decode_80(write_zip(tmp_path / "clip", files)) == list(range(16))


def test_a_webp_is_shown_by_its_own_times(tmp_path: Path) -> None:
    pictures = [Image.fromarray(draw_number(n, SIZE, SIZE)) for n in range(4)]
    pictures[0].save(
        tmp_path / "clip",
        "WEBP",
        save_all=True,
        append_images=pictures[1:],
        duration=[200, 400, 120, 280],
        lossless=True,
    )
    # A target of the 25 fps clock shows the nearest frame, or the one before until 50 ms ahead.
    assert decode_80(tmp_path / "clip") == [0] * 4 + [1] * 10 + [2] * 3 + [3] * 8
    written = write_video(tmp_path / "clip", torch.zeros(1, 48_000), tmp_path / "out.mp4")
    assert shown_seconds(written.path) == pytest.approx([0, 0.2, 0.6, 0.72])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "holds 0 pictures"),
        ([("1.png", draw_picture(1))], "holds 1 pictures"),
        ([("a.txt", b"text"), ("b.txt", b"text")], "a.txt cannot be read as a picture"),
        (
            [(f"{n:03}.png", draw_picture(n)) for n in (1, 2, 4)],
            "004.png follows number 2, and the first pictures count by 1",
        ),
        (
            [("1.png", draw_picture(1)), ("2.png", draw_picture(2, size=(64, 80)))],
            "2.png has 64 x 80 pixels and 1.png has 80 x 80",
        ),
        (
            [("1.jpg", draw_picture(1, "JPEG")), ("2.jpg", draw_picture(2))],
            "2.jpg is PNG and 1.jpg is JPEG",
        ),
        ([("1.png", draw_picture(1)), ("2.png", draw_picture(2)[:90])], "damaged|cannot be read"),
    ],
    ids=str,
)
def test_a_zip_that_is_no_clip_is_refused(
    tmp_path: Path, files: list[tuple[str, bytes]], message: str
) -> None:
    with pytest.raises(VideoDecodeError, match=message):
        decode_80(write_zip(tmp_path / "clip", files))


def test_a_zip_needs_a_rate_and_only_a_zip_takes_one(tmp_path: Path) -> None:
    with pytest.raises(VideoDecodeError, match="set frame_rate, such as 24"):
        decode_80(write_zip(tmp_path / "clip", number_files(2), rate=None))
    (tmp_path / "video").write_bytes(b"\0\0\0\x1cftypisom" + bytes(99))
    with pytest.raises(ParameterError, match="frame_rate: only for a zip"):
        set_frame_rate(tmp_path / "video", Fraction(24))


def test_a_zip_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    clip = write_zip(tmp_path / "clip", number_files(20))
    clip.write_bytes(clip.read_bytes()[:-500])
    with pytest.raises(VideoDecodeError, match="not a whole zip"):
        decode_80(clip)


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        ({"max_pixels": 79 * 80}, VideoTooLargeError),
        ({"max_seconds": 1, "max_frame_rate": 10}, VideoTooCostlyError),
        ({"codecs": frozenset({"h264"})}, VideoDecodeError),
    ],
    ids=str,
)
def test_pictures_are_held_to_the_limits_of_clips(
    tmp_path: Path, limits: dict[str, object], error: type[FoleyError]
) -> None:
    clip = write_zip(tmp_path / "clip", number_files(25))
    with pytest.raises(error):
        decode_80(clip, **limits)


@pytest.mark.slow
def test_a_picture_of_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    content = draw_picture(1) + bytes(50_000_000)
    clip = write_zip(tmp_path / "clip", [("1.png", content), ("2.png", content)])
    assert clip.stat().st_size < 200_000
    with pytest.raises(VideoTooCostlyError, match="has 50000"):
        decode_80(clip, max_pixels=1_000_000)


def test_a_damaged_webp_is_refused(tmp_path: Path) -> None:
    content = bytearray((Path(__file__).parents[1] / "assets/clips/anim.webp").read_bytes())
    noise = np.random.default_rng(1).integers(0, 256, 4000, np.uint8).tobytes()
    content[9000:13000] = noise
    (tmp_path / "clip").write_bytes(content)
    with pytest.raises(VideoDecodeError):
        decode_80(tmp_path / "clip")

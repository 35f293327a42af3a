"""A still picture that is shown for some seconds."""

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from foley.errors import FoleyError, ParameterError, VideoDecodeError, VideoTooLargeError
from foley.media.decode import decode_frames
from foley.media.hold import hold_picture
from foley.media.mux import choose_container, write_video
from foley.media.prepare import prepare_clip
from foley.media.source import MediaLimits
from tests.media.clips import draw_number, numbers, shown_seconds

SIZE = 80


def draw(kind: str, size: tuple[int, int] = (SIZE, SIZE), **options: object) -> bytes:
    content = io.BytesIO()
    Image.fromarray(draw_number(7, *size)).save(content, kind, **options)
    return content.getvalue()


def hold(tmp_path: Path, picture: bytes, seconds: float, **limits: int) -> Path:
    (tmp_path / "photo").write_bytes(picture)
    hold_picture(tmp_path / "photo", tmp_path / "clip", seconds, MediaLimits(**limits))
    return tmp_path / "clip"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_a_picture_is_a_clip_of_as_many_seconds(tmp_path: Path, kind: str) -> None:
    clip = hold(tmp_path, draw(kind), 2.3)
    frames = decode_frames(clip, visual_size=SIZE, sync_size=SIZE, exact_clock=True)
    assert frames.source_seconds == pytest.approx(2.3)
    assert set(numbers(frames.sync)) == {7}
    assert len(frames.sync) == 58
    written = write_video(clip, torch.zeros(1, 110_400), tmp_path / "out.mp4")
    again = decode_frames(written.path, visual_size=SIZE, sync_size=SIZE, exact_clock=True)
    assert again.source_seconds == pytest.approx(2.3, abs=0.01)
    assert set(numbers(again.sync)) == {7}


@pytest.mark.parametrize(
    ("seconds", "pictures"), [(0.5, [0, 0.25]), (3, [0, 1, 2]), (3.2, [0, 0.8, 1.6, 2.4])]
)
def test_a_picture_is_there_about_once_a_second(
    tmp_path: Path, seconds: float, pictures: list[float]
) -> None:
    clip = hold(tmp_path, draw("PNG"), seconds)
    assert choose_container(clip, "webm") == "webm"
    written = write_video(clip, torch.zeros(1, 48_000), tmp_path / "out.mp4")
    assert shown_seconds(written.path) == pytest.approx(pictures, abs=1e-3)


def test_a_photo_is_shown_upright_and_as_large_as_a_clip_may_be(tmp_path: Path) -> None:
    photo = Image.fromarray(draw_number(7, SIZE, SIZE)).resize((240, 240)).rotate(90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    content = io.BytesIO()
    photo.save(content, "JPEG", exif=exif)
    clip = hold(tmp_path, content.getvalue(), 1, max_pixels=100 * 100)
    frames = decode_frames(clip, visual_size=SIZE, sync_size=SIZE, exact_clock=True)
    assert set(numbers(frames.sync)) == {7}
    written = write_video(clip, torch.zeros(1, 48_000), tmp_path / "out.mp4")
    decoded = decode_frames(
        written.path,
        visual_size=SIZE,
        sync_size=SIZE,
        exact_clock=True,
        limits=MediaLimits(max_pixels=100 * 100),
    )
    assert decoded.source_seconds == pytest.approx(1, abs=0.01)


def test_the_file_itself_can_become_the_clip_and_stays_it(tmp_path: Path) -> None:
    clip = tmp_path / "clip"
    clip.write_bytes(draw("PNG"))
    for _ in range(2):  # again where a process died after it
        hold_picture(clip, clip, 2)
        assert decode_frames(clip, visual_size=SIZE, sync_size=SIZE).source_seconds == 2


def draw_animation() -> bytes:
    content = io.BytesIO()
    first, second = (Image.fromarray(draw_number(n, SIZE, SIZE)) for n in (1, 2))
    first.save(content, "GIF", save_all=True, append_images=[second])
    return content.getvalue()


HEIC = b"\0\0\0\x18ftypheic" + bytes(64)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"\0\0\0\x18ftypisom" + bytes(64), ParameterError, "is 2, and photo is no still picture"),
        (b"PK\5\6" + bytes(18), ParameterError, "no still picture"),
        (draw_animation(), ParameterError, "no still picture"),
        (HEIC, VideoDecodeError, "of the kind HEIC, which is not read here; convert it"),
        (draw("PNG")[:100], VideoDecodeError, "photo (is damaged|cannot be read)"),
        (draw("JPEG")[:-300], VideoDecodeError, "photo (is damaged|cannot be read)"),
        (draw("JPEG")[:20], VideoDecodeError, "photo cannot be read as a picture"),
        (draw("PNG", (290, 290)), VideoTooLargeError, "290 x 290 pixels, the limit .* is 80000"),
        (None, VideoDecodeError, "there is no file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_picture_is_refused(
    tmp_path: Path, content: bytes | None, error: type[FoleyError], message: str
) -> None:
    photo = tmp_path / "photo"
    if content is not None:
        photo.write_bytes(content)
    with pytest.raises(error, match=message):
        prepare_clip(
            photo,
            tmp_path / "clip",
            duration_seconds=2,
            limits=MediaLimits(max_pixels=10_000),
        )
    assert not (tmp_path / "clip").exists()

"""Clips made of pictures, animated WebP and zips of numbered pictures, as a stream for FFmpeg.

A still picture that is shown for some seconds is a zip too: see `foley.media.hold`.

FFmpeg reads neither. Here each becomes a file-like object that holds PNG and JPEG pictures in NUT,
a container of FFmpeg that keeps times and needs no end. It is made while it is read, so memory does
not grow with the number of pictures. What is no PNG or JPEG is encoded anew as PNG, without loss.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import av

# The plug-ins are imported here, once in the fork server instead of in each child.
from PIL import (
    BmpImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from foley.errors import ParameterError, VideoDecodeError, VideoTooCostlyError
from foley.media.numbering import check_numbers, split_numbers
from foley.media.stills import is_animated_webp, still_error

FORMAT = "nut"  # of the stream, by FFmpeg's name
_KINDS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # Pillow's names
STILL_KINDS = ("PNG", "JPEG", "WebP", "BMP", "TIFF")  # the same, as `detect_still` names them
_CODECS = {"PNG": "png", "JPEG": "mjpeg"}  # FFmpeg's, of pictures that are not encoded anew
_TICK = Fraction(1, 1000)
_DEFAULT_MS = 100  # of a frame of WebP that states 0, as browsers show it
_MAX_PICTURES = 1_000_000
_MAX_BYTES_OF_PIXEL = 16  # of one picture's file: no useful coding takes more
_RATE = re.compile(rb"frame_rate=(\d+)/(\d+)")
_HELD = re.compile(rb"shown_seconds=(\d{1,12})/(\d{1,12})")
_HIDDEN = re.compile(r"(^|/)(\.|__MACOSX/|Thumbs\.db$|desktop\.ini$)", re.IGNORECASE)


Image.preinit()


class CheckSize(Protocol):
    """Raises an error if a picture has too many pixels."""

    def __call__(self, width: int, height: int, /) -> None:
        """Check the size in pixels."""


class _Picture(NamedTuple):
    content: bytes
    pts: int


class _Sequence(NamedTuple):
    """Pictures of one codec, size and pixel format, which are read one after the other."""

    codec: Literal["png", "mjpeg"]
    size: tuple[int, int]
    rate: Fraction  # the last picture is shown for its inverse
    tick: Fraction  # seconds
    pictures: Iterator[_Picture]


def is_made_of_pictures(source: Path) -> bool:
    """Whether a file is an animated WebP or a zip.

    Args:
        source: a file in any format.
    """
    return is_zip(source) or is_animated_webp(source)


def is_zip(source: Path) -> bool:
    """Whether a file begins as a zip does.

    Args:
        source: a file in any format.
    """
    with source.open("rb") as file:
        return file.read(4) in (b"PK\3\4", b"PK\5\6")


def set_frame_rate(source: Path, rate: Fraction) -> None:
    """Write the frame rate into a zip of pictures, as its comment.

    Args:
        source: the zip, which is changed.
        rate: pictures per second.

    Raises:
        VideoDecodeError: it is not a whole zip.
        ParameterError: it is no zip.
    """
    if not is_zip(source):
        raise ParameterError(
            "frame_rate: only for a zip of numbered pictures; a video has its own, so leave it out"
        )
    with _open_zip(source, mode="a") as archive:
        archive.comment = f"frame_rate={rate.numerator}/{rate.denominator}".encode()


def format_held_seconds(seconds: Fraction) -> bytes:
    """Return the comment of a zip with one picture that says how long it is shown.

    Args:
        seconds: above 0.
    """
    return f"shown_seconds={seconds.numerator}/{seconds.denominator}".encode()


def is_held(source: Path) -> bool:
    """Whether a file is a zip with one picture that is shown for some seconds.

    Args:
        source: a file in any format.

    Raises:
        VideoDecodeError: it is a zip, and not a whole one.
    """
    if not is_zip(source):
        return False
    with _open_zip(source) as archive:
        return _HELD.fullmatch(archive.comment) is not None


def count_pictures(source: Path) -> int:
    """Return the number of pictures in a zip.

    Args:
        source: the zip.

    Raises:
        VideoDecodeError: it is not a whole zip, or its pictures are not numbered without gaps.
    """
    with _open_zip(source) as archive:
        return len(_list_pictures(archive, source.name))


class PictureStream:
    """An animated WebP or a zip of pictures as a file that FFmpeg reads as NUT.

    Args:
        source: the file.
        max_pixels: of one picture; it bounds the bytes of its file too.
        check_size: called with the size of the pictures.

    Attributes:
        name: path of the source.

    Raises:
        VideoDecodeError: it holds no pictures, others than PNG, JPEG, WebP, BMP and TIFF, or
            pictures of different sizes; or a zip has no frame rate.
        VideoTooLargeError: a picture has too many pixels.
        VideoTooCostlyError: a picture's file has too many bytes for its pixels.
    """

    def __init__(self, source: Path, max_pixels: int, check_size: CheckSize) -> None:
        self.name = str(source)
        if is_zip(source):
            sequence = _read_zip(source, max_pixels, check_size)
        else:
            sequence = _read_webp(source, check_size)
        self._buffer = bytearray()
        self._pictures: Iterator[_Picture] | None = sequence.pictures
        self._writer = av.open(_Sink(self._buffer), "w", format=FORMAT)
        self._stream = self._writer.add_stream(sequence.codec, rate=sequence.rate)
        self._stream.width, self._stream.height = sequence.size
        self._stream.pix_fmt = "rgb24" if sequence.codec == "png" else "yuvj420p"
        self._stream.time_base = self._stream.codec_context.time_base = sequence.tick
        self._tick = sequence.tick
        self._writer.start_encoding()

    def read(self, size: int) -> bytes:
        """Return the next bytes, fewer at the end, and none after it.

        Args:
            size: how many at most.
        """
        while len(self._buffer) < size and self._pictures is not None:
            picture = next(self._pictures, None)
            if picture is None:
                self._writer.close()
                self._pictures = None
                break
            packet = av.Packet(picture.content)
            packet.stream, packet.time_base = self._stream, self._tick
            packet.pts = packet.dts = picture.pts
            packet.is_keyframe = True
            self._writer.mux(packet)
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data


class _Sink:
    """A file that FFmpeg writes in order."""

    def __init__(self, buffer: bytearray) -> None:
        self._buffer = buffer

    def write(self, data: bytes) -> int:
        self._buffer += data
        return len(data)


def _read_webp(source: Path, check_size: CheckSize) -> _Sequence:
    image = open_image(source, source.name, ("WEBP",))
    check_size(*image.size)
    num_frames = getattr(image, "n_frames", 1)
    if num_frames == 1:
        raise still_error(source, "WebP with one frame")
    _seek(image, num_frames - 1, source.name)  # only a decoded frame has its duration
    last_ms = _duration_ms(image)

    def pictures() -> Iterator[_Picture]:
        pts = 0
        for index in range(num_frames):
            _seek(image, index, source.name)
            yield _Picture(_encode_png(image), pts)
            pts += _duration_ms(image)

    return _Sequence("png", image.size, Fraction(1000, last_ms), _TICK, pictures())


def _duration_ms(image: Image.Image) -> int:
    return round(image.info.get("duration") or _DEFAULT_MS)


def _seek(image: Image.Image, index: int, name: str) -> None:
    try:
        image.seek(index)
        image.load()
    except (OSError, EOFError, ValueError, SyntaxError) as error:
        raise VideoDecodeError(
            f"{name} is damaged at frame {index + 1} ({error}); send a file that plays to its end"
        ) from error


def _read_zip(source: Path, max_pixels: int, check_size: CheckSize) -> _Sequence:
    archive = _open_zip(source)
    held = _HELD.fullmatch(archive.comment)
    if held is not None and int(held[1]) and int(held[2]):
        seconds = Fraction(int(held[1]), int(held[2]))
        return _repeat_picture(archive, source.name, seconds, max_pixels, check_size)
    found = _RATE.fullmatch(archive.comment)
    if found is None or not int(found[2]) or not int(found[1]):
        raise VideoDecodeError(
            f"{source.name} is a zip of pictures, which have no rate of their own; set frame_rate, "
            "such as 24"
        )
    rate = Fraction(int(found[1]), int(found[2]))
    entries = _list_pictures(archive, source.name)
    read = _make_reader(archive, max_pixels)
    first = open_image(BytesIO(read(entries[0])), entries[0].filename)
    check_size(*first.size)
    # All are PNG where the first one is not JPEG, since a stream has one codec.
    codec: Literal["png", "mjpeg"] = "mjpeg" if first.format == "JPEG" else "png"

    def pictures() -> Iterator[_Picture]:
        for index, entry in enumerate(entries):
            content = read(entry)
            image = open_image(BytesIO(content), entry.filename)
            if image.size != first.size:
                raise VideoDecodeError(
                    f"{entry.filename} has {image.width} x {image.height} pixels and "
                    f"{entries[0].filename} has {first.width} x {first.height}; send pictures of "
                    "one size"
                )
            if _CODECS.get(str(image.format)) != codec:
                if codec == "mjpeg":
                    raise VideoDecodeError(
                        f"{entry.filename} is {image.format} and {entries[0].filename} is JPEG; "
                        "send pictures of one format"
                    )
                _seek(image, 0, entry.filename)
                content = _encode_png(image)
            yield _Picture(content, index)

    return _Sequence(codec, first.size, rate, 1 / rate, pictures())


def _repeat_picture(
    archive: zipfile.ZipFile,
    name: str,
    seconds: Fraction,
    max_pixels: int,
    check_size: CheckSize,
) -> _Sequence:
    """Show the only picture of a zip about once a second, so that a player can go to any time."""
    entries = archive.infolist()
    if len(entries) != 1:
        raise VideoDecodeError(
            f"{name} holds {len(entries)} files, and a picture that is shown for some seconds is "
            "one; send the picture with duration_seconds"
        )
    content = _make_reader(archive, max_pixels)(entries[0])
    image = open_image(BytesIO(content), entries[0].filename)
    check_size(*image.size)
    if image.format not in _CODECS:
        _seek(image, 0, entries[0].filename)
        content = _encode_png(image)
    count = max(2, math.ceil(seconds))
    tick = seconds / count
    codec: Literal["png", "mjpeg"] = "mjpeg" if image.format == "JPEG" else "png"
    pictures = (_Picture(content, pts) for pts in range(count))
    return _Sequence(codec, image.size, 1 / tick, tick, pictures)


def _open_zip(source: Path, mode: Literal["r", "a"] = "r") -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(source, mode)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise VideoDecodeError(
            f"{source.name} is not a whole zip ({error}); send the file again"
        ) from error


def _list_pictures(archive: zipfile.ZipFile, name: str) -> list[zipfile.ZipInfo]:
    """Return the entries in the order of their numbers."""
    entries = [
        entry
        for entry in archive.infolist()
        if not entry.is_dir() and not _HIDDEN.search(entry.filename)
    ]
    if len(entries) < 2:
        raise VideoDecodeError(
            f"{name} holds {len(entries)} pictures; send a zip of numbered pictures, such as "
            "0001.png and 0002.png, or a video"
        )
    if len(entries) > _MAX_PICTURES:
        raise VideoTooCostlyError(
            f"{name} holds {len(entries)} files, the limit is {_MAX_PICTURES}; send a video"
        )
    entries.sort(key=lambda entry: split_numbers(entry.filename))
    check_numbers([entry.filename for entry in entries])
    return entries


def _make_reader(archive: zipfile.ZipFile, max_pixels: int) -> Callable[[zipfile.ZipInfo], bytes]:
    max_bytes = max_pixels * _MAX_BYTES_OF_PIXEL

    def read(entry: zipfile.ZipInfo) -> bytes:
        if entry.file_size > max_bytes:
            raise VideoTooCostlyError(
                f"{entry.filename} has {entry.file_size} bytes, the limit of a picture is "
                f"{max_bytes}; send smaller pictures"
            )
        try:
            with archive.open(entry) as file:
                return file.read(entry.file_size)
        except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
            raise VideoDecodeError(
                f"{entry.filename} cannot be unpacked ({error}); make the zip again, without a "
                "password"
            ) from error

    return read


def open_image(file: Path | BytesIO, name: str, kinds: tuple[str, ...] = _KINDS) -> Image.Image:
    """Return a picture of which only the head is read.

    Args:
        file: the picture.
        name: of the picture, for the error.
        kinds: that may be, by Pillow's names.

    Raises:
        VideoDecodeError: it is none of these.
    """
    try:
        return Image.open(file, formats=kinds)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoDecodeError(
            f"{name} cannot be read as a picture; send PNG, JPEG, WebP, BMP or TIFF"
        ) from error


def _encode_png(image: Image.Image) -> bytes:
    content = BytesIO()
    image.convert("RGB").save(content, "PNG", compress_level=1)
    return content.getvalue()

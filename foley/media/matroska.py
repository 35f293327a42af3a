"""What PyAV can neither write to the header of a Matroska file nor read there.

FFmpeg's muxer takes the shape of the pixels from a field of the stream that PyAV cannot set, so it
is written here into the finished file. The header grows into the padding that FFmpeg leaves before
it.

Source: RFC 8794 (EBML), RFC 9559 (Matroska).
"""

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from foley.media.integrity import read_vint

_MAX_HEADER_BYTES = 1 << 18
_EBML_MAGIC = b"\x1a\x45\xdf\xa3"
_SEGMENT, _SEEK_HEAD, _SEEK, _SEEK_POSITION = 0x18538067, 0x114D9B74, 0x4DBB, 0x53AC
_VOID, _CRC = 0xEC, 0xBF
_TRACKS, _TRACK, _VIDEO = 0x1654AE6B, 0xAE, 0xE0
_PROJECTION, _PROJECTION_TYPE = 0x7670, 0x7671
_BLOCK_ADDITION, _ADDITION_TYPE = 0x41E4, 0x41E7
_WIDTH, _HEIGHT = 0xB0, 0xBA
_DISPLAY_WIDTH, _DISPLAY_HEIGHT, _DISPLAY_UNIT = 0x54B0, 0x54BA, 0x54B2
_AS_RATIO = 3  # the unit in which the size for display is a ratio; without a unit it is pixels
_LEAST_VOID_BYTES = 9  # of a Void whose size takes eight bytes


@dataclass(frozen=True)
class _Element:
    kind: int
    content: bytes
    start: int  # in the bytes that hold it
    stop: int


def write_pixel_shape(path: Path, shape: Fraction, *, in_pixels: bool) -> bool:
    """Write the shape of the pixels into a Matroska or WebM file; return whether it had room.

    A file of FFmpeg's muxer has room. One that has none stays as it is.

    Args:
        path: the finished file.
        shape: width of a pixel over its height.
        in_pixels: state the size for display in pixels, to less than one pixel, as WebM does; or
            else the exact ratio.
    """
    with path.open("r+b") as file:
        head = file.read(_MAX_HEADER_BYTES)
        segment = next((e for e in _read_elements(head) if e.kind == _SEGMENT), None)
        if segment is None:
            return False
        base = segment.stop - len(segment.content)
        found: dict[int, _Element] = {}
        for element in _read_elements(segment.content):
            found.setdefault(element.kind, element)
            if element.kind == _TRACKS:
                break
        if not {_SEEK_HEAD, _VOID, _TRACKS} <= found.keys():
            return False
        seek_head, void, tracks = found[_SEEK_HEAD], found[_VOID], found[_TRACKS]
        written = _make_element(_TRACKS, _change_tracks(tracks.content, shape, in_pixels))
        growth = len(written) - (tracks.stop - tracks.start)
        num_void = void.stop - void.start - growth - _LEAST_VOID_BYTES
        if num_void < 0 or tracks.stop > len(segment.content) or seek_head.stop > void.start:
            return False
        file.seek(base + seek_head.start)
        file.write(
            _make_element(_SEEK_HEAD, _move(seek_head.content, void.stop, tracks.stop, growth))
        )
        file.seek(base + void.start)
        file.write(bytes([_VOID]) + (1 << 56 | num_void).to_bytes(8, "big") + bytes(num_void))
        file.write(segment.content[void.stop : tracks.start] + written)
    return True


def find_configurations(path: Path) -> set[bytes]:
    """What a Matroska file states of its picture, by the names of the boxes of mp4 that do.

    Args:
        path: a file in any format.

    Returns:
        `sv3d` for a spherical projection, `dvcC` or `dvvC` for Dolby Vision; nothing for other
        formats.
    """
    with path.open("rb") as file:
        head = file.read(_MAX_HEADER_BYTES)
    if not head.startswith(_EBML_MAGIC):
        return set()
    found = set()
    for track in _find(head, _SEGMENT, _TRACKS, _TRACK):
        kinds = _find(track, _VIDEO, _PROJECTION, _PROJECTION_TYPE)
        if any(int.from_bytes(kind, "big") for kind in kinds):  # 0 is a plain picture
            found.add(b"sv3d")
        found |= {b"dvcC", b"dvvC"} & set(_find(track, _BLOCK_ADDITION, _ADDITION_TYPE))
    return found


def _find(data: bytes, kind: int, *inner: int) -> Iterator[bytes]:
    """Yield the contents of the elements at the end of a path of types."""
    for element in _read_elements(data):
        if element.kind == kind:
            if inner:
                yield from _find(element.content, *inner)
            else:
                yield element.content


def _read_elements(data: bytes) -> Iterator[_Element]:
    """Yield the elements of one level; what is cut off at the end has a part of its content."""
    file = io.BytesIO(data)
    while (start := file.tell()) < len(data):
        kind, _ = read_vint(file, keep_marker=True)
        length, _ = read_vint(file, keep_marker=False)
        if not kind:
            return
        yield _Element(kind, file.read(length), start, file.tell())


def _make_element(kind: int, content: bytes) -> bytes:
    width = next(n for n in range(1, 9) if len(content) < (1 << 7 * n) - 1)
    size = (1 << 7 * width | len(content)).to_bytes(width, "big")
    return _to_bytes(kind) + size + content


def _to_bytes(number: int) -> bytes:
    return number.to_bytes(max(1, (number.bit_length() + 7) // 8), "big")


def _join(data: bytes, parts: list[bytes]) -> bytes:
    """The content of a changed element, with a checksum where `data`, its old content, has one."""
    joined = b"".join(parts)
    if next(_read_elements(data)).kind != _CRC:
        return joined
    return _make_element(_CRC, zlib.crc32(joined).to_bytes(4, "little")) + joined


def _change_tracks(data: bytes, shape: Fraction, in_pixels: bool) -> bytes:
    parts = []
    for element in _read_elements(data):
        part = data[element.start : element.stop]
        if element.kind == _TRACK:
            track = [
                _make_element(_VIDEO, _change_video(inner.content, shape, in_pixels))
                if inner.kind == _VIDEO
                else element.content[inner.start : inner.stop]
                for inner in _read_elements(element.content)
            ]
            part = _make_element(_TRACK, b"".join(track))
        if element.kind != _CRC:
            parts.append(part)
    return _join(data, parts)


def _change_video(data: bytes, shape: Fraction, in_pixels: bool) -> bytes:
    elements = list(_read_elements(data))
    width, height = (
        next(int.from_bytes(element.content, "big") for element in elements if element.kind == kind)
        for kind in (_WIDTH, _HEIGHT)
    )
    if in_pixels:
        shown = {_DISPLAY_WIDTH: max(1, round(width * shape)), _DISPLAY_HEIGHT: height}
    else:
        ratio = shape * width / height
        shown = {
            _DISPLAY_WIDTH: ratio.numerator,
            _DISPLAY_HEIGHT: ratio.denominator,
            _DISPLAY_UNIT: _AS_RATIO,
        }
    kept = [
        data[element.start : element.stop]
        for element in elements
        if element.kind not in (_DISPLAY_WIDTH, _DISPLAY_HEIGHT, _DISPLAY_UNIT)
    ]
    return b"".join(
        [*kept, *(_make_element(kind, _to_bytes(value)) for kind, value in shown.items())]
    )


def _move(data: bytes, start: int, stop: int, growth: int) -> bytes:
    """The content of a seek head where what lies in a range has moved toward the file's start.

    Args:
        data: the old content.
        start: of the range, in the segment.
        stop: of the range.
        growth: bytes by which it has moved.
    """
    parts = []
    for element in _read_elements(data):
        part = data[element.start : element.stop]
        if element.kind == _SEEK:
            for inner in _read_elements(element.content):
                position = int.from_bytes(inner.content, "big")
                if inner.kind == _SEEK_POSITION and start <= position < stop:
                    # It keeps its number of bytes, and so does the seek head.
                    moved = (position - growth).to_bytes(len(inner.content), "big")
                    part = part[: -len(moved)] + moved
        if element.kind != _CRC:
            parts.append(part)
    return _join(data, parts)

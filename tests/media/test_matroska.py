"""The header of a Matroska file in which the shape of the pixels was written."""

import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from foley.media.matroska import write_pixel_shape
from tests.media.clips import write_clip

SEGMENT, SEEK_HEAD, SEEK = bytes.fromhex("18538067"), bytes.fromhex("114d9b74"), b"\x4d\xbb"


def read_elements(data: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    """Type, content and start of each element of a level."""
    start = 0
    while start < len(data):
        type_bytes = 9 - data[start].bit_length()
        size_start = start + type_bytes
        size_bytes = 9 - data[size_start].bit_length()
        content = size_start + size_bytes
        size = int.from_bytes(data[size_start:content], "big") - (1 << 7 * size_bytes)
        yield data[start:size_start], data[content : content + size], start
        start = content + size


@pytest.mark.parametrize("shape", [Fraction(4, 3), Fraction(1_000_003, 999_983)])
def test_positions_and_checksums_of_the_header_are_right(tmp_path: Path, shape: Fraction) -> None:
    path = write_clip(tmp_path / "clip.mkv", sound=True)
    before = path.read_bytes()
    assert write_pixel_shape(path, shape, in_pixels=False)
    data = path.read_bytes()
    assert len(data) == len(before)
    segment = next(content for kind, content, _ in read_elements(data) if kind == SEGMENT)
    starts = {start: kind for kind, _, start in read_elements(segment)}
    checked = 0
    for kind, content, _ in read_elements(segment):
        if content.startswith(b"\xbf\x84"):
            assert zlib.crc32(content[6:]) == int.from_bytes(content[2:6], "little")
            checked += 1
        if kind == SEEK_HEAD:
            for inner, seek, _ in read_elements(content):
                if inner == SEEK:
                    (_, named, _), (_, position, _) = read_elements(seek)
                    assert starts[int.from_bytes(position, "big")] == named
    assert checked >= 4
    # All that follows the tracks, such as the pictures, is where it was.
    tags = next(start for start, kind in starts.items() if kind == bytes.fromhex("1254c367"))
    assert data.endswith(segment[tags:])
    assert before.endswith(segment[tags:])


@pytest.mark.parametrize("content", [b"", b"no video", bytes.fromhex("1a45dfa3801853806780")])
def test_a_file_without_room_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.mkv"
    path.write_bytes(content)
    assert not write_pixel_shape(path, Fraction(2), in_pixels=False)
    assert path.read_bytes() == content

"""Detection of truncated files, by the sizes that the file's own structure states.

A decoder reads a truncated file up to the cut and then reports its end, as if the clip were short.
Truncation cannot be detected in formats that state no size (MPEG-TS, live WebM). It is not looked
for beyond a number of parts that no real clip has, because walking through garbage would take
minutes.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

_MP4_TYPES = frozenset({b"ftyp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"styp"})
_MP4_NEEDED = frozenset({b"moov", b"mdat", b"moof"})
_EBML_MAGIC = b"\x1a\x45\xdf\xa3"
_MATROSKA_SEGMENT = 0x18538067
_MAX_BOXES = 10_000  # 15 s at 120 fps with one fragment per frame have 3600; 10,000 take 30 ms
_MAX_INDEX_BYTES = 16 << 20  # an hour of video has an index of about 2 MB
_MAX_ELEMENTS = 64  # before the segment; real files have a header and perhaps padding


def missing_bytes(source: Path) -> int:
    """The number of bytes that the file's structure states beyond its end; 0 for a complete file.

    Args:
        source: a file in any format. The result is 0 for formats that state no size.
    """
    with source.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(8)
        if head[4:8] in _MP4_TYPES:
            return _missing_mp4(file, size)
        if head[:4] == _EBML_MAGIC:
            return _missing_matroska(file, size)
        if head[:4] == b"RIFF":
            return max(0, 8 + int.from_bytes(head[4:8], "little") - size)
    return 0


def measure_index(source: Path) -> int:
    """The size of the index (`moov`) that an mp4 file states, in bytes; 0 for other formats.

    Args:
        source: a file in any format.
    """
    with source.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(8)[4:8] not in _MP4_TYPES:
            return 0
        start = 0
        for kind, stop in _walk_boxes(file, size):
            if kind == b"moov":
                return min(stop, size) - start
            start = stop
    return 0


def find_boxes(source: Path, kinds: Iterable[bytes]) -> set[bytes]:
    """The types among `kinds` that the index of an mp4 file names; empty for other formats.

    Args:
        source: a file in any format.
        kinds: types of boxes, four bytes each.
    """
    with source.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(8)[4:8] not in _MP4_TYPES:
            return set()
        start = 0
        for kind, stop in _walk_boxes(file, size):
            if kind == b"moov":
                file.seek(start)
                index = file.read(min(stop - start, _MAX_INDEX_BYTES))
                return {wanted for wanted in kinds if wanted in index}
            start = stop
    return set()


def is_fragmented(source: Path) -> bool:
    """Whether an mp4 file holds its samples in fragments, as live streams do.

    Args:
        source: a file in a format of the mp4 family.
    """
    with source.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        return any(kind == b"moof" for kind, _ in _walk_boxes(file, size))


def read_vint(file: BinaryIO, *, keep_marker: bool) -> tuple[int, bool]:
    """Read an EBML variable-length integer; return it, and whether it is the value "unknown".

    The leading zeros of the first byte state the width. The result is 0 if no integer starts here.

    Args:
        file: at the integer's first byte.
        keep_marker: keep the bit that ends the leading zeros, as in the types of elements.
    """
    first = file.read(1)
    if not first or not first[0]:
        return 0, False
    width = 9 - first[0].bit_length()
    value = int.from_bytes(first + file.read(width - 1), "big")
    payload = value & ((1 << 7 * width) - 1)
    return (value if keep_marker else payload), payload == (1 << 7 * width) - 1


def _missing_mp4(file: BinaryIO, size: int) -> int:
    """Walk the top-level boxes; one that holds samples or their index must end inside the file."""
    for kind, stop in _walk_boxes(file, size):
        if stop > size:
            return stop - size if kind in _MP4_NEEDED else 0
    return 0


def _walk_boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int]]:
    """Yield the type and the stated end of each top-level box."""
    start = 0
    for _ in range(_MAX_BOXES):
        if start + 8 > size:
            return
        file.seek(start)
        header = file.read(16)
        length, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 1:  # the length is in the 64 bits that follow
            length = int.from_bytes(header[8:16], "big")
        if length < 8:  # 0 means "to the end of the file"; other values are not valid
            return
        start += length
        yield kind, start


def _missing_matroska(file: BinaryIO, size: int) -> int:
    """Find the segment after the EBML header; its stated end must lie inside the file."""
    start = 0
    for _ in range(_MAX_ELEMENTS):
        file.seek(start)
        kind, _ = read_vint(file, keep_marker=True)
        length, unknown = read_vint(file, keep_marker=False)
        stop = file.tell() + length
        if kind == _MATROSKA_SEGMENT:
            return 0 if unknown else max(0, stop - size)
        if kind == 0 or unknown or stop >= size:  # not an element, or the last one
            return 0
        start = stop
    return 0

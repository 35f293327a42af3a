"""Mutations of valid clips. The same random state gives the same mutation.

Some change bytes anywhere, as a fault of a disk or a network does. The others know what demuxers
read: boxes of MP4, elements of Matroska, tables of samples, names, lengths, and the start codes of
packets.
"""

import itertools
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

# Names of boxes, chunks and elements, start codes and magic numbers. A length is stated before or
# after most of them, and fields follow.
NAMES = [b"moov", b"mdat", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"stts", b"stsc", b"stsz",
         b"stco", b"co64", b"ctts", b"stss", b"elst", b"edts", b"avcC", b"hvcC", b"av1C", b"esds",
         b"tkhd", b"mdhd", b"mvhd", b"hdlr", b"moof", b"traf", b"tfhd", b"trun", b"mvex", b"sidx",
         b"ftyp", b"avc1", b"hvc1", b"av01", b"mp4v", b"apcn", b"RIFF", b"LIST", b"hdrl", b"strl",
         b"movi", b"idx1", b"avih", b"strh", b"strf", b"00dc", b"JUNK", b"OggS", b"FLV\x01",
         b"DKIF", b"GIF89a", b"IHDR", b"acTL", b"fcTL", b"fdAT", b"IDAT", b"YUV4MPEG2", b"FRAME",
         b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x16\x54\xae\x6b", b"\x1f\x43\xb6\x75",
         b"\x1c\x53\xbb\x6b", b"\x63\xa2", b"\xe0", b"\xb0", b"\xba", b"\xa3",
         b"\x00\x00\x01\xba", b"\x00\x00\x01\xe0", b"\x00\x00\x01\xb3", b"\x00\x00\x01\x00",
         b"\x00\x00\x01\xb6", b"\x00\x00\x01\x67", b"\x00\x00\x01\x65", b"\x00\x00\x01\x40",
         b"\x47\x40\x00", b"\x06\x0e\x2b\x34", b"\x30\x26\xb2\x75", b"NM"]  # fmt: skip
EXTREMES = [0, 1, 2, 7, 0x10, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x3FFFFFFF,
            0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF]  # fmt: skip
# Boxes that hold boxes, and how many bytes of their own come first.
HOLDERS = {b"moov": 0, b"trak": 0, b"mdia": 0, b"minf": 0, b"stbl": 0, b"edts": 0, b"moof": 0,
           b"traf": 0, b"mvex": 0, b"dinf": 0, b"udta": 0, b"stsd": 8, b"avc1": 78, b"hvc1": 78,
           b"hev1": 78, b"av01": 78}  # fmt: skip
TABLES = [b"stts", b"stsc", b"stsz", b"stco", b"ctts", b"stss", b"elst", b"trun", b"sidx"]
MAX_BYTES = 100_000  # of a mutated clip


class Box(NamedTuple):
    """A box of an MP4 file: where it begins, its size, its name, and where its holders begin."""

    start: int
    size: int
    name: bytes
    holders: tuple[int, ...]


def mutate(clip: bytes, chance: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Return the clip with one to eight mutations.

    Args:
        clip: a valid one.
        chance: decides.
        others: clips of which parts may come.
    """
    data = bytearray(clip)
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 5, 8))):
        if others and chance.random() < 0.05:
            _cross(data, chance, chance.choice(others))
        else:
            chance.choice(MUTATIONS)(data, chance)
    return bytes(data[:MAX_BYTES])


def _cross(data: bytearray, chance: random.Random, other: bytes) -> None:
    """Put a part of another clip over a part of this one, or after it."""
    start = chance.randrange(len(data) + 1)
    length = chance.choice((64, 512, 4096, len(other)))
    place = chance.randrange(len(other))
    data[start : start + chance.choice((0, length))] = other[place : place + length]


def _flip_bits(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 4, 32, 256))):
        if data:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _flip_head(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 4, 16))):
        if data:
            data[chance.randrange(min(len(data), 600))] = chance.randrange(256)


def _flip_tail(data: bytearray, chance: random.Random) -> None:
    """Change bytes where muxers put what they know only at the end: tables, indexes, cues."""
    for _ in range(chance.choice((1, 4, 16))):
        if data:
            data[-1 - chance.randrange(min(len(data), 600))] = chance.randrange(256)


def _cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data) + 1) :]


def _drop(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data) + 1)
    del data[start : start + chance.choice((1, 4, 64, 1024))]


def _repeat(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data) + 1)
    data[start:start] = data[start : start + chance.choice((4, 64, 1024))]


def _overwrite(data: bytearray, chance: random.Random) -> None:
    start, length = chance.randrange(len(data) + 1), chance.choice((4, 64, 1024))
    data[start : start + length] = chance.randbytes(length)


def _change_number(data: bytearray, chance: random.Random) -> None:
    """Make a number of 1, 2, 4 or 8 bytes somewhat larger or smaller, or extreme."""
    width, order = chance.choice((1, 2, 4, 8)), chance.choice(("big", "little"))
    if len(data) < width:
        return
    start = chance.randrange(len(data) - width + 1)
    number = int.from_bytes(data[start : start + width], order)
    number = chance.choice((number + chance.randint(-35, 35), chance.choice(EXTREMES)))
    data[start : start + width] = (number % (1 << 8 * width)).to_bytes(width, order)


def _change_near_name(data: bytearray, chance: random.Random) -> None:
    """Replace a length, count or size near a known name by an extreme value."""
    if place := _find_name(data, chance):
        place += chance.choice((-4, 1, 4, 8, 12, 16, 20, 24, 28, 36))
        order = chance.choice((">I", "<I"))
        if 0 <= place <= len(data) - 4:
            data[place : place + 4] = struct.pack(order, chance.choice(EXTREMES))


def _change_name(data: bytearray, chance: random.Random) -> None:
    """Replace a known name, or bytes anywhere, by another known name."""
    name = chance.choice(NAMES)
    place = _find_name(data, chance) or chance.randrange(len(data) + 1)
    data[place : place + chance.choice((0, len(name)))] = name


def _find_name(data: bytearray, chance: random.Random) -> int:
    """Return the place of a known name, of its first or a later one; 0 without one."""
    for name in chance.sample(NAMES, len(NAMES)):
        if (place := data.find(name, chance.randrange(len(data) + 1))) > 0:
            return place
        if (place := data.find(name)) > 0:
            return place
    return 0


def _change_box(data: bytearray, chance: random.Random) -> None:
    """Drop, repeat, move, rename or resize a box, and mend the sizes around it in half of cases."""
    boxes = list(find_boxes(data))
    if not boxes:
        return
    box = chance.choice(boxes)
    stop = box.start + box.size
    content = bytes(data[box.start : stop])
    grown = 0
    match chance.randrange(6):
        case 0:
            del data[box.start : stop]
            grown = -box.size
        case 1:
            data[stop:stop] = content
            grown = box.size
        case 2:  # into another place, which may be inside another box
            del data[box.start : stop]
            place = chance.choice(boxes).start
            data[place:place] = content
        case 3:
            data[box.start + 4 : box.start + 8] = chance.choice(boxes).name
        case 4:
            size = chance.choice((*EXTREMES, box.size - 1, box.size + 1, box.size // 2))
            data[box.start : box.start + 4] = struct.pack(">I", size % (1 << 32))
        case _:  # a box within itself, some times over
            for _ in range(chance.choice((1, 8, 100))):
                data[box.start : box.start] = struct.pack(">I", box.size) + box.name
    if grown and chance.random() < 0.5:
        for holder in box.holders:
            (size,) = struct.unpack_from(">I", data, holder)
            struct.pack_into(">I", data, holder, (size + grown) % (1 << 32))


def _change_table(data: bytearray, chance: random.Random) -> None:
    """Change entries, or the number of entries, of a table of samples or of an edit list."""
    tables = [box for box in find_boxes(data) if box.name in TABLES and box.size > 16]
    if not tables:
        return
    box = chance.choice(tables)
    for _ in range(chance.choice((1, 1, 2, 4))):
        # Version and flags, then fields of four bytes: counts first.
        num_fields = (box.size - 12) // 4
        place = box.start + 12 + 4 * chance.choice((0, 1, chance.randrange(num_fields)))
        if place + 4 <= len(data):
            (number,) = struct.unpack_from(">I", data, place)
            near = (number + chance.randint(-3, 3)) % (1 << 32)
            struct.pack_into(">I", data, place, chance.choice((near, chance.choice(EXTREMES))))


def find_boxes(data: bytearray) -> Iterator[Box]:
    """Yield the boxes of an MP4 file, from the outside to the inside; nothing of another file."""
    todo = [(0, len(data), ())]
    num_found = itertools.count()
    while todo:
        start, stop, holders = todo.pop()
        while start + 8 <= stop and next(num_found) < 1000:
            size, name = struct.unpack_from(">I4s", data, start)
            if size < 8 or start + size > stop or not name.replace(b" ", b"a").isalnum():
                break
            yield Box(start, size, name, holders)
            if name in HOLDERS:
                todo.append((start + 8 + HOLDERS[name], start + size, (*holders, start)))
            start += size


def _change_element(data: bytearray, chance: random.Random) -> None:
    """Change the size that a Matroska element states, to another or to an unknown one."""
    identities = [name for name in NAMES if name[0] in b"\x1a\x18\x16\x1f\x1c\x63\xe0\xb0\xba\xa3"]
    identity = chance.choice(identities)
    place = data.find(identity)
    if place < 0 or place + len(identity) >= len(data):
        return
    place += len(identity)
    sizes = [b"\x01" + b"\xff" * 7, b"\xff", b"\x80", b"\x08\xff\xff\xff\xff", bytes(1),
             bytes([0x80 | chance.randrange(128)]), b"\x40" + chance.randbytes(1)]  # fmt: skip
    size = chance.choice(sizes)
    data[place : place + chance.choice((1, len(size)))] = size


MUTATIONS: list[Callable[[bytearray, random.Random], None]] = [
    _flip_bits, _flip_head, _flip_tail, _cut, _drop, _repeat, _overwrite, _change_number,
    _change_near_name, _change_near_name, _change_name, _change_box, _change_table, _change_table,
    _change_element,
]  # fmt: skip

"""Mutations of valid clips. The same random state gives the same mutation."""

import random
import struct
from collections.abc import Callable
from pathlib import Path

from tests.media.clips import write_clip

# suffix: codec, pixel format, sound, FFmpeg's muxer (None: by the suffix)
SEEDS = {
    "mp4": ("libx264", "yuv420p", True, None),
    "mov": ("prores_ks", "yuv422p10le", False, None),
    "mkv": ("libvpx", "yuv420p", False, "matroska"),
    "webm": ("libvpx-vp9", "yuv420p", False, None),
    "avi": ("mpeg4", "yuv420p", False, None),
}
# Names of boxes and chunks. A length is stated before or after them, and fields follow.
NAMES = [b"moov", b"mdat", b"trak", b"mdia", b"stbl", b"stsd", b"stts", b"stsz", b"stco", b"ctts",
         b"elst", b"avcC", b"tkhd", b"mvhd", b"hdlr", b"RIFF", b"LIST", b"hdrl", b"strl", b"movi",
         b"idx1", b"avih", b"strh", b"strf", b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67",
         b"\x16\x54\xae\x6b", b"\x1f\x43\xb6\x75", b"\xe0", b"\xb0", b"\xba"]  # fmt: skip
EXTREMES = [0, 1, 7, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


def seeds(folder: Path) -> dict[str, bytes]:
    """Write a clip of 12 frames in each container, and return their bytes by suffix."""
    clips = {}
    for suffix, (codec, pix_fmt, sound, muxer) in SEEDS.items():
        path = folder / f"seed.{suffix}"
        write_clip(path, num_frames=12, codec=codec, pix_fmt=pix_fmt, sound=sound, container=muxer)
        clips[suffix] = path.read_bytes()
    return clips


def mutate(clip: bytes, chance: random.Random) -> bytes:
    """Return the clip with one to three mutations."""
    data = bytearray(clip)
    for _ in range(chance.choice((1, 1, 2, 3))):
        chance.choice(MUTATIONS)(data, chance)
    return bytes(data)


def _flip_bits(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 4, 32, 256))):
        if data:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _flip_head(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 4, 16))):
        if data:
            data[chance.randrange(min(len(data), 600))] = chance.randrange(256)


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


def _huge_header(data: bytearray, chance: random.Random) -> None:
    """Replace a length, count or size near a known name by an extreme value."""
    places = [place for name in NAMES if (place := data.find(name)) >= 0]
    if places:
        place = chance.choice(places) + chance.choice((-4, 1, 4, 8, 12, 16, 20, 24, 28, 36))
        order = chance.choice((">I", "<I"))
        if 0 <= place <= len(data) - 4:
            data[place : place + 4] = struct.pack(order, chance.choice(EXTREMES))


MUTATIONS: list[Callable[[bytearray, random.Random], None]] = [
    _flip_bits, _flip_head, _cut, _drop, _repeat, _overwrite, _huge_header, _huge_header,
]  # fmt: skip

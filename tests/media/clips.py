"""Clips that the tests write. Every frame shows its own number as ten vertical bars."""

# H, W height and width, S output side

import io
import os
import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from torch import Tensor

from foley.media.audio_frames import make_frame, name_channels, read_samples

Display = tuple[int, int, int, int]  # a, b, c, d: x' = a x + c y, y' = b x + d y, y downwards

NUM_BARS = 10
ROTATED: dict[int, Display] = {  # degrees counterclockwise
    0: (1, 0, 0, 1),
    90: (0, -1, 1, 0),
    180: (-1, 0, 0, -1),
    270: (0, 1, -1, 0),
}
MIRRORED: Display = (-1, 0, 0, 1)
MILLISECOND = Fraction(1, 1000)


def draw_number(number: int, width: int, height: int) -> np.ndarray:
    """The number as bars, least significant on the left, bright for one: uint8 RGB [H, W, 3]."""
    bars = [(number >> bit) & 1 for bit in range(NUM_BARS)]
    columns = np.array([bars[x * NUM_BARS // width] for x in range(width)], np.uint8)
    return np.broadcast_to((20 + 215 * columns)[None, :, None], (height, width, 3)).copy()


def numbers(frames: Tensor) -> list[int]:
    """The number that each frame [N, S, S, 3] shows. The golden clips show theirs the same way."""
    size = frames.shape[1]
    row = frames[:, size // 2].float().mean(dim=-1)  # [N, S]
    centres = [int((bar + 0.5) * size / NUM_BARS) for bar in range(NUM_BARS)]
    return [sum(2**b for b, x in enumerate(centres) if line[x] > 128) for line in row]


def expected_picks(times_seconds: Sequence[float], fps: int = 25) -> list[int]:
    """The index of every frame that the reference's running clock picks."""
    picks, target = [], 0.0
    for index, seconds in enumerate(times_seconds):
        while seconds >= target:
            picks.append(index)
            target += 1 / fps
    return picks


def write_clip(
    path: Path,
    *,
    times_ms: Sequence[int] | None = None,
    num_frames: int = 25,
    fps: int | Fraction = 25,
    size: tuple[int, int] = (80, 80),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    display: Display | None = None,
    title: str | None = None,
    sound: bool = False,
    sound_seconds: int = 1,
    sound_start_seconds: int = 0,
    second_picture: bool = False,
    muxer: dict[str, str] | None = None,
    container: str | None = None,
) -> Path:
    """Write a clip of numbered frames, at `times_ms` or at a constant rate, and return its path."""
    width, height = size
    with av.open(str(path), "w", format=container, options=muxer or {}) as writer:
        if title:
            writer.metadata["title"] = title
        streams = [writer.add_stream(codec, rate=fps, options=options or _quick(codec))]
        if second_picture:
            streams.append(writer.add_stream(codec, rate=fps, options=options or _quick(codec)))
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
            stream.codec_context.time_base = MILLISECOND if times_ms else Fraction(1, fps)
        tone = writer.add_stream("aac", rate=48000) if sound else None
        for index, pts in enumerate(times_ms or range(num_frames)):
            for place, stream in enumerate(streams):
                number = index if place == 0 else 1023 - index
                writer.mux(stream.encode(_frame(number, width, height, stream, pts)))
        if tone is not None:
            frame = av.AudioFrame.from_ndarray(
                np.zeros((2, 48000 * sound_seconds), np.float32), format="fltp", layout="stereo"
            )
            frame.sample_rate, frame.pts = 48000, 48000 * sound_start_seconds
            writer.mux(tone.encode(frame))
        for stream in [*streams, *([tone] if tone else [])]:
            writer.mux(stream.encode(None))
    if codec == "libsvtav1":  # run by root, it gives the calling process a real-time priority
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    if display is not None:
        _set_display(path, display)
    return path


def write_bomb(path: Path, *, size: tuple[int, int], num_frames: int, fps: int) -> Path:
    """Write an mp4 whose frames are all the same few bytes, a black PNG.

    Args:
        path: of the file.
        size: width and height, in pixels.
        num_frames: that the index lists.
        fps: frame rate.
    """
    width, height = size
    black = av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8), "rgb24")
    encoder = av.CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "rgb24"
    encoder.time_base = Fraction(1, fps)
    picture = b"".join(bytes(packet) for packet in [*encoder.encode(black), *encoder.encode(None)])
    matrix = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    head = _box(b"ftyp", b"isom\0\0\2\0isomiso2mp41")

    def index(place: int) -> bytes:
        entry = _box(
            b"png ",
            bytes(6) + struct.pack(">H", 1) + bytes(16) + struct.pack(">2H", width, height)
            + struct.pack(">2I", 0x480000, 0x480000) + bytes(4) + struct.pack(">H", 1)
            + bytes(32) + struct.pack(">Hh", 24, -1),
        )  # fmt: skip
        table = _box(
            b"stbl",
            _box(b"stsd", struct.pack(">2I", 0, 1) + entry),
            _box(b"stts", struct.pack(">4I", 0, 1, num_frames, 1)),
            _box(b"stsc", struct.pack(">5I", 0, 1, 1, 1, 1)),
            _box(b"stsz", struct.pack(">3I", 0, len(picture), num_frames)),
            _box(b"stco", struct.pack(">2I", 0, num_frames), struct.pack(">I", place) * num_frames),
        )
        data = _box(b"dinf", _box(b"dref", struct.pack(">2I", 0, 1), _box(b"url ", b"\0\0\0\1")))
        media = _box(
            b"mdia",
            _box(b"mdhd", struct.pack(">5I2H", 0, 0, 0, fps, num_frames, 0x55C4, 0)),
            _box(b"hdlr", bytes(8) + b"vide" + bytes(12) + b"v\0"),
            _box(b"minf", _box(b"vmhd", struct.pack(">I", 1) + bytes(8)), data, table),
        )
        duration = 1000 * num_frames // fps
        track = _box(
            b"tkhd",
            struct.pack(">6I", 7, 0, 0, 1, 0, duration) + bytes(16) + matrix
            + struct.pack(">2I", width << 16, height << 16),
        )  # fmt: skip
        movie = _box(
            b"mvhd",
            struct.pack(">5I", 0, 0, 0, 1000, duration) + struct.pack(">IH", 0x10000, 0x100)
            + bytes(10) + matrix + bytes(24) + struct.pack(">I", 2),
        )  # fmt: skip
        return _box(b"moov", movie, _box(b"trak", track, media))

    place = len(head) + len(index(0)) + 8
    path.write_bytes(head + index(place) + _box(b"mdat", picture))
    return path


def _box(kind: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I", 8 + len(content)) + kind + content


def write_sound(path: Path) -> Path:
    """Write a sound file of one second of silence, and return its path."""
    with av.open(str(path), "w") as writer:
        stream = writer.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((2, 48000), np.float32), format="fltp", layout="stereo"
        )
        frame.sample_rate, frame.pts = 48000, 0
        writer.mux(stream.encode(frame))
        writer.mux(stream.encode(None))
    return path


def picture_packets(path: Path) -> list[tuple[bytes, int | None, float]]:
    """The content, timestamp, and time in seconds of every packet of the first video stream."""
    with av.open(str(path)) as reader:
        stream = reader.streams.video[0]
        return [
            (bytes(packet), packet.pts, float(packet.pts * packet.time_base))
            for packet in reader.demux(stream)
            if packet.size
        ]


def list_packets(content: bytes) -> list[tuple[int, int | None, bytes]]:
    """Stream, timestamp and content of every packet of a file.

    Two files that are signed apart differ in their manifests, and are alike in these.
    """
    with av.open(io.BytesIO(content)) as reader:
        return [(p.stream_index, p.pts, bytes(p)) for p in reader.demux() if p.size]


def shown_seconds(path: Path) -> list[float]:
    """The time of every frame that a decoder shows."""
    with av.open(str(path)) as reader:
        return [float(frame.time) for frame in reader.decode(video=0)]


def loudest_second(path: Path) -> float:
    """The time of the sound's largest sample."""
    with av.open(str(path)) as reader:
        resampler = av.AudioResampler(format="fltp")  # a sample of each channel in its own row
        peaks: Iterable[tuple[float, float]] = (
            (float(abs(samples).max()), frame.time + int(abs(samples).argmax()) / frame.sample_rate)
            for decoded in reader.decode(audio=0)
            for frame in resampler.resample(decoded)
            for samples in [frame.to_ndarray()[0]]
        )
        return max(peaks)[1]


def _frame(number: int, width: int, height: int, stream: object, pts: int) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(draw_number(number, width, height), format="rgb24")
    frame.pts, frame.time_base = pts, stream.codec_context.time_base
    return frame


def _set_display(path: Path, display: Display) -> None:
    """Write a display matrix into an mp4 file. Not every version of PyAV can."""
    content = path.read_bytes()
    plain = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    a, b, c, d = (value << 16 for value in display)
    movie, track, rest = content.split(plain)  # the movie has one matrix, its only track another
    path.write_bytes(
        movie + plain + track + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + rest
    )


def _quick(codec: str) -> dict[str, str]:
    return {
        "libx264": {"preset": "ultrafast", "crf": "12", "threads": "1"},
        "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:pools=1"},
        "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
        "libsvtav1": {"preset": "12"},
    }.get(codec, {})


def add_sound(
    clip: Path,
    path: Path,
    samples: np.ndarray,
    *,
    layout: str = "stereo",
    rate: int = 48_000,
    codec: str = "pcm_s24le",
    start_seconds: float = 0.0,
    language: str = "",
    timecode: str = "",
) -> Path:
    """Write the picture of a clip with a sound, float [C, S], and return the path."""
    with av.open(str(clip)) as reader, av.open(str(path), "w") as writer:
        if timecode:
            writer.metadata["timecode"] = timecode
        picture = reader.streams.video[0]
        copy = writer.add_stream_from_template(picture)
        stream = writer.add_stream(codec, rate=rate)
        stream.layout = layout
        if language:
            stream.metadata["language"] = language
        for packet in reader.demux(picture):
            if packet.size:
                packet.stream = copy
                writer.mux(packet)
        for start in range(0, samples.shape[1], 1024):
            chunk = samples[:, start : start + 1024].astype(np.float32)
            frame = make_frame(chunk, layout, "flt", is_planar=True)
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = start + round(start_seconds * rate)
            writer.mux(stream.encode(frame))
        writer.mux(stream.encode(None))
    return path


def decode_sounds(path: Path) -> list[np.ndarray]:
    """The samples of every sound of a file, float [C, S], without what an encoder put before."""
    with av.open(str(path)) as reader:
        count = len(reader.streams.audio)
    sounds = []
    for index in range(count):
        with av.open(str(path)) as reader:
            resampler = av.AudioResampler(format="flt")
            parts = [
                read_samples(part)
                for frame in map(name_channels, reader.decode(reader.streams.audio[index]))
                if frame.pts is None or frame.pts >= 0
                for part in resampler.resample(frame)
            ]
        sounds.append(np.concatenate(parts, axis=1))
    return sounds

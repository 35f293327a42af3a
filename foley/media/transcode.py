"""Encoding of pictures that no container of results takes as they are."""

from __future__ import annotations  # PyAV's packets are generic for the type checker only

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from av import Packet
from av.container import InputContainer, OutputContainer
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from foley.configs import SYNC_FPS
from foley.media.clock import FrameTimes
from foley.media.decode import time_frames
from foley.media.source import MediaLimits

_PIXELS = "yuv420p"  # the only format that all players take
# Frames are encoded in the order in which they are shown, so that no timestamp precedes the first.
_OPTIONS = {
    "libx264": {"preset": "veryfast", "crf": "18", "bf": "0"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "6", "crf": "24", "b": "0"},
}


def add_encoded_picture(writer: OutputContainer, picture: VideoStream, codec: str) -> VideoStream:
    """Add a stream of the picture's size, rounded down to even numbers, and return it.

    Args:
        writer: the result, before its header is written.
        picture: the source's stream.
        codec: FFmpeg's name of the encoder, libx264 or libvpx-vp9.
    """
    rate = picture.average_rate or picture.guessed_rate or Fraction(SYNC_FPS)
    stream = writer.add_stream(codec, rate=rate, options=_OPTIONS[codec])
    assert isinstance(stream, VideoStream)
    context = picture.codec_context
    stream.width, stream.height = (max(2, side & ~1) for side in (context.width, context.height))
    stream.pix_fmt = _PIXELS
    stream.codec_context.time_base = picture.time_base or Fraction(1, SYNC_FPS)
    return stream


def encode_picture(
    container: InputContainer,
    picture: VideoStream,
    stream: VideoStream,
    limits: MediaLimits,
    stop_seconds: float | None,
) -> Iterator[Packet[Any]]:
    """Yield the encoded packets of the clip's frames, at the times at which they are shown.

    Args:
        container: the open source.
        picture: its video stream.
        stream: by `add_encoded_picture`.
        limits: for the frames.
        stop_seconds: frames from there on are left out; None for all.

    Raises:
        VideoDecodeError: the source is damaged.
        VideoTooLargeError: a frame has too many pixels.
    """
    time_base = stream.codec_context.time_base or Fraction(1, SYNC_FPS)
    times = FrameTimes(picture.time_base or time_base, picture.average_rate)
    reformatter = VideoReformatter()
    last_pts: int | None = None
    for frame, pts, duration in time_frames(container, picture, limits):
        seconds = times.seconds(pts, duration)
        if stop_seconds is not None and seconds >= stop_seconds:
            break
        plain = reformatter.reformat(frame, stream.width, stream.height, _PIXELS)
        ticks = round(seconds / time_base)
        plain.pts = ticks if last_pts is None else max(ticks, last_pts + 1)
        plain.time_base = time_base
        last_pts = plain.pts
        yield from stream.encode(plain)
    yield from stream.encode(None)

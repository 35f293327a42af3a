"""The packets of a clip's video stream in the clip's own clock, which begins at zero."""

from __future__ import annotations  # PyAV's packets are generic for the type checker only

from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import av
from av import Packet
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Stream
from av.video.stream import VideoStream

from foley.configs import SYNC_FPS
from foley.media.clip_clock import ClipClock, Witness
from foley.media.integrity import is_fragmented

StreamT = TypeVar("StreamT", AudioStream, VideoStream)

# Formats of broadcasts and live streams: their clock runs on from some moment before the clip.
_RUNNING_CLOCKS = frozenset({"mpegts", "mpeg", "flv"})
# Formats that state when a packet is decoded, and not when its frame is shown. Of bare MPEG-1 and
# MPEG-2 streams FFmpeg knows the latter for some packets, one frame late.
_UNTIMED_FORMATS = frozenset({"avi", "asf", "mpegvideo"})


def demux_video(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream]]:
    """Yield the stream's packets with timestamps in the clip's clock, the empty last one included.

    In formats with a running clock, the clip's clock begins at the earliest timestamp of the file,
    so that a picture that begins after the sound stays late. Where the timestamps restart, as in
    joined recordings, the later part follows the earlier one without a gap. A longer pause of the
    picture stays where the sound goes on.

    Args:
        container: the open source.
        stream: its video stream.

    Raises:
        av.FFmpegError: a packet cannot be read.
    """
    return _demux_in_clip_time(container, stream, ticks_per_frame(stream))


def demux_sound(container: InputContainer, stream: AudioStream) -> Iterator[Packet[AudioStream]]:
    """Yield the stream's packets in the clip's clock, as `demux_video` does.

    Args:
        container: the open source.
        stream: one of its audio streams.

    Raises:
        av.FFmpegError: a packet cannot be read.
    """
    return _demux_in_clip_time(container, stream, 1)


def _demux_in_clip_time(
    container: InputContainer, stream: StreamT, step: int
) -> Iterator[Packet[StreamT]]:
    shift = -clock_start(container, stream)
    if not has_running_clock(container):
        clock = ClipClock(stream, shift, step)
        for packet in demux(container, stream):
            yield from clock.place(packet)
        return
    # The other stream tells a clock that was restarted from a stream that pauses.
    other = _find_other(container, stream)
    witness = None if other is None else Witness(other)
    clock = ClipClock(stream, shift, step, closes_gaps=True, witness=witness)
    for packet in demux(container, *([stream] if other is None else [stream, other])):
        if packet.stream_index == stream.index:
            yield from clock.place(packet)
        elif witness is not None:
            witness.hear(packet)


def demux(container: InputContainer, *streams: Stream) -> Iterator[Packet[Any]]:
    """Yield the packets of some streams in the file's order, an empty last one of each included.

    A stream that begins later than the file's head says is left out.

    Args:
        container: the open source.
        streams: of it.

    Raises:
        av.FFmpegError: a packet cannot be read.
    """
    # When all is read, PyAV (18.1) goes through all streams that there are by then, with a list of
    # those that were there before. As memory happens to be, it then fails at the first new one.
    with suppress(IndexError):
        yield from container.demux(*streams)


def _find_other(container: InputContainer, stream: Stream) -> Stream | None:
    streams = container.streams
    others = streams.audio if isinstance(stream, VideoStream) else streams.video
    return others[0] if others else None


def clock_start(container: InputContainer, stream: Stream) -> int:
    """The container's time at which the clip's clock begins, in ticks of the stream.

    Args:
        container: the open source.
        stream: one of its streams.
    """
    start = container.start_time
    assert stream.time_base is not None
    if start is None or not _begins_late(container, start):
        return 0
    return round(Fraction(start, av.time_base) / stream.time_base)


def has_presentation_times(container: InputContainer, stream: VideoStream) -> bool:
    """Whether the container states when each frame is shown, and not only when it is decoded.

    Args:
        container: the open source.
        stream: its video stream.
    """
    name = container.format.name
    # Matroska has no codec tags of its own: a stream with one was taken over from AVI.
    from_avi = "matroska" in name and bool(stream.codec_context.codec_tag.strip("\0"))
    return name not in _UNTIMED_FORMATS and not from_avi


def ticks_per_frame(stream: VideoStream) -> int:
    """The frame interval in ticks of the stream, at least 1."""
    assert stream.time_base is not None
    rate = stream.average_rate or stream.guessed_rate or Fraction(SYNC_FPS)
    return max(1, round(1 / (rate * stream.time_base)))


def has_running_clock(container: InputContainer) -> bool:
    """Whether the file's clock runs on from before the clip, and may be restarted in it.

    Args:
        container: the open source.
    """
    return container.format.name in _RUNNING_CLOCKS


def _begins_late(container: InputContainer, start: int) -> bool:
    if has_running_clock(container):
        return True
    is_mp4 = container.format.name.startswith("mov")
    return start > 0 and is_mp4 and is_fragmented(Path(container.name))

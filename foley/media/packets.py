"""Video packets of a source for copying: complete timestamps, and a cut at the sound's end."""

from __future__ import annotations  # PyAV's packets are generic for the type checker only

import itertools
import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

from av import Packet
from av.container import InputContainer
from av.video.stream import VideoStream

from foley.configs import SYNC_FPS
from foley.media.clock import seconds_of
from foley.media.decode import decode_packets
from foley.media.source import MediaLimits, open_video, translate_read_errors

# Common codecs reorder frames by at most 16 places. To know the order of the frames before a given
# time, 16 more packets are needed for the frames that are shown before it, 16 for the frames that
# are decoded before it, and 16 because a decoder holds back as many frames.
_EXTRA_PACKETS = 3 * 16


def complete_timestamps(
    container: InputContainer,
    stream: VideoStream,
    limits: MediaLimits,
    stop_seconds: float | None = None,
) -> Iterator[Packet[VideoStream]]:
    """Yield the packets in decoding order, each with both timestamps, which every muxer needs.

    Matroska files have no decoding timestamps for their first packets. Raw streams have no
    timestamps at all: for them, a part of the stream is decoded to find the presentation order.

    Args:
        container: the open source.
        stream: its video stream.
        limits: for the frames of a stream that must be decoded.
        stop_seconds: exact timestamps are needed only up to here. Later ones may be too small, but
            not smaller than this. None for the whole stream.

    Raises:
        VideoDecodeError: the source cannot be read.
        VideoTooLargeError: a frame of a stream without timestamps has too many pixels.
    """
    step = _ticks_per_frame(stream)
    waiting: list[Packet[VideoStream]] = []
    ranks: list[int] | None = None
    for index, packet in enumerate(_read_packets(container, stream)):
        if packet.pts is None and packet.dts is None:
            if ranks is None:
                ranks = _presentation_ranks(
                    Path(container.name), limits, _num_needed(stream, step, stop_seconds)
                )
            packet.dts = (index - _delay(ranks)) * step
            packet.pts = (ranks[index] if index < len(ranks) else index) * step
        elif packet.dts is None:
            waiting.append(packet)
            continue
        elif packet.pts is None:
            packet.pts = packet.dts
        assert packet.dts is not None
        yield from _assign_dts(waiting, packet.dts, step)
        waiting.clear()
        yield packet
    if waiting:
        yield from _assign_dts(waiting, min(p.pts for p in waiting if p.pts is not None), step)


def cut_packets(
    packets: Iterable[Packet[VideoStream]], stop_seconds: float | None
) -> Iterator[Packet[VideoStream]]:
    """Yield the packets that are shown before `stop_seconds`, and those that they depend on.

        all packets   I0  P3  B1  B2  P6  B4  B5
        stop at 2     I0  P3  B1                  P3 is shown after the stop, but B1 depends on it

    Args:
        packets: in decoding order, with both timestamps.
        stop_seconds: None for all packets.
    """
    waiting: list[Packet[VideoStream]] = []
    for packet in packets:
        assert packet.pts is not None
        assert packet.dts is not None
        if stop_seconds is not None:
            if seconds_of(packet.dts, packet.time_base) >= stop_seconds:
                return  # nothing after this is shown earlier
            if seconds_of(packet.pts, packet.time_base) >= stop_seconds:
                waiting.append(packet)
                continue
        yield from waiting
        waiting.clear()
        yield packet


def _read_packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream]]:
    with translate_read_errors(Path(container.name)):
        for packet in container.demux(stream):
            if packet.size:  # the last packet is empty; it is for flushing a decoder
                yield packet


def _assign_dts(
    waiting: list[Packet[VideoStream]], next_dts: int, step: int
) -> Iterator[Packet[VideoStream]]:
    """Yield the waiting packets with decoding timestamps that count up to `next_dts`."""
    for place, packet in enumerate(waiting):
        packet.dts = next_dts - (len(waiting) - place) * step
        yield packet


def _num_needed(stream: VideoStream, step: int, stop_seconds: float | None) -> int | None:
    """The number of packets that determine the frames before `stop_seconds`; None for all."""
    if stop_seconds is None:
        return None
    assert stream.time_base is not None
    return math.ceil(stop_seconds / (step * stream.time_base)) + _EXTRA_PACKETS


def _presentation_ranks(source: Path, limits: MediaLimits, num_packets: int | None) -> list[int]:
    """The place in presentation order of each of the first packets in decoding order.

    A decoder copies a packet's timestamp to its frame. The packets are numbered in decoding order,
    and the decoder returns the numbers in presentation order.
    """
    with open_video(source, limits) as (container, stream):
        packets = _number_packets(itertools.islice(container.demux(stream), num_packets))
        shown = [frame.pts for frame in decode_packets(packets, limits) if frame.pts is not None]
    ranks = list(range(max(shown, default=-1) + 1))
    for rank, index in enumerate(shown):
        ranks[index] = rank
    return ranks


def _number_packets(packets: Iterable[Packet[VideoStream]]) -> Iterator[Packet[VideoStream]]:
    for index, packet in enumerate(packets):
        if packet.size:
            packet.pts = packet.dts = index
        yield packet


def _delay(ranks: list[int]) -> int:
    """The number of frames by which decoding must run ahead of presentation."""
    return max((index - rank for index, rank in enumerate(ranks)), default=0)


def _ticks_per_frame(stream: VideoStream) -> int:
    assert stream.time_base is not None
    rate = stream.average_rate or stream.guessed_rate or Fraction(SYNC_FPS)
    return max(1, round(1 / (rate * stream.time_base)))

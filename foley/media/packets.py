"""The picture's packets, as they are in the source, up to where the sound ends."""

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
from foley.media.decode import decoded
from foley.media.source import MediaLimits, open_video, readable

# No common codec shows a frame more than 16 after its turn to be decoded. That many packets more
# settle which frames are shown before a time, as many again which of them are decoded before it,
# and a decoder keeps as many frames back.
_SETTLING_PACKETS = 3 * 16


def timed(
    container: InputContainer,
    stream: VideoStream,
    limits: MediaLimits,
    stop_seconds: float | None = None,
) -> Iterator[Packet[VideoStream]]:
    """The packets in order of decoding, with both timestamps, which every container needs.

    Matroska does not state when its first packets are decoded, raw streams state no time at all:
    these are decoded within `limits`. Times after `stop_seconds` may then be less than true, but
    not less than `stop_seconds`.
    """
    step = _ticks_a_frame(stream)
    waiting: list[Packet[VideoStream]] = []
    ranks: list[int] | None = None
    for index, packet in enumerate(_demuxed(container, stream)):
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
        yield from _counted_back(waiting, packet.dts, step)
        waiting.clear()
        yield packet
    if waiting:
        yield from _counted_back(waiting, min(p.pts for p in waiting if p.pts is not None), step)


def until(
    packets: Iterable[Packet[VideoStream]], stop_seconds: float | None
) -> Iterator[Packet[VideoStream]]:
    """The packets that are shown before `stop_seconds`, and those that they are decoded from.

        decoded     I0  P3  B1  B2  P6  B4  B5
        stop at 2   I0  P3  B1                  P3 is shown after the stop, but B1 needs it

    Packets come in order of decoding; a later one waits until an earlier one needs it.
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


def _demuxed(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream]]:
    with readable(Path(container.name)):
        for packet in container.demux(stream):
            if packet.size:  # the last one is empty and asks the decoder for what it still holds
                yield packet


def _counted_back(
    waiting: list[Packet[VideoStream]], next_dts: int, step: int
) -> Iterator[Packet[VideoStream]]:
    for place, packet in enumerate(waiting):
        packet.dts = next_dts - (len(waiting) - place) * step
        yield packet


def _num_needed(stream: VideoStream, step: int, stop_seconds: float | None) -> int | None:
    """How many packets decide on the frames before `stop_seconds`; None for all."""
    if stop_seconds is None:
        return None
    assert stream.time_base is not None
    return math.ceil(stop_seconds / (step * stream.time_base)) + _SETTLING_PACKETS


def _presentation_ranks(source: Path, limits: MediaLimits, num_packets: int | None) -> list[int]:
    """For each of the first packets of the picture, in order of decoding, its place when shown.

    A decoder hands a packet's timestamp on to its frame: packets numbered in order of decoding
    come back in order of presentation.
    """
    with open_video(source, limits) as (container, stream):
        packets = _numbered(itertools.islice(container.demux(stream), num_packets))
        shown = [frame.pts for frame in decoded(packets, limits) if frame.pts is not None]
    ranks = list(range(max(shown, default=-1) + 1))
    for rank, index in enumerate(shown):
        ranks[index] = rank
    return ranks


def _numbered(packets: Iterable[Packet[VideoStream]]) -> Iterator[Packet[VideoStream]]:
    for index, packet in enumerate(packets):
        if packet.size:
            packet.pts = packet.dts = index
        yield packet


def _delay(ranks: list[int]) -> int:
    """Frames by which decoding must run ahead, so that none is shown before it is decoded."""
    return max((index - rank for index, rank in enumerate(ranks)), default=0)


def _ticks_a_frame(stream: VideoStream) -> int:
    assert stream.time_base is not None
    rate = stream.average_rate or stream.guessed_rate or Fraction(SYNC_FPS)
    return max(1, round(1 / (rate * stream.time_base)))

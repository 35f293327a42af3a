"""Video packets of a source for copying: complete timestamps, and a cut at the sound's end."""

from __future__ import annotations  # PyAV's packets are generic for the type checker only

import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from av import Packet
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer
from av.video.stream import VideoStream

from foley.media.clock import seconds_of
from foley.media.decode import decode_packets
from foley.media.source import MediaLimits, open_video, translate_read_errors
from foley.media.timeline import demux_video, has_presentation_times, ticks_per_frame

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
    timestamps at all, and AVI files have no presentation timestamps: for them, a part of the stream
    is decoded to find the presentation order. Decoding timestamps that do not rise are raised.

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
    step = ticks_per_frame(stream)
    is_timed = has_presentation_times(container, stream)
    waiting: list[Packet[VideoStream]] = []
    order: _PresentationOrder | None = None
    last_dts: int | None = None
    for index, packet in enumerate(_read_packets(container, stream)):
        if not is_timed or (packet.pts is None and packet.dts is None):
            if order is None:
                num_packets = _num_needed(stream, step, stop_seconds)
                order = _PresentationOrder(Path(container.name), limits, num_packets, step)
            packet.pts, packet.dts, packet.duration = order.find_times(index, packet.dts)
        elif packet.dts is None:
            waiting.append(packet)
            continue
        elif packet.pts is None:
            packet.pts = packet.dts
        if not packet.duration:  # as in MPEG-TS: players would cut the last frame
            packet.duration = step
        assert packet.dts is not None
        assert packet.pts is not None
        if last_dts is not None and packet.dts <= last_dts:  # muxers need rising ones
            packet.dts = last_dts + 1
            packet.pts = max(packet.pts, packet.dts)
        last_dts = packet.dts
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
        for packet in _demux_single_frames(container, stream):
            if packet.size:  # the last packet is empty; it is for flushing a decoder
                yield packet


def _demux_single_frames(
    container: InputContainer, stream: VideoStream
) -> Iterator[Packet[VideoStream]]:
    """Yield the packets as `demux_video` does, each with one frame.

    DivX and Xvid pack a B-frame into the packet of the frame before it, which AVI needs and which
    no other container allows.
    """
    packets = demux_video(container, stream)
    is_mpeg4 = stream.codec_context.codec.canonical_name == "mpeg4"
    if not is_mpeg4 or has_presentation_times(container, stream):
        yield from packets
        return
    unpack = BitStreamFilterContext("mpeg4_unpack_bframes", stream)
    for packet in packets:
        if not packet.size:  # the filter returns nothing more at the end
            yield packet
            continue
        for single in unpack.filter(packet):
            single.stream = stream
            yield single


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


class _PresentationOrder:
    """Computes the timestamps of packets whose order of presentation the container does not state.

    The first packets are decoded. A decoder copies a packet's timestamp to its frame: the packets
    are numbered in decoding order, and the decoder returns the numbers in presentation order.

    Args:
        source: the file, which is opened again.
        limits: for the frames that are decoded.
        num_packets: how many packets are decoded; None for all.
        step: ticks per frame, for packets without any timestamp.
    """

    def __init__(
        self, source: Path, limits: MediaLimits, num_packets: int | None, step: int
    ) -> None:
        self._step = step
        self._times: list[int] = []  # in decoding order, which is rising
        with open_video(source, limits) as (container, stream):
            packets = self._number_packets(
                itertools.islice(_demux_single_frames(container, stream), num_packets)
            )
            frames = decode_packets(packets, limits)
            shown = [frame.pts for frame in frames if frame.pts is not None]
        self._ranks = list(range(max(shown, default=-1) + 1))
        for rank, index in enumerate(shown):
            self._ranks[index] = rank
        # The number of frames by which decoding must run ahead of presentation.
        self._delay = max((index - rank for index, rank in enumerate(self._ranks)), default=0)

    def find_times(self, index: int, dts: int | None) -> tuple[int, int, int]:
        """The presentation and decoding timestamps of the next packet, and its duration.

        AVI may count fields, and then states half the duration.

        Args:
            index: of the packet in decoding order.
            dts: as the container states it, None if it does not.
        """
        if index >= len(self._times):
            self._append_time(dts)
        rank = self._ranks[index] if index < len(self._ranks) else index
        early = index - self._delay
        decoded = self._times[early] if early >= 0 else self._times[0] + early * self._first_step
        times = self._times[max(0, rank - 1) : rank + 2]  # up to the next one, if it is known
        duration = times[-1] - times[-2] if len(times) > 1 else self._step
        return self._times[rank], decoded, duration

    @property
    def _first_step(self) -> int:
        """Ticks from the first frame to the second. With half of them a result is too short."""
        return self._times[1] - self._times[0] if len(self._times) > 1 else self._step

    def _append_time(self, dts: int | None) -> None:
        following = self._times[-1] + self._step if self._times else 0
        self._times.append(following if dts is None else dts)

    def _number_packets(
        self, packets: Iterable[Packet[VideoStream]]
    ) -> Iterator[Packet[VideoStream]]:
        for packet in packets:
            if packet.size:
                self._append_time(packet.dts)
                packet.pts = packet.dts = len(self._times) - 1
            yield packet

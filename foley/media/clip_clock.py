"""From a file's clock, which may be restarted on the way, to the clip's own."""

from __future__ import annotations  # PyAV's packets are generic for the type checker only

import math
from collections.abc import Iterator
from typing import Any

from av import Packet
from av.stream import Stream

from foley.media.clock import seconds_of

# A clock that jumps this far forwards was restarted. FFmpeg's command line has the same limit.
_MAX_GAP_SECONDS = 10
_MAX_SKEW_SECONDS = 1  # between streams that are stored beside one another
_MAX_WAITING = 32  # codecs reorder frames by at most 16 places


class Witness:
    """Tells whether another stream of the file went on where a stream has a gap.

    Args:
        stream: the other stream.
    """

    def __init__(self, stream: Stream) -> None:
        assert stream.time_base is not None
        self._time_base = stream.time_base
        self._first_seconds = math.inf  # since its own clock was restarted
        self._last_seconds = -math.inf

    def hear(self, packet: Packet[Any]) -> None:
        """Take the next packet of the other stream.

        Args:
            packet: with the times of the file.
        """
        if packet.dts is None or not packet.size:
            return
        seconds = seconds_of(packet.dts, self._time_base)
        if not -_MAX_SKEW_SECONDS < seconds - self._last_seconds < _MAX_GAP_SECONDS:
            self._first_seconds = seconds
        self._last_seconds = seconds

    def went_on(self, start_seconds: float, stop_seconds: float) -> bool:
        """Whether the other stream went on from the start of a gap to its stop.

        Args:
            start_seconds: of the gap, in the file's clock.
            stop_seconds: of the gap.
        """
        began_before = self._first_seconds <= start_seconds + _MAX_SKEW_SECONDS
        return began_before and self._last_seconds > stop_seconds - _MAX_GAP_SECONDS


class ClipClock:
    """Moves the packets of a stream into the clip's clock.

    Where frames are reordered, the time of presentation leaps some packets before the time of
    decoding. These packets wait for the leap of the other, since both move by the same:

        decoded   0   1   2   3   4  100          a gap from 4 to 100
        shown     1   3   2   4  100  101         the packet of 100 waits for the next one

    Args:
        stream: of the packets.
        shift: from the file's clock to the clip's, in ticks.
        step: the duration of a packet that states none, in ticks.
        closes_gaps: whether a long gap is a restart of the clock.
        witness: of another stream, beside which a gap may be a pause; None without one.
    """

    def __init__(
        self,
        stream: Stream,
        shift: int,
        step: int,
        *,
        closes_gaps: bool = False,
        witness: Witness | None = None,
    ) -> None:
        assert stream.time_base is not None
        self._time_base = stream.time_base
        self._shift = shift
        self._step = self._duration = step
        self._max_gap = float(_MAX_GAP_SECONDS / stream.time_base) if closes_gaps else math.inf
        self._witness = witness
        self._last_dts: int | None = None  # in the file's clock
        self._last_pts = -(2**62)  # the latest before a gap, in the file's clock
        self._waiting: list[Packet[Any]] = []

    def place(self, packet: Packet[Any]) -> Iterator[Packet[Any]]:
        """Yield the packets whose place is known, up to the next one or those before it.

        Args:
            packet: the next one, whose timestamps are changed; the empty last one ends the stream.
        """
        if not packet.size:
            yield from self._release(self._shift + self._measure_last_gap())
            yield self._move(packet, self._shift)
            return
        shift = self._shift
        if packet.dts is not None:
            shift += self._measure_leap(packet.dts)
            self._last_dts, self._duration = packet.dts, packet.duration or self._step
        is_far = self._is_far(packet)
        if packet.pts is not None and not is_far:
            is_restart = shift != self._shift
            self._last_pts = packet.pts if is_restart else max(self._last_pts, packet.pts)
        if shift == self._shift and (is_far or self._waiting):
            self._waiting.append(packet)
            if len(self._waiting) == _MAX_WAITING:
                yield from self._release(self._shift)
            return
        yield from self._release(shift)
        self._shift = shift
        yield self._move(packet, shift)

    def _measure_leap(self, dts: int) -> int:
        """Return by how much the shift changes at a packet."""
        if self._last_dts is None:
            return 0
        following = self._last_dts + self._duration
        is_back = dts <= self._last_dts - 2 * self._duration
        if not is_back and (
            dts < self._last_dts + self._max_gap or self._is_pause(self._last_dts, dts)
        ):
            return 0
        return following - dts

    def _measure_last_gap(self) -> int:
        """Return by how much packets at the end move whose time of decoding has not leapt."""
        far = [p.pts for p in self._waiting if p.pts is not None and self._is_far(p)]
        if not far or self._is_pause(self._last_pts, min(far)):
            return 0
        return self._last_pts + self._duration - min(far)

    def _is_pause(self, start: int, stop: int) -> bool:
        if self._witness is None:
            return False
        return self._witness.went_on(
            seconds_of(start, self._time_base), seconds_of(stop, self._time_base)
        )

    def _is_far(self, packet: Packet[Any]) -> bool:
        if packet.pts is None or packet.dts is None:
            return False
        return packet.pts - packet.dts >= self._max_gap

    def _release(self, far_shift: int) -> Iterator[Packet[Any]]:
        """Yield the waiting packets; those that are shown after the gap move by another shift."""
        for packet in self._waiting:
            is_far = self._is_far(packet)
            moved = self._move(packet, self._shift)
            if is_far and moved.pts is not None:
                moved.pts += far_shift - self._shift
            yield moved
        self._waiting.clear()

    def _move(self, packet: Packet[Any], shift: int) -> Packet[Any]:
        if shift:
            packet.pts = None if packet.pts is None else packet.pts + shift
            packet.dts = None if packet.dts is None else packet.dts + shift
        return packet

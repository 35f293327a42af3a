"""The clip's own sound: decoded at the times at which it is heard, or its packets for copying."""

# C channels, S samples

from __future__ import annotations  # PyAV's packets are generic for the type checker only

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av import AudioFrame, Packet
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.filter import Graph
from av.filter.context import FilterContext

from foley.configs import SAMPLE_RATE
from foley.errors import VideoDecodeError
from foley.media.audio_frames import KEPT_LAYOUTS, name_channels, read_samples
from foley.media.clock import seconds_of
from foley.media.filters import Sound, drain
from foley.media.source import MediaLimits, open_sound
from foley.media.timeline import demux_sound

_MAX_FILLED_SECONDS = 1
# What is decoded of clips whose codecs are limited.
SOUND_CODECS = frozenset(
    {
        *("aac", "ac3", "alac", "amr_nb", "amr_wb", "dts", "eac3", "flac", "mp2", "mp3", "opus"),
        *("adpcm_ima_qt", "adpcm_ima_wav", "adpcm_ms", "truehd", "vorbis", "wmav1", "wmav2"),
        *("pcm_alaw", "pcm_mulaw", "pcm_s8", "pcm_u8", "pcm_s16be", "pcm_s16le", "pcm_s24be"),
        *("pcm_s24le", "pcm_s32be", "pcm_s32le", "pcm_f32be", "pcm_f32le", "pcm_f64le"),
    }
)


@dataclass(frozen=True, kw_only=True)
class OriginalTrack:
    """The clip's own sound.

    Attributes:
        sound: float32 [C, S] from the clip's time zero on; silence where it has none.
        layout: its channels in the clip, by FFmpeg's name.
        language: as the clip states it, such as eng; und if it does not.
        notices: sentences for the caller about what was changed.
    """

    sound: Sound
    layout: str
    language: str
    notices: tuple[str, ...] = ()


def read_original(
    source: Path,
    *,
    fit: Callable[[str], str],
    stop_seconds: float | None = None,
    sample_rate: int = SAMPLE_RATE,
    limits: MediaLimits | None = None,
) -> OriginalTrack | None:
    """Decode the first sound of a clip; None if it has none.

    Args:
        source: the clip.
        fit: returns the channels of the result for those of the clip, by FFmpeg's names.
        stop_seconds: leave out what is heard from there on.
        sample_rate: of the result, Hz. FFmpeg's resampler converts it.
        limits: `codecs` limits what is decoded, and `max_seconds` how much; the defaults when None.

    Raises:
        VideoDecodeError: the sound cannot be decoded.
    """
    checked = limits or MediaLimits()
    codecs = list_codecs(limits)
    longest = checked.max_seconds if stop_seconds is None else stop_seconds
    with open_sound(source, codecs) as opened:
        if opened is None:
            return None
        container, stream = opened
        if stream.codec_context is None or (
            codecs is not None and stream.codec_context.codec.canonical_name not in codecs
        ):
            raise _undecodable(source, "its codec is not known here")
        track = _Track(fit, sample_rate, num_samples=round(longest * sample_rate))
        for frame in _decode(container, stream):
            if not track.add(frame):
                break
        if track.layout is None:
            raise _undecodable(source, "none of its packets is readable")
        notices: list[str] = []
        if len(container.streams.audio) > 1:
            notices.append(
                f"The clip has {len(container.streams.audio)} sounds: the first one is used."
            )
        return OriginalTrack(
            sound=track.finish(),
            layout=track.original_layout,
            language=_language(stream),
            notices=tuple(notices),
        )


def list_codecs(limits: MediaLimits | None) -> frozenset[str] | None:
    """The codecs whose decoders may probe a clip for its sound; None for all.

    Args:
        limits: that name video codecs, or none.
    """
    return limits.codecs | SOUND_CODECS if limits and limits.codecs else None


def read_original_packets(
    source: Path,
    copy: AudioStream,
    stop_seconds: float | None,
    limits: MediaLimits | None,
    *,
    with_early: bool,
) -> Iterator[Packet[Any]]:
    """Yield the packets of a clip's first sound, in the clip's clock, for the result's stream.

    Args:
        source: the clip, which has a sound.
        copy: the result's stream.
        stop_seconds: packets from there on are left out; None for all.
        limits: on the codecs that may probe the clip.
        with_early: whether to yield packets before time zero, from which decoders start up. Without
            an edit list they would move the picture and all sounds back.
    """
    with open_sound(source, list_codecs(limits)) as opened:
        assert opened is not None
        container, stream = opened
        last_dts: int | None = None
        for packet in demux_sound(container, stream):
            if not packet.size or packet.pts is None or packet.dts is None:
                continue
            if packet.pts < 0 and not with_early:
                continue
            if last_dts is not None and packet.dts <= last_dts:
                continue  # muxers need rising times
            if stop_seconds is not None and (
                seconds_of(packet.pts, packet.time_base) >= stop_seconds
            ):
                return
            last_dts = packet.dts
            packet.stream = copy
            yield packet


def language_of(container: InputContainer) -> str:
    """The language of a clip's first sound, such as eng; und if the clip does not state it.

    Args:
        container: the open clip.
    """
    streams = container.streams.audio
    return _language(streams[0]) if streams else "und"


def _language(stream: AudioStream) -> str:
    return stream.metadata.get("language") or "und"


def _decode(container: InputContainer, stream: AudioStream) -> Iterator[AudioFrame]:
    """Yield the frames with timestamps in the clip's clock, in samples."""
    next_pts = 0
    for packet in demux_sound(container, stream):
        frames: list[AudioFrame] = []
        with suppress(av.error.InvalidDataError):  # one broken packet is a gap
            frames = [name_channels(frame) for frame in stream.decode(packet)]
        for frame in frames:
            if frame.pts is not None and frame.time_base is not None:
                frame.pts = round(frame.pts * Fraction(packet.time_base) * frame.sample_rate)
            else:
                frame.pts = next_pts
            frame.time_base = Fraction(1, frame.sample_rate)
            next_pts = frame.pts + frame.samples
            yield frame


class _Track:
    """Puts decoded frames at their places in one array.

    Args:
        fit: as that of `read_original`.
        sample_rate: of the result, Hz.
        num_samples: the longest that it may become.
    """

    def __init__(self, fit: Callable[[str], str], sample_rate: int, num_samples: int) -> None:
        self.layout: str | None = None
        self.original_layout = ""
        self._fit = fit
        self._sample_rate = sample_rate
        self._num_samples = num_samples
        self._form: tuple[str, str, int] | None = None
        self._next_pts = 0
        self._graph: Graph | None = None
        self._source: FilterContext | None = None
        self._sink: FilterContext | None = None
        self._parts: list[tuple[int, np.ndarray]] = []  # first sample and [C, S]

    def add(self, frame: AudioFrame) -> bool:
        """Add the next frame; returns whether later ones are needed."""
        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        if self.layout is None:
            self.layout = self._choose_layout(frame.layout.name)
        assert frame.pts is not None
        if frame.pts * self._sample_rate >= self._num_samples * frame.sample_rate:
            return False
        gap = abs(frame.pts - self._next_pts)
        # The first one, the stream changed on the way, or a gap that filters would fill in memory.
        if form != self._form or gap > _MAX_FILLED_SECONDS * frame.sample_rate:
            self._end_graph()
            self._start_graph(form)
        self._next_pts = frame.pts + frame.samples
        assert self._source is not None
        self._source.push(frame)
        self._collect()
        return True

    def finish(self) -> Sound:
        """Return the whole sound, and end the filters."""
        self._end_graph()
        assert self.layout is not None
        channels = av.AudioLayout(self.layout).nb_channels
        length = max((at + part.shape[1] for at, part in self._parts), default=0)
        samples = np.zeros((channels, min(max(length, 0), self._num_samples)), np.float32)
        for at, part in self._parts:
            part = part[:, max(0, -at) :]
            room = samples[:, max(0, at) : max(0, at) + part.shape[1]]
            room[:] = part[:, : room.shape[1]]
        return Sound(samples, self.layout)

    def _start_graph(self, form: tuple[str, str, int]) -> None:
        self._form = form
        sample_format, layout, rate = form
        graph = self._graph = Graph()  # its filters do not keep it alive
        self._source = graph.add_abuffer(
            sample_rate=rate, format=sample_format, layout=layout, time_base=Fraction(1, rate)
        )
        # Gaps become silence; timestamps that were rounded to milliseconds do not become clicks.
        resample = graph.add("aresample", f"{self._sample_rate}:async=1")
        form_filter = graph.add("aformat", f"sample_fmts=fltp:channel_layouts={self.layout}")
        self._sink = graph.add("abuffersink")
        graph.link_nodes(self._source, resample, form_filter, self._sink)
        graph.configure()

    def _choose_layout(self, layout: str) -> str:
        self.original_layout = layout
        return self._fit(layout if layout in KEPT_LAYOUTS else "stereo")

    def _end_graph(self) -> None:
        if self._source is not None:
            self._source.push(None)
            self._collect()
            self._source = None

    def _collect(self) -> None:
        assert self._sink is not None
        for frame in drain(self._sink):
            assert frame.pts is not None
            assert frame.time_base is not None
            at = round(frame.pts * frame.time_base * self._sample_rate)
            if -frame.samples < at < self._num_samples:
                self._parts.append((at, read_samples(frame).astype(np.float32, copy=False)))


def _undecodable(source: Path, reason: str) -> VideoDecodeError:
    return VideoDecodeError(
        f"the own sound of {source.name} cannot be decoded ({reason}); "
        "use original_sound drop, or convert its sound to AAC"
    )

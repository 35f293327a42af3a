"""Which sounds a result holds, in which order, and the clip's own sound as one of them."""

from __future__ import annotations  # PyAV's packets are generic for the type checker only

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from av import CodecContext, Packet
from av.audio.codeccontext import AudioCodecContext
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.stream import Disposition

from foley.media.audio import as_24_bit, encode_packets
from foley.media.audio_frames import read_samples
from foley.media.containers import takes
from foley.media.filters import Samples, Sound
from foley.media.mix import choose_layout, finish_sound
from foley.media.original import (
    OriginalTrack,
    language_of,
    list_codecs,
    read_original,
    read_original_packets,
)
from foley.media.source import MediaLimits, open_sound
from foley.mix import LoudnessReport, MixOptions

# What players of each container take; mkv takes all that FFmpeg writes to it.
_COPIED_CODECS = {
    "mp4": ("aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"),
    "mov": ("aac", "mp3", "ac3", "eac3", "alac", "pcm_"),
    "mkv": ("",),
    "webm": ("opus", "vorbis"),
}
# Lossy encoders raise peaks: AAC by 2.3 dB was measured on white noise. What is lower than this is
# not tried.
_LOSSY_CODECS = ("aac", "libopus")
# At our bitrates this search for quantizers has the smaller error, as FFmpeg's manual says, and
# takes half of the time: 25 and 35 dB below two generated sounds, and the default one 16 and 27.
_ENCODER_OPTIONS = {"aac": {"aac_coder": "fast"}}
_HARMLESS_PEAK = 0.6
_INTEGER_CODECS = ("flac", "pcm_s24le")
_MAX_HEADROOM_RUNS = 4
_HEADROOM_STEP_DB = 0.1
_OPUS_RATE = 48_000  # Hz; Opus has no other rate
_NOTHING = Sound(np.zeros((1, 0), np.float32), "mono")
_NO_LANGUAGE = "zxx"  # ISO 639-2: no linguistic content
_SILENT_CLIP = "The clip has no sound of its own: the result holds the new sound alone."


@dataclass(frozen=True, kw_only=True)
class SoundTrack:
    """One sound of a result.

    Attributes:
        sound: its samples.
        title: as players show it; empty for none.
        language: three letters of ISO 639-2; empty for none.
        packets: of the sound, where it is encoded already; None where it is not.
    """

    sound: Sound
    title: str = ""
    language: str = ""
    packets: tuple[Packet[Any], ...] | None = None


@dataclass(frozen=True, kw_only=True)
class SoundOutput:
    """How sounds are written.

    Attributes:
        container: of the result.
        ffmpeg_format: FFmpeg's name of it.
        codec: FFmpeg's name of the encoder.
        sample_rate: of the new sound, Hz.
        bitrate: of two channels, in bits per second.
    """

    container: str
    ffmpeg_format: str
    codec: str
    sample_rate: int
    bitrate: int = 0


@dataclass(frozen=True, kw_only=True)
class SoundPlan:
    """The sounds of a result.

    Attributes:
        tracks: to encode, in order; the first one is the default.
        keeps_original: whether the clip's own sound follows as the last track.
        loudness: of the first track; None where no option asks for anything.
        notices: sentences for the caller.
    """

    tracks: tuple[SoundTrack, ...]
    keeps_original: bool = False
    loudness: LoudnessReport | None = None
    notices: tuple[str, ...] = ()


def plan_sounds(
    source: Path | None,
    samples: Samples,
    mix: MixOptions,
    output: SoundOutput,
    *,
    is_video: bool,
    stop_seconds: float | None,
    limits: MediaLimits | None,
) -> SoundPlan:
    """Mix and level the sounds of a result.

    Args:
        source: the clip; None without one.
        samples: of the new sound, float32 [1, S] or [2, S].
        mix: the options; not all are defaults.
        output: of the result, whose encoder may not take the channels of the clip.
        is_video: whether the result has a picture.
        stop_seconds: where a trimmed clip ends; None keeps all of its own sound.
        limits: on what is decoded.

    Raises:
        VideoDecodeError: the clip's own sound cannot be decoded.
    """

    def fit(layout: str | None) -> str:
        wanted = choose_layout(mix, layout, len(samples), is_video=is_video)
        return fit_layout(output.codec, wanted, output.sample_rate)

    original: OriginalTrack | None = None
    has_original = source is not None and has_sound(source, limits)
    if mix.is_mixed and has_original:
        assert source is not None
        original = read_original(
            source,
            stop_seconds=stop_seconds,
            sample_rate=output.sample_rate,
            limits=limits,
            fit=fit,
        )
        assert original is not None
    own = None if original is None else original.sound
    layout = fit(None) if own is None else own.layout
    finished = finish_sound(samples, mix, layout, own, output.sample_rate)
    headroom_db = 0.0
    for _ in range(_MAX_HEADROOM_RUNS if mix.has_level else 0):
        written = [finished.main, *([finished.stem] if finished.stem else [])]
        over_db = max(_measure_coded_peak_db(sound, output) for sound in written)
        if over_db <= 0:
            break
        headroom_db += over_db + _HEADROOM_STEP_DB
        finished = finish_sound(
            samples, mix, layout, own, output.sample_rate, headroom_db=headroom_db
        )
    keeps_original = has_original and (mix.original_sound == "keep" or mix.stems)
    new = SoundTrack(sound=finished.main, title="New sound", language=_NO_LANGUAGE)
    tracks: tuple[SoundTrack, ...] = (new if keeps_original else SoundTrack(sound=finished.main),)
    if finished.stem is not None:
        assert original is not None
        tracks = (
            SoundTrack(sound=finished.main, title="Mix", language=original.language),
            SoundTrack(sound=finished.stem, title=new.title, language=_NO_LANGUAGE),
        )
    notices: list[str] = []
    if mix.original_sound != "drop" and not has_original:
        notices.append(_SILENT_CLIP)
    if original is not None:
        notices += original.notices
        if mix.channels is None and original.layout not in ("mono", layout):
            notices.append(
                f"The clip's own sound has the channels {original.layout}, and the result {layout}."
            )
    return SoundPlan(
        tracks=tracks,
        keeps_original=keeps_original,
        loudness=finished.loudness,
        notices=(*notices, *finished.notices),
    )


def has_sound(source: Path, limits: MediaLimits | None) -> bool:
    """Whether a clip has a sound of its own.

    Args:
        source: the clip.
        limits: on the codecs that may probe the clip.
    """
    with open_sound(source, list_codecs(limits)) as opened:
        return opened is not None


def fit_layout(codec: str, layout: str, sample_rate: int) -> str:
    """The channels that an encoder takes: those given if it can, or else stereo.

    Args:
        codec: FFmpeg's name of the encoder.
        layout: FFmpeg's name of the channels.
        sample_rate: Hz.
    """
    for candidate in (layout, layout.removesuffix("(side)")):
        context = CodecContext.create(codec, "w")
        assert isinstance(context, AudioCodecContext)
        formats = context.codec.audio_formats
        assert formats
        context.format, context.layout = formats[0], candidate
        context.sample_rate = _OPUS_RATE if codec == "libopus" else sample_rate
        try:
            context.open()
        except (ValueError, av.FFmpegError):
            continue
        return candidate
    return "stereo"


def _measure_coded_peak_db(sound: Sound, output: SoundOutput) -> float:
    """The highest sample of a sound after its encoder and a decoder, in dB over full scale."""
    loudest = float(np.abs(sound.samples).max(initial=0.0))
    if output.codec not in _LOSSY_CODECS or loudest < _HARMLESS_PEAK:
        return -math.inf
    peak = 0.0
    with av.open(io.BytesIO(), "w", format="matroska") as writer:
        stream = add_sound_stream(writer, output.codec, output.sample_rate, sound.layout)
        stream.bit_rate = choose_bitrate(output, len(sound.samples))
        writer.start_encoding()
        decoder = CodecContext.create(stream.codec_context.codec.canonical_name, "r")
        assert isinstance(decoder, AudioCodecContext)
        decoder.extradata = stream.codec_context.extradata
        for packet in encode_packets(stream, sound.samples, output.sample_rate, sound.layout):
            for frame in decoder.decode(packet):
                peak = max(peak, float(np.abs(read_samples(frame)).max(initial=0.0)))
    return 20 * math.log10(peak) if peak else -math.inf


def choose_bitrate(output: SoundOutput, num_channels: int) -> int:
    """Return the bits per second of a sound.

    Args:
        output: of the result.
        num_channels: of the sound.
    """
    return output.bitrate * num_channels // 2


def add_sounds(
    source: Path,
    reader: InputContainer,
    writer: OutputContainer,
    plan: SoundPlan,
    output: SoundOutput,
    *,
    stop_seconds: float | None,
    limits: MediaLimits | None,
) -> list[Iterator[Packet[Any]]]:
    """Add the streams of the sounds, and return the packets of each, made as they are asked for.

    Args:
        source: the clip.
        reader: the same, open.
        writer: the result, before its header is written.
        plan: by `plan_sounds`.
        output: of the result.
        stop_seconds: where a trimmed clip ends; None keeps all of its own sound.
        limits: on what is decoded.

    Raises:
        VideoDecodeError: the clip's own sound must be encoded, and cannot be decoded.
    """
    tracks = list(plan.tracks)
    title = SoundTrack(sound=_NOTHING, title="Original", language=language_of(reader))
    if plan.keeps_original and not _can_copy(reader, output):
        original = read_original(
            source,
            stop_seconds=stop_seconds,
            sample_rate=output.sample_rate,
            limits=limits,
            fit=lambda layout: fit_layout(output.codec, layout, output.sample_rate),
        )
        assert original is not None
        tracks.append(replace(title, sound=original.sound))
    packets: list[Iterator[Packet[Any]]] = []
    for index, track in enumerate(tracks):
        layout = track.sound.layout
        stream = add_sound_stream(writer, output.codec, output.sample_rate, layout)
        stream.bit_rate = choose_bitrate(output, len(track.sound.samples))
        _tag(stream, track, output, is_default=index == 0)
        packets.append(make_packets(stream, track, output))
    if len(tracks) == len(plan.tracks) and plan.keeps_original:
        with_early = output.container in ("mp4", "mov")  # which have edit lists
        copy = _add_copy(reader.streams.audio[0], writer)
        _tag(copy, title, output, is_default=False)
        packets.append(
            read_original_packets(source, copy, stop_seconds, limits, with_early=with_early)
        )
    return packets


def make_packets(
    stream: AudioStream, track: SoundTrack, output: SoundOutput
) -> Iterator[Packet[Any]]:
    """Yield the packets of a sound: those that it has, or encoded as they are asked for.

    Args:
        stream: of `add_sound_stream`.
        track: the sound.
        output: of the result.
    """
    if track.packets is None:
        sound = track.sound
        convert = as_24_bit if output.codec in _INTEGER_CODECS else None
        yield from encode_packets(stream, sound.samples, output.sample_rate, sound.layout, convert)
        return
    for packet in track.packets:
        packet.stream = stream
        yield packet


def add_sound_stream(
    writer: OutputContainer, codec: str, sample_rate: int, layout: str
) -> AudioStream:
    """Add a stream for an encoder.

    Args:
        writer: the result, before its header is written.
        codec: FFmpeg's name of the encoder.
        sample_rate: Hz.
        layout: FFmpeg's name of the channels.
    """
    rate = _OPUS_RATE if codec == "libopus" else sample_rate
    sound = writer.add_stream(codec, rate=rate, options=_ENCODER_OPTIONS.get(codec, {}))
    assert isinstance(sound, AudioStream)
    sound.layout = layout
    if codec == "flac":
        sound.format = "s32"  # which holds 24 bits
    return sound


def _tag(stream: AudioStream, track: SoundTrack, output: SoundOutput, *, is_default: bool) -> None:
    """State the title and the language of a stream, if the track has them."""
    if not track.title:
        return
    stream.metadata["title"] = track.title
    if output.container in ("mp4", "mov"):  # what players of these show
        stream.metadata["handler_name"] = track.title
    stream.metadata["language"] = track.language
    stream.disposition = Disposition.default if is_default else Disposition(0)


def _can_copy(reader: InputContainer, output: SoundOutput) -> bool:
    """Whether the packets of the clip's own sound can be copied to the result."""
    stream = reader.streams.audio[0]
    if stream.codec_context is None:
        return False
    codec = stream.codec_context.codec.canonical_name
    return codec.startswith(_COPIED_CODECS[output.container]) and takes(
        output.ffmpeg_format, partial(_add_copy, stream)
    )


def _add_copy(stream: AudioStream, writer: OutputContainer) -> AudioStream:
    copy = writer.add_stream_from_template(stream, opaque=True)
    copy.time_base = stream.time_base
    return copy

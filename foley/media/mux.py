"""Waveform + the picture's own packets -> a video; waveform -> a sound file."""

from __future__ import annotations  # PyAV's packets are generic for the type checker only

import heapq
import io
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import av
from av import Packet
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.video.stream import VideoStream
from torch import Tensor

from foley.configs import SAMPLE_RATE
from foley.errors import OutputError
from foley.media.atomic import complete_or_absent, unclaimed
from foley.media.audio import as_24_bit, as_stereo, checked, encode_packets
from foley.media.clock import seconds_of
from foley.media.packets import timed, until
from foley.media.source import MediaLimits, open_video

Container = Literal["mp4", "mov", "mkv", "webm"]
SampleFormat = Literal["s24", "f32"]

CONTAINERS: tuple[Container, ...] = get_args(Container)
_FFMPEG_FORMAT = {"mp4": "mp4", "mov": "mov", "mkv": "matroska", "webm": "webm"}
_AUDIO_CODEC = {"mp4": "aac", "mov": "aac", "mkv": "aac", "webm": "libopus"}
_FALLBACK: Container = "mkv"  # takes nearly every codec
_LOSSLESS_CODEC = {
    ("wav", "s24"): "pcm_s24le",
    ("wav", "f32"): "pcm_f32le",
    ("flac", "s24"): "flac",
}
_OPUS_RATE = 48_000  # Hz, the rate that Opus counts in
# Tags that describe the source's file and not its content.
_FILE_TAGS = frozenset({"major_brand", "minor_version", "compatible_brands", "encoder", "duration"})


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written.

    Attributes:
        path: where; its suffix differs from the one asked for where another container was needed.
        container: mp4, mov, mkv, webm, wav or flac.
        codec: of the sound.
        notices: sentences for the caller about what differs from what was asked for.
    """

    path: Path
    container: str
    codec: str
    notices: tuple[str, ...] = ()


def container_for(
    source: Path, wanted: Container, *, limits: MediaLimits | None = None
) -> Container:
    """The container that `write_video` will give: the wanted one, or mkv where that fits instead.

    Cheap, since no frame is decoded: ask before making the sound.

    Raises:
        VideoError: the source cannot be read, as `decode_frames`.
        OutputError: neither takes the clip's picture.
    """
    with open_video(source, _packets_only(limits)) as (_, picture):
        return _container_for(picture, wanted)


def write_video(
    source: Path,
    waveform: Tensor,
    destination: Path,
    *,
    container: Container | None = None,
    sample_rate: int = SAMPLE_RATE,
    audio_bitrate: int = 192_000,
    stop_seconds: float | None = None,
    limits: MediaLimits | None = None,
) -> Written:
    """The clip with the waveform as its only sound; the picture's packets are copied untouched.

    The first sample sounds at time zero of the picture's clock, also where the picture starts
    later. The source's own sound, subtitles and data are left out. A picture codec that the
    container does not take gives an mkv beside `destination`, with a notice; it replaces no file.

    Args:
        source: the clip.
        waveform: float [1, S] (heard on both sides) or [2, S], in [-1, 1].
        destination: replaced if it exists; nothing is left there on failure.
        container: from the suffix of `destination` when None. webm gets Opus, the others AAC.
        sample_rate: of the waveform, Hz.
        audio_bitrate: bits a second.
        stop_seconds: leave out the picture from there on; give the sound's end for a trimmed clip.
        limits: for a clip without timestamps, whose frames are decoded to learn their order; the
            defaults when None.

    Raises:
        VideoError: the source cannot be read, as `decode_frames`.
        ParameterError: a waveform of another shape.
        ModelError: a waveform with values that are not finite: no caller asks for those.
        OutputError: unknown suffix, a picture that `container_for` refuses, or `destination` cannot
            be written.
    """
    samples = as_stereo(checked(waveform, sample_rate))
    wanted = container or _container_of(destination)
    with open_video(source, _packets_only(limits)) as (reader, picture):
        codec = picture.codec_context.codec.canonical_name
        chosen = _container_for(picture, wanted)
        # The caller allowed one name to be replaced, and no other: the source may have that one.
        instead = destination.with_suffix(f".{chosen}")
        keep = chosen == wanted or instead == destination
        with (
            nullcontext(destination) if keep else unclaimed(instead) as path,
            complete_or_absent(path) as temporary,
            av.open(
                str(temporary), "w", format=_FFMPEG_FORMAT[chosen], options=_muxer_options(chosen)
            ) as writer,
        ):
            _copy_tags(reader, writer)
            copy = _add_picture(writer, picture, chosen)
            sound = _add_sound(writer, _AUDIO_CODEC[chosen], sample_rate, "stereo")
            sound.bit_rate = audio_bitrate
            writer.start_encoding()
            packets = timed(reader, picture, limits or MediaLimits(), stop_seconds)
            pictures: Iterator[Packet[Any]] = until(packets, stop_seconds)
            sounds: Iterator[Packet[Any]] = encode_packets(sound, samples, sample_rate)
            hidden_seconds = 0.0
            # Both in order of time, so that the muxer need not hold one back for the other.
            for packet in heapq.merge(pictures, sounds, key=_decode_seconds):
                if packet.stream is picture:
                    hidden_seconds = max(hidden_seconds, -_shown_seconds(packet))
                    packet.stream = copy
                writer.mux(packet)
    notices = []
    if chosen != wanted:
        notices.append(f"{wanted} does not take {codec} pictures: the result is {path.name}.")
    if hidden_seconds and chosen in ("mkv", "webm"):
        notices.append(
            f"{chosen} has no edit list: {hidden_seconds:.2f} s of picture that the clip hides "
            "before its start are shown, and the sound begins after them."
        )
    return Written(path=path, container=chosen, codec=_sound_name(chosen), notices=tuple(notices))


def write_audio(
    waveform: Tensor,
    destination: Path,
    *,
    sample_format: SampleFormat = "s24",
    sample_rate: int = SAMPLE_RATE,
) -> Written:
    """The waveform alone, without loss beyond the sample format; wav or flac by the suffix.

    Args:
        waveform: float [1, S] or [2, S], in [-1, 1].
        destination: replaced if it exists; nothing is left there on failure.
        sample_format: 24-bit integers, or 32-bit floats (wav only).
        sample_rate: Hz.

    Raises:
        ParameterError: a waveform of another shape.
        ModelError: a waveform with values that are not finite: no caller asks for those.
        OutputError: unknown suffix, floats in flac, or `destination` cannot be written.
    """
    samples = checked(waveform, sample_rate)
    name = destination.suffix.lower().removeprefix(".")
    codec = _LOSSLESS_CODEC.get((name, sample_format))
    if codec is None:
        raise OutputError(
            f"{destination.name} cannot hold {sample_format} sound; "
            "write .wav with s24 or f32, or .flac with s24"
        )
    values = as_24_bit(samples) if sample_format == "s24" else samples
    with (
        complete_or_absent(destination) as temporary,
        av.open(str(temporary), "w", format=name) as writer,
    ):
        layout = "mono" if len(samples) == 1 else "stereo"
        sound = _add_sound(writer, codec, sample_rate, layout)
        if codec == "flac":
            sound.format = "s32"
        for packet in encode_packets(sound, values, sample_rate):
            writer.mux(packet)
    return Written(path=destination, container=name, codec=codec)


def _packets_only(limits: MediaLimits | None) -> MediaLimits:
    """The limits where nothing is decoded: packets cost what they weigh."""
    return MediaLimits(max_pixels=2**62, codecs=limits.codecs if limits else None)


def _container_of(destination: Path) -> Container:
    suffix = destination.suffix.lower().removeprefix(".")
    for name in CONTAINERS:
        if name == suffix:
            return name
    raise OutputError(
        f"{destination.name} names no container; end it in {', '.join(CONTAINERS)} or give one"
    )


def _container_for(picture: VideoStream, wanted: Container) -> Container:
    for name in (wanted, _FALLBACK):
        if _takes(name, picture):
            return name
    codec = picture.codec_context.codec.canonical_name
    fitting = [name for name in CONTAINERS if _takes(name, picture)]
    raise OutputError(
        f"{' and '.join(dict.fromkeys((wanted, _FALLBACK)))} cannot hold {codec} pictures; "
        f"ask for {' or '.join([*fitting, 'wav'])}, or convert the clip first"
    )


def _takes(name: Container, picture: VideoStream) -> bool:
    # The header is tried in memory: some refusals (VP9 in mov) come only when it is written.
    try:
        with av.open(io.BytesIO(), "w", format=_FFMPEG_FORMAT[name]) as writer:
            _add_picture(writer, picture, name)
            writer.start_encoding()
    except (ValueError, av.FFmpegError):
        return False
    return True


def _muxer_options(name: Container) -> dict[str, str]:
    # The index goes to the front, so that players start before the whole file has arrived.
    return {"movflags": "+faststart"} if name in ("mp4", "mov") else {}


def _copy_tags(reader: InputContainer, writer: OutputContainer) -> None:
    for key, value in reader.metadata.items():
        if key.lower() not in _FILE_TAGS:
            writer.metadata[key] = value


def _add_picture(writer: OutputContainer, picture: VideoStream, name: Container) -> VideoStream:
    copy = writer.add_stream_from_template(picture, opaque=True)
    copy.time_base = picture.time_base  # the same ticks: no timestamp is rounded
    # Apple's players open HEVC under this tag alone. A source tagged hev1 may keep parameter sets
    # among its pictures, which hvc1 forbids.
    context = picture.codec_context
    if context.codec.canonical_name == "hevc" and name in ("mp4", "mov"):
        copy.codec_context.codec_tag = "hev1" if context.codec_tag == "hev1" else "hvc1"
    return copy


def _add_sound(writer: OutputContainer, codec: str, sample_rate: int, layout: str) -> AudioStream:
    rate = _OPUS_RATE if codec == "libopus" else sample_rate
    sound = writer.add_stream(codec, rate=rate)
    assert isinstance(sound, AudioStream)
    sound.layout = layout
    return sound


def _sound_name(name: Container) -> str:
    return _AUDIO_CODEC[name].removeprefix("lib")


def _shown_seconds(packet: Packet[Any]) -> float:
    assert packet.pts is not None
    return seconds_of(packet.pts, packet.time_base)


def _decode_seconds(packet: Packet[Any]) -> float:
    assert packet.dts is not None
    return seconds_of(packet.dts, packet.time_base)

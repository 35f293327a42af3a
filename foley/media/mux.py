"""Writing of results: a waveform with the copied video packets, or a sound file."""

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
from foley.media.atomic import atomic_media_path, claim_path
from foley.media.audio import as_24_bit, as_stereo, encode_packets, validate_waveform
from foley.media.clock import seconds_of
from foley.media.packets import complete_timestamps, cut_packets
from foley.media.source import MediaLimits, open_video

Container = Literal["mp4", "mov", "mkv", "webm"]
SampleFormat = Literal["s24", "f32"]

CONTAINERS: tuple[Container, ...] = get_args(Container)
_FFMPEG_FORMAT = {"mp4": "mp4", "mov": "mov", "mkv": "matroska", "webm": "webm"}
_AUDIO_CODEC = {"mp4": "aac", "mov": "aac", "mkv": "aac", "webm": "libopus"}
_FALLBACK: Container = "mkv"  # accepts nearly every codec
_LOSSLESS_CODEC = {
    ("wav", "s24"): "pcm_s24le",
    ("wav", "f32"): "pcm_f32le",
    ("flac", "s24"): "flac",
}
_OPUS_RATE = 48_000  # Hz; Opus has no other rate
# Tags that describe the source file and not its content.
_FILE_TAGS = frozenset({"major_brand", "minor_version", "compatible_brands", "encoder", "duration"})


@dataclass(frozen=True, kw_only=True)
class MediaFile:
    """A result file.

    Attributes:
        path: its suffix differs from the requested one if another container was needed.
        container: mp4, mov, mkv, webm, wav or flac.
        codec: FFmpeg's name of the audio codec.
        notices: sentences for the caller about differences from the request.
    """

    path: Path
    container: str
    codec: str
    notices: tuple[str, ...] = ()


def choose_container(
    source: Path, wanted: Container, *, limits: MediaLimits | None = None
) -> Container:
    """The container that `write_video` will use: `wanted`, or mkv if it does not accept the clip.

    No frame is decoded, so the check is cheap enough to run before the generation.

    Args:
        source: the clip.
        wanted: the preferred container.
        limits: `codecs` is checked.

    Raises:
        VideoError: the source cannot be read, as `decode_frames`.
        OutputError: neither container accepts the clip's video codec.
    """
    with open_video(source, _packets_only(limits)) as (_, picture):
        return _choose_container(picture, wanted)


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
) -> MediaFile:
    """Write the clip with the waveform as its only sound. The video packets are copied unchanged.

    The first sample is at time zero of the video's clock, even if the first frame is later. The
    source's sound, subtitles and data streams are left out. If the container does not accept the
    video codec, the result is an mkv file beside `destination`, with a notice. That file replaces
    no other file.

    Args:
        source: the clip.
        waveform: float [1, S] or [2, S], in [-1, 1]. A single channel is duplicated.
        destination: replaced if it exists, and unchanged if writing fails.
        container: from the suffix of `destination` when None. webm gets Opus, the others AAC.
        sample_rate: of the waveform, in Hz.
        audio_bitrate: in bits per second.
        stop_seconds: leave out the frames from there on; for a trimmed clip, the end of the sound.
        limits: for a clip without timestamps, whose frames are decoded to find their order; the
            defaults when None.

    Raises:
        VideoError: the source cannot be read, as `decode_frames`.
        ParameterError: a waveform of another shape, or a sample rate below 1.
        ModelError: a waveform with values that are not finite.
        OutputError: an unknown suffix, a video codec that `choose_container` refuses, or
            `destination` cannot be written.
    """
    samples = as_stereo(validate_waveform(waveform, sample_rate))
    wanted = container or _container_from_suffix(destination)
    with open_video(source, _packets_only(limits)) as (reader, picture):
        codec = picture.codec_context.codec.canonical_name
        chosen = _choose_container(picture, wanted)
        # Only `destination` may be replaced. The mkv's name may be that of the source.
        instead = destination.with_suffix(f".{chosen}")
        keep = chosen == wanted or instead == destination
        with (
            nullcontext(destination) if keep else claim_path(instead) as path,
            atomic_media_path(path) as temporary,
            av.open(
                str(temporary), "w", format=_FFMPEG_FORMAT[chosen], options=_muxer_options(chosen)
            ) as writer,
        ):
            _copy_tags(reader, writer)
            copy = _add_picture(writer, picture, chosen)
            sound = _add_sound(writer, _AUDIO_CODEC[chosen], sample_rate, "stereo")
            sound.bit_rate = audio_bitrate
            writer.start_encoding()
            packets = complete_timestamps(reader, picture, limits or MediaLimits(), stop_seconds)
            pictures: Iterator[Packet[Any]] = cut_packets(packets, stop_seconds)
            sounds: Iterator[Packet[Any]] = encode_packets(sound, samples, sample_rate)
            hidden_seconds = 0.0
            # Interleaved in order of time, so that the muxer does not have to buffer packets.
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
    return MediaFile(
        path=path, container=chosen, codec=_audio_codec_name(chosen), notices=tuple(notices)
    )


def write_audio(
    waveform: Tensor,
    destination: Path,
    *,
    sample_format: SampleFormat = "s24",
    sample_rate: int = SAMPLE_RATE,
) -> MediaFile:
    """Write the waveform to a lossless sound file.

    Args:
        waveform: float [1, S] or [2, S], in [-1, 1].
        destination: a path that ends in .wav or .flac; replaced if it exists, and unchanged if
            writing fails.
        sample_format: 24-bit integers (s24), or 32-bit floats (f32, only in wav).
        sample_rate: in Hz.

    Raises:
        ParameterError: a waveform of another shape, or a sample rate below 1.
        ModelError: a waveform with values that are not finite.
        OutputError: an unknown suffix, floats in flac, or `destination` cannot be written.
    """
    samples = validate_waveform(waveform, sample_rate)
    name = destination.suffix.lower().removeprefix(".")
    codec = _LOSSLESS_CODEC.get((name, sample_format))
    if codec is None:
        raise OutputError(
            f"{destination.name} cannot hold {sample_format} sound; "
            "write .wav with s24 or f32, or .flac with s24"
        )
    values = as_24_bit(samples) if sample_format == "s24" else samples
    with (
        atomic_media_path(destination) as temporary,
        av.open(str(temporary), "w", format=name) as writer,
    ):
        layout = "mono" if len(samples) == 1 else "stereo"
        sound = _add_sound(writer, codec, sample_rate, layout)
        if codec == "flac":
            sound.format = "s32"
        for packet in encode_packets(sound, values, sample_rate):
            writer.mux(packet)
    return MediaFile(path=destination, container=name, codec=codec)


def _packets_only(limits: MediaLimits | None) -> MediaLimits:
    """The limits for copying packets: pixels are not limited, because no frame is decoded."""
    return MediaLimits(max_pixels=2**62, codecs=limits.codecs if limits else None)


def _container_from_suffix(destination: Path) -> Container:
    suffix = destination.suffix.lower().removeprefix(".")
    for name in CONTAINERS:
        if name == suffix:
            return name
    raise OutputError(
        f"{destination.name} names no container; end it in {', '.join(CONTAINERS)} or give one"
    )


def _choose_container(picture: VideoStream, wanted: Container) -> Container:
    for name in (wanted, _FALLBACK):
        if _accepts(name, picture):
            return name
    codec = picture.codec_context.codec.canonical_name
    fitting = [name for name in CONTAINERS if _accepts(name, picture)]
    raise OutputError(
        f"{' and '.join(dict.fromkeys((wanted, _FALLBACK)))} cannot hold {codec} pictures; "
        f"ask for {' or '.join([*fitting, 'wav'])}, or convert the clip first"
    )


def _accepts(name: Container, picture: VideoStream) -> bool:
    # A header is written to memory, because some refusals (VP9 in mov) come only at that point.
    try:
        with av.open(io.BytesIO(), "w", format=_FFMPEG_FORMAT[name]) as writer:
            _add_picture(writer, picture, name)
            writer.start_encoding()
    except (ValueError, av.FFmpegError):
        return False
    return True


def _muxer_options(name: Container) -> dict[str, str]:
    # The index goes to the front, so that a player can start before the whole file has arrived.
    return {"movflags": "+faststart"} if name in ("mp4", "mov") else {}


def _copy_tags(reader: InputContainer, writer: OutputContainer) -> None:
    for key, value in reader.metadata.items():
        if key.lower() not in _FILE_TAGS:
            writer.metadata[key] = value


def _add_picture(writer: OutputContainer, picture: VideoStream, name: Container) -> VideoStream:
    copy = writer.add_stream_from_template(picture, opaque=True)
    copy.time_base = picture.time_base  # the same ticks, so that no timestamp is rounded
    # Apple's players open HEVC only with the tag hvc1. A source tagged hev1 may contain parameter
    # sets inside the stream, which hvc1 forbids.
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


def _audio_codec_name(name: Container) -> str:
    return _AUDIO_CODEC[name].removeprefix("lib")


def _shown_seconds(packet: Packet[Any]) -> float:
    assert packet.pts is not None
    return seconds_of(packet.pts, packet.time_base)


def _decode_seconds(packet: Packet[Any]) -> float:
    assert packet.dts is not None
    return seconds_of(packet.dts, packet.time_base)

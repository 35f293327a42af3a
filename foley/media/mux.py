"""Writing of results: a waveform with the copied video packets, or a sound file."""

from __future__ import annotations  # PyAV's packets are generic for the type checker only

import heapq
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
from av import Packet
from av.container import InputContainer
from av.video.stream import VideoStream
from torch import Tensor

from foley.configs import SAMPLE_RATE
from foley.errors import OutputError, VideoDecodeError
from foley.marks.mark import Mark
from foley.media.atomic import claim_path
from foley.media.audio import as_stereo, validate_waveform
from foley.media.clock import seconds_of
from foley.media.early import EarlySound, EncodedSound
from foley.media.filters import Samples, Sound
from foley.media.marks import MarkedFile
from foley.media.matroska import write_pixel_shape
from foley.media.metadata import (
    LEFT_OUT_BEFORE,
    add_subtitles,
    copy_chapters,
    copy_stream_tags,
    copy_tags,
    list_left_out,
    read_subtitles,
)
from foley.media.packets import complete_timestamps, cut_packets
from foley.media.picture import (
    CONTAINERS,
    FFMPEG_FORMAT,
    Container,
    PicturePlan,
    add_picture,
    limit_packets,
    list_options,
    plan_picture,
)
from foley.media.source import MediaLimits, open_video, translate_read_errors
from foley.media.timecode import describe_wave
from foley.media.tracks import (
    SoundOutput,
    SoundPlan,
    SoundTrack,
    add_sound_stream,
    add_sounds,
    has_sound,
    make_packets,
    plan_sounds,
)
from foley.media.transcode import add_encoded_picture, encode_picture
from foley.mix import LoudnessReport, MixOptions

SampleFormat = Literal["s24", "f32"]

# AAC begins 21 ms before its first sample, which mp4 and mov hide by an edit list. Matroska has
# none: FFmpeg 5 moves the picture by 21 ms, which puts two pictures of 23.976 or 120 fps at one
# place. FLAC begins with its first sample.
_AUDIO_CODEC = {"mp4": "aac", "mov": "aac", "mkv": "flac", "webm": "libopus"}
_ENCODER_NAMES = {"libx264": "H.264", "libvpx-vp9": "VP9"}
_LOSSLESS_CODEC = {
    ("wav", "s24"): "pcm_s24le",
    ("wav", "f32"): "pcm_f32le",
    ("flac", "s24"): "flac",
}


@dataclass(frozen=True, kw_only=True)
class MediaFile:
    """A result file.

    Attributes:
        path: its suffix differs from the requested one if another container was needed.
        container: mp4, mov, mkv, webm, wav or flac.
        codec: FFmpeg's name of the audio codec.
        notices: sentences for the caller about differences from the request.
        loudness: as measured, where options of the mix were given.
        unsigned: why a file that was to be signed has a plain tag alone; empty otherwise.
    """

    path: Path
    container: str
    codec: str
    notices: tuple[str, ...] = ()
    loudness: LoudnessReport | None = None
    unsigned: str = ""


@dataclass(frozen=True, kw_only=True)
class OpenClip:
    """A clip that is open, and how its picture will be copied: for one result.

    Attributes:
        source: the clip.
        wanted: the preferred container.
        reader: the open source, of which no packet was read.
        picture: its video stream.
        plan: for the result.
    """

    source: Path
    wanted: Container
    reader: InputContainer
    picture: VideoStream
    plan: PicturePlan


@contextmanager
def open_clip(
    source: Path, wanted: Container, *, limits: MediaLimits | None = None
) -> Iterator[OpenClip]:
    """Yield a clip for `write_video`, which takes it once.

    Args:
        source: the clip.
        wanted: the preferred container.
        limits: as `write_video`.

    Raises:
        VideoError: the source cannot be read.
    """
    with open_video(source, limit_packets(limits)) as (reader, picture):
        plan = plan_picture(reader, picture, wanted)
        yield OpenClip(source=source, wanted=wanted, reader=reader, picture=picture, plan=plan)


def choose_container(
    source: Path, wanted: Container, *, limits: MediaLimits | None = None
) -> Container:
    """The container that `write_video` will use: `wanted`, or else mkv or mov.

    The packets are written to nowhere, which is cheap enough to run before the generation.

    Args:
        source: the clip.
        wanted: the preferred container.
        limits: `codecs` is checked, and packets after `max_seconds` are not.

    Raises:
        VideoError: the source cannot be read, as `decode_frames`, or the container refuses one of
            its packets.
    """
    with open_video(source, limit_packets(limits)) as (reader, picture):
        plan = plan_picture(reader, picture, wanted)
        if plan.encoder is None:
            _check_packets(reader, picture, plan, limits or MediaLimits())
        return plan.container


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
    mix: MixOptions | None = None,
    mark: Mark | None = None,
    encoded: EncodedSound | None = None,
    opened: OpenClip | None = None,
) -> MediaFile:
    """Write the clip with the waveform as its sound. The video packets are copied unchanged.

    The first sample is at time zero of the video's clock, even if the first frame is later. Tags,
    chapters and subtitles are kept where the container takes them, and a notice lists the others.
    The source's sound is left out, unless `mix` says otherwise. If the container does not accept
    the video codec, the result is an mkv or mov file beside `destination`, with a notice. That file
    replaces no other file. A picture that none of them accepts, an animated GIF, PNG or WebP,
    and a zip of pictures are encoded as H.264, or VP9 in webm.

    Args:
        source: the clip.
        waveform: float [1, S] or [2, S], in [-1, 1]. A single channel is duplicated.
        destination: replaced if it exists, and unchanged if writing fails.
        container: from the suffix of `destination` when None. mp4 and mov get AAC, webm gets Opus,
            and mkv gets FLAC of 24 bits.
        sample_rate: of the waveform, in Hz.
        audio_bitrate: of AAC and Opus, in bits per second.
        stop_seconds: leave out the frames from there on; for a trimmed clip, the end of the sound.
        limits: for a clip without timestamps, whose frames are decoded to find their order; the
            defaults when None.
        mix: what becomes of the source's sound, levels and tracks; None for the waveform alone.
        mark: what the file says of how its sound was made; None for nothing.
        encoded: the waveform, from `start_video_sound`; it is encoded here when None.
        opened: the clip, from `open_clip`; it is opened here when None.

    Raises:
        VideoError: the source cannot be read, as `decode_frames`.
        ParameterError: a waveform of another shape, or a sample rate below 1.
        ModelError: a waveform with values that are not finite.
        OutputError: an unknown suffix, or `destination` cannot be written.
    """
    samples = validate_waveform(waveform, sample_rate)
    wanted = container or _container_from_suffix(destination)
    with ExitStack() as stack:
        if opened is None:
            opened = stack.enter_context(open_clip(source, wanted, limits=limits))
        else:
            assert (opened.source, opened.wanted) == (source, wanted)
            stack.enter_context(translate_read_errors(source))
        reader, picture, plan = opened.reader, opened.picture, opened.plan
        codec = picture.codec_context.codec.canonical_name
        chosen = plan.container
        output = _make_output(chosen, sample_rate, audio_bitrate)
        heard = _plan_sounds(source, samples, mix, output, stop_seconds, limits, encoded)
        # Only `destination` may be replaced. The mkv's name may be that of the source.
        instead = destination.with_suffix(f".{chosen}")
        keep = chosen == wanted or instead == destination
        marked = MarkedFile(mark=mark, container=chosen, clip=source, is_composite=True)
        with (
            nullcontext(destination) if keep else claim_path(instead) as path,
            marked.write(path) as temporary,
            av.open(
                str(temporary),
                "w",
                format=FFMPEG_FORMAT[chosen],
                options=list_options(chosen, reader),
            ) as writer,
        ):
            copy_tags(reader, writer)
            marked.add_tag(writer)
            num_chapters = copy_chapters(reader, writer, stop_seconds)
            if plan.encoder:
                copy = add_encoded_picture(writer, picture, plan.encoder)
            else:
                copy = add_picture(writer, picture, plan.tag)
            copy_stream_tags(picture, copy)
            sounds = add_sounds(
                source, reader, writer, heard, output, stop_seconds=stop_seconds, limits=limits
            )
            subtitles = add_subtitles(reader, writer, FFMPEG_FORMAT[chosen])
            writer.start_encoding()
            checked = limits or MediaLimits()
            if plan.encoder:
                pictures = encode_picture(reader, picture, copy, checked, stop_seconds)
            else:
                packets = complete_timestamps(reader, picture, checked, stop_seconds)
                pictures = cut_packets(packets, stop_seconds)
            hidden_seconds, has_picture = 0.0, False
            # Interleaved in order of time, so that the muxer does not have to buffer packets.
            texts = read_subtitles(source, subtitles, limit_packets(limits), stop_seconds)
            for packet in heapq.merge(pictures, *sounds, texts, key=_decode_seconds):
                has_picture |= packet.stream in (picture, copy)  # encoded ones have the copy
                if packet.stream is picture:
                    hidden_seconds = max(hidden_seconds, -_shown_seconds(packet))
                    packet.stream = copy
                writer.mux(packet)
            if not has_picture:  # FFmpeg would write a file without it
                raise VideoDecodeError(
                    "no picture of the clip lies in the part that is kept; its timestamps are "
                    "damaged: convert the clip first"
                )
            writer.close()
            shape = picture.sample_aspect_ratio or Fraction(1)
            if chosen in ("mkv", "webm") and shape != 1:
                # Where that is not possible, a notice says so.
                write_pixel_shape(temporary, shape, in_pixels=chosen == "webm")
            left_out_before = reader.metadata.get(LEFT_OUT_BEFORE)
            left_out = list_left_out(reader, picture, subtitles, temporary, chosen, num_chapters)
    notices = []
    if plan.encoder:
        notices.append(f"The pictures are encoded as {_ENCODER_NAMES[plan.encoder]}.")
    if left_out_before:
        notices.append(f"The part was cut off the clip without: {left_out_before}.")
    if left_out:
        notices.append(f"{chosen} does not hold, and the result is without: {', '.join(left_out)}.")
    if chosen != wanted:
        notices.append(f"{wanted} does not take {codec} pictures: the result is {path.name}.")
    if hidden_seconds and chosen in ("mkv", "webm"):
        notices.append(
            f"{chosen} has no edit list: {hidden_seconds:.2f} s of picture that the clip hides "
            "before its start are shown, and the sound begins after them."
        )
    return MediaFile(
        path=path,
        container=chosen,
        codec=_audio_codec_name(chosen),
        notices=(*heard.notices, *notices, *marked.notices),
        loudness=heard.loudness,
        unsigned=marked.unsigned,
    )


def start_video_sound(
    source: Path,
    container: Container,
    *,
    sample_rate: int = SAMPLE_RATE,
    audio_bitrate: int = 192_000,
    limits: MediaLimits | None = None,
) -> EarlySound:
    """Return the encoder of a sound that `write_video` will write, without options of the mix.

    Args:
        source: the clip.
        container: the preferred one.
        sample_rate: of the waveform, in Hz.
        audio_bitrate: of AAC and Opus, in bits per second.
        limits: as `write_video`.

    Raises:
        VideoError: the source cannot be read.
    """
    with open_clip(source, container, limits=limits) as opened:
        chosen = opened.plan.container
    return EarlySound(_make_output(chosen, sample_rate, audio_bitrate), "stereo")


def start_flac_sound(*, sample_rate: int = SAMPLE_RATE) -> EarlySound:
    """Return the encoder of a sound of one channel that `write_audio` will write to a flac file.

    Args:
        sample_rate: of the waveform, in Hz.
    """
    return EarlySound(_make_audio_output("flac", "flac", sample_rate), "mono")


def write_audio(
    waveform: Tensor,
    destination: Path,
    *,
    sample_format: SampleFormat = "s24",
    sample_rate: int = SAMPLE_RATE,
    mix: MixOptions | None = None,
    source: Path | None = None,
    stop_seconds: float | None = None,
    limits: MediaLimits | None = None,
    mark: Mark | None = None,
    encoded: EncodedSound | None = None,
) -> MediaFile:
    """Write the waveform to a lossless sound file.

    Args:
        waveform: float [1, S] or [2, S], in [-1, 1].
        destination: a path that ends in .wav or .flac; replaced if it exists, and unchanged if
            writing fails.
        sample_format: 24-bit integers (s24), or 32-bit floats (f32, only in wav).
        sample_rate: in Hz.
        mix: what becomes of the clip's own sound, and levels; None for the waveform alone.
        source: the clip, for its own sound and its timecode; None without one.
        stop_seconds: for a trimmed clip, where its own sound ends.
        limits: on what is decoded of the clip; the defaults when None.
        mark: as `write_video`.
        encoded: the waveform, from `start_flac_sound`; it is encoded here when None.

    Raises:
        ParameterError: a waveform of another shape, or a sample rate below 1.
        ModelError: a waveform with values that are not finite.
        OutputError: an unknown suffix, floats in flac, or `destination` cannot be written.
        VideoError: the clip, or its own sound, cannot be read.
    """
    samples = validate_waveform(waveform, sample_rate)
    name = destination.suffix.lower().removeprefix(".")
    codec = _LOSSLESS_CODEC.get((name, sample_format))
    if codec is None:
        raise OutputError(
            f"{destination.name} cannot hold {sample_format} sound; "
            "write .wav with s24 or f32, or .flac with s24"
        )
    output = _make_audio_output(name, codec, sample_rate)
    layout = "mono" if len(samples) == 1 else "stereo"
    heard = SoundPlan(tracks=(_make_track(Sound(samples, layout), output, encoded),))
    tags: dict[str, str] = {}
    if mix is not None and not mix.is_default:
        heard = plan_sounds(
            source,
            samples,
            mix,
            output,
            is_video=False,
            stop_seconds=stop_seconds,
            limits=limits,
        )
        if mix.broadcast_wave and name == "wav":
            tags, notices = describe_wave(source, sample_rate, limit_packets(limits))
            heard = replace(heard, notices=(*heard.notices, *notices))
    track = heard.tracks[0]
    is_mixed = bool(mix and mix.is_mixed and source and has_sound(source, limits))
    is_edited = mark is not None and "edit" in mark.settings  # a part may be a recording
    marked = MarkedFile(mark=mark, container=name, clip=source, is_composite=is_mixed or is_edited)
    with (
        marked.write(destination) as temporary,
        av.open(
            str(temporary), "w", format=name, options={"write_bext": "1"} if tags else {}
        ) as writer,
    ):
        writer.metadata.update(tags)
        marked.add_tag(writer)
        stream = add_sound_stream(writer, codec, sample_rate, track.sound.layout)
        for packet in make_packets(stream, track, output):
            writer.mux(packet)
    return MediaFile(
        path=destination,
        container=name,
        codec=codec,
        notices=(*heard.notices, *marked.notices),
        loudness=heard.loudness,
        unsigned=marked.unsigned,
    )


def _plan_sounds(
    source: Path,
    samples: Samples,
    mix: MixOptions | None,
    output: SoundOutput,
    stop_seconds: float | None,
    limits: MediaLimits | None,
    encoded: EncodedSound | None,
) -> SoundPlan:
    """The sounds of a video: the new one alone, unless options ask for more."""
    if mix is None or mix.is_default:
        sound = Sound(as_stereo(samples), "stereo")
        return SoundPlan(tracks=(_make_track(sound, output, encoded),))
    return plan_sounds(
        source, samples, mix, output, is_video=True, stop_seconds=stop_seconds, limits=limits
    )


def _make_track(sound: Sound, output: SoundOutput, encoded: EncodedSound | None) -> SoundTrack:
    if encoded is None:
        return SoundTrack(sound=sound)
    fits = (output, sound.layout, sound.samples.shape[1])
    assert (encoded.output, encoded.layout, encoded.num_samples) == fits
    return SoundTrack(sound=sound, packets=encoded.packets)


def _make_output(container: Container, sample_rate: int, bitrate: int) -> SoundOutput:
    return SoundOutput(
        container=container,
        ffmpeg_format=FFMPEG_FORMAT[container],
        codec=_AUDIO_CODEC[container],
        sample_rate=sample_rate,
        bitrate=bitrate,
    )


def _make_audio_output(name: str, codec: str, sample_rate: int) -> SoundOutput:
    return SoundOutput(container=name, ffmpeg_format=name, codec=codec, sample_rate=sample_rate)


def _container_from_suffix(destination: Path) -> Container:
    suffix = destination.suffix.lower().removeprefix(".")
    for name in CONTAINERS:
        if name == suffix:
            return name
    raise OutputError(
        f"{destination.name} names no container; end it in {', '.join(CONTAINERS)} or give one"
    )


def _check_packets(
    reader: InputContainer, picture: VideoStream, plan: PicturePlan, limits: MediaLimits
) -> None:
    """Write the picture's packets to nowhere, since some refusals come only with a packet."""
    seconds = 0.0
    try:
        with av.open(_NullFile(), "w", format=FFMPEG_FORMAT[plan.container]) as writer:
            copy = add_picture(writer, picture, plan.tag)
            writer.start_encoding()
            packets = complete_timestamps(reader, picture, limits, limits.max_seconds)
            for packet in cut_packets(packets, limits.max_seconds):
                seconds = _shown_seconds(packet)
                packet.stream = copy
                writer.mux(packet)
    except (ValueError, av.FFmpegError) as error:
        raise VideoDecodeError(
            f"{plan.container} does not take the picture at {seconds:.2f} s ({error}); "
            "ask for mkv or wav, or convert the clip first"
        ) from error


class _NullFile:
    """A file whose content is dropped."""

    def __init__(self) -> None:
        self._position = self._size = 0

    def write(self, data: bytes) -> int:
        self._position += len(data)
        self._size = max(self._size, self._position)
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position


def _audio_codec_name(name: Container) -> str:
    return _AUDIO_CODEC[name].removeprefix("lib")


def _shown_seconds(packet: Packet[Any]) -> float:
    assert packet.pts is not None
    return seconds_of(packet.pts, packet.time_base)


def _decode_seconds(packet: Packet[Any]) -> float:
    assert packet.dts is not None
    return seconds_of(packet.dts, packet.time_base)

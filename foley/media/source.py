"""Opening of untrusted clips, with checks of their size, structure, video stream and pixels."""

import errno
import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.codec.codec import UnknownCodecError
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from foley.configs import DEFAULT_CLIP_SECONDS
from foley.errors import (
    NoVideoStreamError,
    OutputError,
    VideoDecodeError,
    VideoEmptyError,
    VideoTooCostlyError,
    VideoTooLargeError,
)
from foley.media.images import FORMAT, PictureStream, is_made_of_pictures
from foley.media.integrity import measure_index, missing_bytes
from foley.media.stills import detect_still, still_error

# Playlists and other formats that reference further files or addresses are not listed, so that an
# upload cannot make the server read them. Audio formats are listed, so that a sound file gets an
# error message of its own.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,ivf,flv,ogg,asf,"
    "mxf,nut,dv,gif,apng,yuv4mpegpipe,wav,mp3,flac,aac"
)
# A clip opens in milliseconds, but FFmpeg takes 6 s to walk through 60 MB of empty MP4 boxes.
READ_TIMEOUT_SECONDS = 10.0
# Errors that no reading has: they come from what is written inside the block.
_NO_ROOM = frozenset({errno.EDQUOT, errno.ENOSPC, errno.EROFS})
_UNIT_SECONDS = 15.0  # of a clip, for which limits on its cost are stated


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """Limits on the clips that are accepted.

    Attributes:
        max_seconds: a clip with a frame later than this is too long.
        max_pixels: of one frame. The default allows DCI 4K and 4096x2304 in either orientation.
            For 8K a decoder would need about 50 MB for every frame that it keeps.
        max_total_pixels: of all frames that are decoded, where `max_seconds` is 15 or less; else in
            proportion. The default allows 4K at 120 fps.
        max_cpu_seconds: of this process, for each 15 s of a clip; None for no limit.
        max_frame_rate: of frames that are decoded, in frames per second of `max_seconds`.
        max_index_bytes: of the index of an mp4 file. That of an hour of video has about 2 MB.
        max_bytes: of the file; None for no limit.
        codecs: video codecs that may be decoded, by FFmpeg's names; None for all. FFmpeg does not
            probe a clip with the decoders of other codecs.
    """

    max_seconds: float = DEFAULT_CLIP_SECONDS
    max_pixels: int = 4096 * 2304
    max_total_pixels: int = 4096 * 2304 * 120 * 15
    max_frame_rate: int = 480
    max_cpu_seconds: float | None = None
    max_index_bytes: int = 32 << 20
    max_bytes: int | None = None
    codecs: frozenset[str] | None = None


@contextmanager
def open_video(source: Path, limits: MediaLimits) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Yield the open container and its first video stream.

    FFmpeg errors inside the block are raised as `VideoDecodeError`.

    Args:
        source: the file.
        limits: what is accepted. `max_seconds` is not checked here.

    Raises:
        VideoEmptyError: the file has no bytes.
        VideoTooLargeError: more bytes or pixels than `limits` allow.
        VideoTooCostlyError: the file states more frames, more pixels in all frames, or a larger
            index than `limits` allow.
        VideoDecodeError: no such file, truncated, not a video, or of a codec that is unknown or
            not accepted.
        NoVideoStreamError: there is no video stream. A cover picture does not count as one.
    """
    _check_bytes(source, limits)
    with translate_read_errors(source), _open_container(source, limits) as container:
        stream = _picture_stream(container, source)
        _check_codec(stream, limits)
        check_pixels(stream.codec_context.width, stream.codec_context.height, limits)
        check_cost(
            _count_stated_frames(stream, limits),
            stream.codec_context.width * stream.codec_context.height,
            limits,
        )
        yield container, stream


@contextmanager
def open_sound(
    source: Path, codecs: frozenset[str] | None = None
) -> Iterator[tuple[InputContainer, AudioStream] | None]:
    """Yield the open container and its first audio stream; None if it has none.

    FFmpeg errors inside the block are raised as `VideoDecodeError`.

    Args:
        source: a file of the same formats as `open_video` accepts.
        codecs: whose decoders may probe the file, by FFmpeg's names; None for all.

    Raises:
        VideoEmptyError: the file has no bytes.
        VideoDecodeError: no such file, truncated, or unreadable.
    """
    _check_bytes(source, MediaLimits())
    limits = MediaLimits(codecs=codecs)
    with translate_read_errors(source), _open_container(source, limits) as container:
        streams = container.streams.audio
        yield (container, streams[0]) if streams else None


def read_tags(source: Path) -> tuple[str, dict[str, str]]:
    """Return FFmpeg's name of a file's format, and its tags.

    Args:
        source: a file of the same formats as `open_video` accepts.

    Raises:
        VideoEmptyError: the file has no bytes.
        VideoDecodeError: no such file, truncated, or unreadable.
    """
    _check_bytes(source, MediaLimits())
    with translate_read_errors(source), _open_container(source, MediaLimits()) as container:
        return container.format.name, dict(container.metadata)


def _open_container(source: Path, limits: MediaLimits) -> InputContainer:
    """Open the file as one of the known formats, without access to other files."""
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    if limits.codecs is not None:
        decoders = codecs_by_decoder().items()
        names = [decoder for decoder, codec in decoders if codec in limits.codecs]
        options["codec_whitelist"] = ",".join(names)
    if is_made_of_pictures(source):
        pictures = PictureStream(
            source, limits.max_pixels, lambda width, height: check_pixels(width, height, limits)
        )
        return av.open(pictures, "r", format=FORMAT, options=options)
    return av.open(
        str(source.resolve()),  # absolute, so that no name is taken for a protocol
        options=options,
        metadata_errors="replace",
        timeout=READ_TIMEOUT_SECONDS,  # for opening, and for reading each packet
    )


@contextmanager
def translate_read_errors(source: Path) -> Iterator[None]:
    """Raise FFmpeg errors inside the block, and times beyond its clock, as `VideoDecodeError`.

    Args:
        source: the file that is read; the message names it.

    Raises:
        VideoDecodeError: for every other FFmpeg error, and for a time that has no 64 bits.
        OutputError: there is no room for what the block writes.
    """
    try:
        yield
    except av.FFmpegError as error:
        if error.errno in _NO_ROOM:  # for what is written of it meanwhile
            raise OutputError(
                f"{source.name} cannot be stored as a clip ({error.strerror}); make room, or set "
                "TMPDIR to another folder"
            ) from error
        raise VideoDecodeError(
            f"{source.name} cannot be read as a video ({error.strerror}); "
            "send a complete file, such as H.264 in MP4"
        ) from error
    except OverflowError as error:
        raise VideoDecodeError(
            f"{source.name} states times that no clock has; convert the clip first"
        ) from error


def check_pixels(width: int, height: int, limits: MediaLimits) -> None:
    """Check a frame's size.

    Args:
        width: in pixels.
        height: in pixels.
        limits: `max_pixels` is checked.

    Raises:
        VideoTooLargeError: the frame has more pixels than `limits` allow.
    """
    if width * height > limits.max_pixels:
        raise VideoTooLargeError(
            f"frames have {width} x {height} = {width * height} pixels, "
            f"the limit is {limits.max_pixels}; scale the clip down"
        )


def check_cost(num_frames: int, num_pixels: int, limits: MediaLimits) -> None:
    """Check what decoding takes: a file of 30 kB can hold thousands of large frames.

    Args:
        num_frames: that are decoded.
        num_pixels: of each.
        limits: `max_frame_rate`, `max_total_pixels` and `max_seconds` are checked.

    Raises:
        VideoTooCostlyError: they allow less.
    """
    max_frames = int(limits.max_frame_rate * (limits.max_seconds + 1))
    if num_frames > max_frames:
        raise VideoTooCostlyError(
            f"the first {limits.max_seconds:g} s have {num_frames} frames or more, the limit is "
            f"{max_frames} ({limits.max_frame_rate} a second); lower the frame rate"
        )
    max_pixels = int(limits.max_total_pixels * max(1.0, limits.max_seconds / _UNIT_SECONDS))
    if num_frames * num_pixels > max_pixels:
        raise VideoTooCostlyError(
            f"{num_frames} frames of {num_pixels} pixels are {num_frames * num_pixels} pixels, the "
            f"limit is {max_pixels}; lower the frame rate or scale the clip down"
        )


def check_cpu(seconds: float, limits: MediaLimits) -> None:
    """Check the CPU time of this process.

    Args:
        seconds: of the clip, that are decoded.
        limits: `max_cpu_seconds` is checked.

    Raises:
        VideoTooCostlyError: it allows less.
    """
    if limits.max_cpu_seconds is None:
        return
    if time.process_time() > limits.max_cpu_seconds * max(1.0, seconds / _UNIT_SECONDS):
        raise VideoTooCostlyError(
            "reading the clip takes more CPU time than allowed; send a clip of fewer pixels or a "
            "lower frame rate"
        )


def check_cpu_since(then_seconds: float, limits: MediaLimits) -> None:
    """Check the CPU time of this process since the last frame was decoded.

    Args:
        then_seconds: the process' CPU time at that moment.
        limits: `max_cpu_seconds`, for 15 s of a clip, is the limit.

    Raises:
        VideoTooCostlyError: it was more.
    """
    if (
        limits.max_cpu_seconds is not None
        and time.process_time() - then_seconds > limits.max_cpu_seconds
    ):
        raise VideoTooCostlyError(
            "the next picture takes more CPU time than allowed for 15 s; convert the clip first"
        )


def _count_stated_frames(stream: VideoStream, limits: MediaLimits) -> int:
    """Return how many frames the file states for the seconds that are decoded; 0 if unknown."""
    if not stream.frames or not stream.average_rate:
        return 0
    return min(stream.frames, int(stream.average_rate * Fraction(limits.max_seconds)))


@functools.cache
def codecs_by_decoder() -> dict[str, str]:
    """The codec's name for each decoder's name. av1, for one, has a native decoder and libdav1d."""
    found = {}
    for name in av.codecs_available:
        with suppress(UnknownCodecError):  # an encoder without a decoder
            codec = av.Codec(name, "r")
            found[codec.name] = codec.canonical_name
    return found


def _check_codec(stream: VideoStream, limits: MediaLimits) -> None:
    codec = stream.codec_context.codec.canonical_name
    if limits.codecs is not None and codec not in limits.codecs:
        raise VideoDecodeError(
            f"the picture is coded as {codec}, which is not accepted here; "
            f"send one of {', '.join(sorted(limits.codecs))}"
        )


def _check_bytes(source: Path, limits: MediaLimits) -> None:
    if source.is_dir():
        raise VideoDecodeError(f"{source} is a folder; name a clip in it")
    if not source.is_file():
        raise VideoDecodeError(f"there is no file {source}; check the path")
    num_bytes = source.stat().st_size
    if num_bytes == 0:
        raise VideoEmptyError(f"{source.name} has 0 bytes; send the clip's content")
    if limits.max_bytes is not None and num_bytes > limits.max_bytes:
        raise VideoTooLargeError(
            f"{source.name} has {num_bytes} bytes, the limit is {limits.max_bytes}; "
            "send a shorter or more compressed clip"
        )
    if kind := detect_still(source):
        raise still_error(source, kind)
    if (index_bytes := measure_index(source)) > limits.max_index_bytes:
        raise VideoTooCostlyError(
            f"{source.name} has an index of {index_bytes} bytes, the limit is "
            f"{limits.max_index_bytes}; write the clip anew, such as by ffmpeg -i {source.name} "
            "-c copy clip.mp4"
        )
    if missing := missing_bytes(source):
        raise VideoDecodeError(
            f"{source.name} is cut off: it has {num_bytes} bytes and {missing} more should follow; "
            "send the whole file"
        )


def _picture_stream(container: InputContainer, source: Path) -> VideoStream:
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        names = {"a cover picture" if s.type == "video" else s.type for s in container.streams}
        kinds = ", ".join(sorted(names)) or "none"
        raise NoVideoStreamError(
            f"{source.name} has no picture stream (streams: {kinds}); send a video"
        )
    stream = streams[0]
    if container.format.name == "gif" and stream.frames == 1:
        raise still_error(source, "GIF with one frame")
    if stream.codec_context is None:
        raise VideoDecodeError(
            f"{source.name} is coded in a way that no decoder here knows; send H.264 in MP4"
        )
    return stream

"""Opens a clip from outside: checks size, structure, picture stream and pixels, in that order."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import av
from av.codec.codec import UnknownCodecError
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from foley.configs import MAX_CLIP_SECONDS
from foley.errors import (
    NoVideoStreamError,
    VideoDecodeError,
    VideoEmptyError,
    VideoTooLargeError,
)
from foley.media.integrity import missing_bytes

# Playlists and other formats that open further files or addresses are left out on purpose: an
# upload must not name what the server reads. Audio formats are in, to tell a sound file apart.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,ivf,flv,ogg,asf,"
    "mxf,nut,gif,yuv4mpegpipe,wav,mp3,flac,aac"
)
# A clip opens in milliseconds; FFmpeg walks 60 MB of empty MP4 boxes for 6 s.
READ_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """What is accepted from outside.

    Attributes:
        max_seconds: a frame later than this makes a clip too long.
        max_pixels: of one frame. The default takes DCI 4K and 4096x2304 in either orientation;
            8K would cost a decoder about 50 MB for every frame that it keeps.
        max_bytes: of the file, None for any.
        codecs: of the picture, by FFmpeg's names, None for any. Decoders of others are not even
            asked what they make of a clip.
    """

    max_seconds: float = MAX_CLIP_SECONDS
    max_pixels: int = 4096 * 2304
    max_bytes: int | None = None
    codecs: frozenset[str] | None = None


@contextmanager
def open_video(source: Path, limits: MediaLimits) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The opened container and its first picture stream; FFmpeg's errors inside become ours.

    Raises:
        VideoEmptyError: no bytes.
        VideoTooLargeError: more bytes or pixels than `limits` allow.
        VideoDecodeError: no such file, cut off, not a video, or of an unknown codec.
        NoVideoStreamError: sound alone; a cover picture does not count.
    """
    _check_bytes(source, limits)
    with readable(source), opened(source, limits.codecs) as container:
        stream = _picture_stream(container, source)
        _check_codec(stream, limits)
        check_pixels(stream.codec_context.width, stream.codec_context.height, limits)
        yield container, stream


def opened(source: Path, codecs: frozenset[str] | None = None) -> InputContainer:
    """The container, of a known format and without a way to other files.

    Args:
        source: the file.
        codecs: FFmpeg's names of those that may be decoded, None for any.

    Raises:
        av.FFmpegError: see `readable`.
    """
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    if codecs is not None:
        names = [decoder for decoder, codec in decoders().items() if codec in codecs]
        options["codec_whitelist"] = ",".join(names)
    return av.open(
        str(source.resolve()),  # absolute, so that no name reads as a protocol
        options=options,
        metadata_errors="replace",
        timeout=READ_TIMEOUT_SECONDS,  # of opening, and of reading each packet
    )


@contextmanager
def readable(source: Path) -> Iterator[None]:
    """Turns FFmpeg's errors while reading `source` into ours.

    Raises:
        VideoDecodeError: for any of them.
    """
    try:
        yield
    except av.FFmpegError as error:
        raise VideoDecodeError(
            f"{source.name} cannot be read as a video ({error.strerror}); "
            "send a complete file, such as H.264 in MP4"
        ) from error


def check_pixels(width: int, height: int, limits: MediaLimits) -> None:
    """Refuse frames of more pixels than `limits` allow.

    Raises:
        VideoTooLargeError: they have more.
    """
    if width * height > limits.max_pixels:
        raise VideoTooLargeError(
            f"frames have {width} x {height} = {width * height} pixels, "
            f"the limit is {limits.max_pixels}; scale the clip down"
        )


@functools.cache
def decoders() -> dict[str, str]:
    """The codec of each decoder, by their names: av1 has several, the native one and libdav1d."""
    found = {}
    for name in av.codecs_available:
        with suppress(UnknownCodecError):  # an encoder's name
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
    if missing := missing_bytes(source):
        raise VideoDecodeError(
            f"{source.name} is cut off: it has {num_bytes} bytes and {missing} more should follow; "
            "send the whole file"
        )


def _picture_stream(container: InputContainer, source: Path) -> VideoStream:
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "none"
        raise NoVideoStreamError(
            f"{source.name} has no picture stream (streams: {kinds}); send a video"
        )
    stream = streams[0]
    if stream.codec_context is None:
        raise VideoDecodeError(
            f"{source.name} is coded in a way that no decoder here knows; send H.264 in MP4"
        )
    return stream

"""How the picture of a clip is written: copied into a container that takes it, or encoded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from av.container import InputContainer, OutputContainer
from av.video.stream import VideoStream

from foley.media.containers import takes
from foley.media.images import is_made_of_pictures
from foley.media.metadata import has_quicktime_keys
from foley.media.source import MediaLimits

Container = Literal["mp4", "mov", "mkv", "webm"]

CONTAINERS: tuple[Container, ...] = get_args(Container)
FFMPEG_FORMAT = {"mp4": "mp4", "mov": "mov", "mkv": "matroska", "webm": "webm"}
_FALLBACKS: tuple[Container, ...] = ("mkv", "mov")  # mkv accepts nearly every codec
# What mp4 does not take of a mov, such as ProRes, stays a mov: editors do not open it in an mkv.
_FALLBACKS_OF_MOV: tuple[Container, ...] = ("mov", "mkv")
_VIDEO_ENCODER = {"mp4": "libx264", "mov": "libx264", "mkv": "libx264", "webm": "libvpx-vp9"}
# Players show these as pictures or not at all, although mov takes them.
_ANIMATIONS = frozenset({"gif", "apng"})
# Without a tag, FFmpeg takes each ProRes for the best one.
_PRORES_TAGS = {
    "Proxy": "apco",
    "LT": "apcs",
    "Standard": "apcn",
    "HQ": "apch",
    "4444": "ap4h",
    "XQ": "ap4x",
}


@dataclass(frozen=True, kw_only=True)
class PicturePlan:
    """How the picture is written.

    Attributes:
        container: of the result.
        tag: codec tag of the copied picture; None for FFmpeg's choice.
        encoder: FFmpeg's name of the encoder, if the picture cannot be copied.
    """

    container: Container
    tag: str | None = None
    encoder: str | None = None


def is_animation(reader: InputContainer, picture: VideoStream) -> bool:
    """Whether a clip is an animated picture, or made of pictures, which results hold as video.

    Args:
        reader: the open source.
        picture: its video stream.
    """
    codec = picture.codec_context.codec.canonical_name
    return codec in _ANIMATIONS or is_made_of_pictures(Path(reader.name))


def _is_loose(reader: InputContainer, picture: VideoStream) -> bool:
    """Whether the picture is uncompressed, in a form that only its own container describes."""
    is_raw = picture.codec_context.codec.canonical_name == "rawvideo"
    return is_raw and not reader.format.name.startswith("mov")


def plan_picture(
    reader: InputContainer,
    picture: VideoStream,
    wanted: Container,
    fallbacks: tuple[Container, ...] | None = None,
) -> PicturePlan:
    """Return how the picture is written: copied, where a container takes it.

    Args:
        reader: the open source.
        picture: its video stream.
        wanted: the preferred container.
        fallbacks: the others, in order; None for mkv and mov, or mov and mkv where mp4 is wanted
            of a mov.
    """
    if fallbacks is None:
        is_mov = wanted == "mp4" and reader.format.name.startswith("mov")
        fallbacks = _FALLBACKS_OF_MOV if is_mov else _FALLBACKS
    if not is_animation(reader, picture) and not _is_loose(reader, picture):
        for name in (wanted, *fallbacks):
            for tag in _list_tags(reader, picture, name):
                if _accepts(name, picture, tag):
                    return PicturePlan(container=name, tag=tag)
    return PicturePlan(container=wanted, encoder=_VIDEO_ENCODER[wanted])


def add_picture(writer: OutputContainer, picture: VideoStream, tag: str | None) -> VideoStream:
    """Add a stream for copies of the picture's packets, and return it.

    Args:
        writer: the result, before its header is written.
        picture: the source's stream.
        tag: as in `PicturePlan`.
    """
    copy = writer.add_stream_from_template(picture, opaque=True)
    copy.time_base = picture.time_base  # the same ticks, so that no timestamp is rounded
    if picture.sample_aspect_ratio:  # the container's, which the template does not copy
        copy.codec_context.sample_aspect_ratio = picture.sample_aspect_ratio
    if tag is not None:
        copy.codec_context.codec_tag = tag
    return copy


def list_options(name: Container, reader: InputContainer) -> dict[str, str]:
    """Return FFmpeg's options for writing a container.

    Args:
        name: of the container.
        reader: the open source.
    """
    # Dolby Vision and spherical video are outside the standard.
    options = {"strict": "unofficial"}
    if name in ("mp4", "mov"):
        # The index goes to the front, so that a player can start before the whole file has arrived.
        keys = "+use_metadata_tags" if has_quicktime_keys(reader) else ""
        options["movflags"] = f"+faststart{keys}"
    return options


def limit_packets(limits: MediaLimits | None) -> MediaLimits:
    """Return the limits for copying packets: frames are not limited, because none is decoded.

    Args:
        limits: whose `codecs` hold; None for all.
    """
    return MediaLimits(
        max_pixels=2**62,
        max_total_pixels=2**62,
        max_frame_rate=2**62,
        codecs=limits.codecs if limits else None,
    )


def _list_tags(reader: InputContainer, picture: VideoStream, name: Container) -> list[str | None]:
    """The codec tags to try, the most faithful one first."""
    context = picture.codec_context
    tags: list[str | None] = [None]
    codec, tag = context.codec.canonical_name, context.codec_tag
    if name == "mkv" and codec == "prores":  # it keeps the tag as the codec's private data
        return [_PRORES_TAGS.get(context.profile or ""), None]
    if name not in ("mp4", "mov"):
        return tags
    if codec == "hevc":
        # Apple's players open HEVC only with the tag hvc1. A source tagged hev1 may contain
        # parameter sets inside the stream, which hvc1 forbids.
        tags.insert(0, "hvc1")
    if codec == "prores" and context.profile in _PRORES_TAGS:
        tags.insert(0, _PRORES_TAGS[context.profile])
    if reader.format.name.startswith("mov") and tag.strip("\0"):
        tags.insert(0, tag)
    return tags


def _accepts(name: Container, picture: VideoStream, tag: str | None) -> bool:
    return takes(FFMPEG_FORMAT[name], lambda writer: add_picture(writer, picture, tag))

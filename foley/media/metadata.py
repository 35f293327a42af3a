"""What travels with a clip's picture: tags, chapters, subtitles; and what a result left out."""

from __future__ import annotations  # PyAV's packets are generic for the type checker only

from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
from av import Packet
from av.container import InputContainer, OutputContainer
from av.stream import Stream
from av.subtitles.stream import SubtitleStream
from av.video.stream import VideoStream

from foley.media.clock import seconds_of
from foley.media.containers import takes
from foley.media.integrity import find_boxes
from foley.media.source import MediaLimits, open_video
from foley.media.timeline import clock_start

# Tags that describe the source's file or its encoding, and not its content.
_FILE_TAGS = frozenset(
    {"major_brand", "minor_version", "compatible_brands", "encoder", "duration", "software"}
)
_STREAM_TAGS = frozenset({"encoder", "duration", "vendor_id", "creation_time"})
_UNKNOWN_TIME = "1970-01-01T00:00:00"  # what FFmpeg reads where a file has no creation time
_STATISTICS = ("_statistics_", "bps", "number_of_")  # that mkvmerge writes for each stream
_MP4_BOXES = {
    b"sv3d": "the spherical projection",
    b"dvcC": "the Dolby Vision configuration",
    b"dvvC": "the Dolby Vision configuration",
}


def has_quicktime_keys(reader: InputContainer) -> bool:
    """Whether the file has tags with reversed domain names, as cameras and phones write them."""
    return any(key.startswith("com.") for key in reader.metadata)


def copy_tags(reader: InputContainer, writer: OutputContainer) -> None:
    """Copy the tags of a file's content to another file.

    Args:
        reader: the open source.
        writer: the result, before its header is written.
    """
    writer.metadata.update(_content_tags(reader.metadata))


def copy_stream_tags(picture: VideoStream, copy: VideoStream) -> None:
    """Copy language, title, timecode, alpha mode, disposition and other tags of a stream.

    Args:
        picture: the source's stream.
        copy: the result's stream, before the header is written.
    """
    for key, value in picture.metadata.items():
        name = key.lower()
        if name not in _STREAM_TAGS and not name.startswith(_STATISTICS):
            copy.metadata[key] = value
    copy.disposition = picture.disposition


def copy_chapters(
    reader: InputContainer, writer: OutputContainer, stop_seconds: float | None
) -> None:
    """Copy the chapters that begin before the stop.

    Args:
        reader: the open source.
        writer: the result, before its header is written.
        stop_seconds: end of the result; None for all chapters.
    """
    chapters = reader.chapters()
    if stop_seconds is not None:
        # PyAV always states a chapter's time base.
        ticks = [int(stop_seconds / (chapter["time_base"] or 1)) for chapter in chapters]
        chapters = [
            {**chapter, "end": min(chapter["end"], stop)}
            for chapter, stop in zip(chapters, ticks, strict=True)
            if chapter["start"] < stop
        ]
    if chapters:
        writer.set_chapters(chapters)


def add_subtitles(
    reader: InputContainer, writer: OutputContainer, ffmpeg_format: str
) -> dict[int, Stream]:
    """Add the subtitle streams that the container takes, and return them by the source's index.

    Args:
        reader: the open source.
        writer: the result, before its header is written.
        ffmpeg_format: FFmpeg's name of the result's format.
    """
    copies: dict[int, Stream] = {}
    for stream in reader.streams.subtitles:
        if takes(ffmpeg_format, partial(_add_subtitle, stream)):
            copy = copies[stream.index] = _add_subtitle(stream, writer)
            copy.metadata.update(
                {k: v for k, v in stream.metadata.items() if k.lower() not in _STREAM_TAGS}
            )
            copy.disposition = stream.disposition
    return copies


def read_subtitles(
    source: Path, copies: dict[int, Stream], limits: MediaLimits, stop_seconds: float | None
) -> Iterator[Packet[Any]]:
    """Yield the packets of the subtitles, in the clip's clock, for the result's streams.

    Args:
        source: the file.
        copies: by `add_subtitles`.
        limits: for opening the source.
        stop_seconds: subtitles from there on are left out; None for all.
    """
    if not copies:
        return
    with open_video(source, limits) as (container, _):
        streams = [container.streams[index] for index in copies]
        starts = {stream.index: clock_start(container, stream) for stream in streams}
        for packet in container.demux(streams):
            if not packet.size or packet.pts is None:
                continue
            packet.pts -= starts[packet.stream.index]
            packet.dts = packet.pts
            if (
                stop_seconds is not None
                and seconds_of(packet.pts, packet.time_base) >= stop_seconds
            ):
                continue
            packet.stream = copies[packet.stream.index]
            yield packet


def list_left_out(
    reader: InputContainer,
    picture: VideoStream,
    copied: Iterable[int],
    result: Path,
    container: str,
) -> list[str]:
    """Names of what the result does not hold of the source, except for the source's sound.

    Args:
        reader: the open source.
        picture: its stream that was copied.
        copied: indices of the subtitle streams that were copied.
        result: the finished file.
        container: of the result.
    """
    with av.open(str(result), metadata_errors="replace") as written:
        kept = {key.lower() for key in written.metadata}
        kept_stream = {key.lower() for key in written.streams.video[0].metadata} | kept
        num_chapters = len(written.chapters())
        shape = written.streams.video[0].sample_aspect_ratio or 1
    left_out = [
        f"the tag {key}"
        for key in _content_tags(reader.metadata)
        if key.lower() not in kept and key.lower().partition("-")[0] not in kept
    ]
    if "timecode" in picture.metadata and "timecode" not in kept_stream:
        left_out.append(f"the timecode {picture.metadata['timecode']}")
    if (picture.sample_aspect_ratio or 1) != shape:  # PyAV cannot hand it to Matroska
        left_out.append(f"the shape of the pixels, {picture.sample_aspect_ratio}")
    if reader.chapters() and not num_chapters:
        left_out.append(f"{len(reader.chapters())} chapters")
    subtitles = {stream.index for stream in reader.streams.subtitles} - set(copied)
    left_out += [f"the subtitles of stream {index}" for index in sorted(subtitles)]
    left_out += [
        f"the {stream.type} stream {stream.index}"
        for stream in reader.streams
        if stream.type in ("data", "attachment") and "timecode" not in stream.metadata
    ]
    boxes = find_boxes(Path(reader.name), _MP4_BOXES) - find_boxes(result, _MP4_BOXES)
    if container in ("mp4", "mov"):
        left_out += sorted({_MP4_BOXES[box] for box in boxes})
    return left_out


def _content_tags(tags: dict[str, str]) -> dict[str, str]:
    return {
        key: value
        for key, value in tags.items()
        if key.lower() not in _FILE_TAGS and not value.startswith(_UNKNOWN_TIME)
    }


def _add_subtitle(stream: SubtitleStream, writer: OutputContainer) -> Stream:
    copy = writer.add_stream_from_template(stream)
    copy.time_base = stream.time_base or Fraction(1, 1000)
    return copy

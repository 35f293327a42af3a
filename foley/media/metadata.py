"""What travels with a clip's picture: tags, chapters, subtitles; and what a result left out."""

from __future__ import annotations  # PyAV's packets are generic for the type checker only

from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
from av import Packet
from av.container import InputContainer, OutputContainer
from av.stream import Stream
from av.subtitles.stream import SubtitleStream
from av.video.stream import VideoStream

from foley.media.clock import seconds_of
from foley.media.containers import takes
from foley.media.integrity import find_boxes
from foley.media.matroska import find_configurations
from foley.media.source import MediaLimits, open_video
from foley.media.timeline import clock_start, demux

if TYPE_CHECKING:
    from av.container.core import Chapter

# Names what a part of a clip is without, for the notice about the result that is made of it.
LEFT_OUT_BEFORE = "foley_left_out"
# Tags that describe the source's file or its encoding, and not its content.
_FILE_TAGS = frozenset(
    {"major_brand", "minor_version", "compatible_brands", "encoder", "duration", "software"}
    | {LEFT_OUT_BEFORE}
)
_STREAM_TAGS = frozenset({"encoder", "duration", "vendor_id", "creation_time"})
# What programs tell one another in a format, by FFmpeg's name of it.
# fmt: off
_INTERNAL_TAGS: dict[str, frozenset[str]] = {
    "mxf": frozenset((
        "operational_pattern_ul", "uid", "generation_uid", "product_uid", "company_name",
        "product_name", "product_version", "product_version_num", "application_platform",
        "toolkit_version", "toolkit_version_num", "modification_date", "material_package_umid",
        "material_package_name",
    )),
    "flv": frozenset((
        "metadatacreator", "metadatadate", "sourcedata", "hasvideo", "hasaudio", "hasmetadata",
        "haskeyframes", "hascuepoints", "canseektoend", "canseekontime", "datasize", "videosize",
        "audiosize", "filesize", "width", "height", "framerate", "stereo", "starttime",
        "lasttimestamp", "lastkeyframetimestamp", "lastkeyframelocation", "totalduration",
        "totaldatarate", "totalframes", "videodatarate", "audiodatarate", "audiosamplerate",
        "audiosamplesize", "audiochannels", "videocodecid", "audiocodecid",
    )),
    "asf": frozenset((
        "wmfsdkversion", "wmfsdkneeded", "deviceconformancetemplate", "isvbr", "aspectratiox",
        "aspectratioy", "wm/encodingtime", "wm/encodingsettings", "wm/mediaclassprimaryid",
        "wm/mediaclasssecondaryid", "wm/uniquefileidentifier", "wm/wmcontentid",
        "wm/wmcollectionid", "wm/wmcollectiongroupid",
    )),
}
# fmt: on
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
    writer.metadata.update(_content_tags(reader))


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
    reader: InputContainer,
    writer: OutputContainer,
    stop_seconds: float | None,
    start_seconds: float = 0.0,
) -> int:
    """Copy the chapters, or what a part of the clip has of them; returns how many these are.

    Args:
        reader: the open source.
        writer: the result, before its header is written.
        stop_seconds: end of the part, in the clip's clock; None for all chapters.
        start_seconds: of the part, where the result's clock begins.
    """
    chapters: list[Chapter] = []
    for chapter in reader.chapters():
        base = chapter["time_base"] or Fraction(1)  # PyAV always states it
        start = round(Fraction(start_seconds) / base)
        stop = chapter["end"] if stop_seconds is None else int(stop_seconds / base)
        begin, end = max(chapter["start"], start), min(chapter["end"], stop)
        if begin < end or (begin == chapter["start"] == end < stop):  # a mark has no length
            chapters.append({**chapter, "start": begin - start, "end": end - start})
    if chapters:
        writer.set_chapters(chapters)
    return len(chapters)


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
        for packet in demux(container, *streams):
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
    num_chapters: int,
) -> list[str]:
    """Names of what the result does not hold of the source, except for the source's sound.

    Args:
        reader: the open source.
        picture: its stream that was copied.
        copied: indices of the subtitle streams that were copied.
        result: the finished file.
        container: of the result.
        num_chapters: as `copy_chapters` returned it.
    """
    # What is asked for is in the file's head. Without a decoder none of its pictures is decoded.
    options = {"codec_whitelist": "none"}
    with av.open(str(result), metadata_errors="replace", options=options) as written:
        kept = {key.lower() for key in written.metadata}
        kept_stream = {key.lower() for key in written.streams.video[0].metadata} | kept
        written_chapters = written.chapters()
        shape = written.streams.video[0].sample_aspect_ratio or Fraction(1)
    left_out = [
        f"the tag {key}"
        for key in _content_tags(reader)
        if key.lower() not in {*kept, "timecode"} and key.lower().partition("-")[0] not in kept
    ]
    timecode = picture.metadata.get("timecode") or reader.metadata.get("timecode")
    if timecode and "timecode" not in kept_stream:
        left_out.append(f"the timecode {timecode}")
    # WebM states the size for display in whole pixels.
    if abs((picture.sample_aspect_ratio or 1) - shape) * picture.width > 1:
        left_out.append(f"the shape of the pixels, {picture.sample_aspect_ratio}")
    if missing := num_chapters - len(written_chapters):
        left_out.append(f"{missing} chapters")
    left_out += list_left_streams(reader, copied)
    source = Path(reader.name)
    stated = find_boxes(source, _MP4_BOXES) | find_configurations(source)
    boxes = stated - find_boxes(result, _MP4_BOXES)
    if container in ("mp4", "mov"):
        left_out += sorted({_MP4_BOXES[box] for box in boxes})
    return left_out


def list_left_streams(reader: InputContainer, copied: Iterable[int]) -> list[str]:
    """Names of the streams that a copy does not hold, except for pictures and sounds.

    Args:
        reader: the open source.
        copied: indices of the subtitle streams that were copied.
    """
    subtitles = {stream.index for stream in reader.streams.subtitles} - set(copied)
    left_out = [f"the subtitles of stream {index}" for index in sorted(subtitles)]
    chapters = reader.chapters() if reader.format.name.startswith("mov") else []
    for stream in reader.streams:
        # The chapters of mp4 and mov are a stream too, with a sample for each.
        is_chapters = bool(chapters) and stream.frames == len(chapters)
        is_missed = stream.type == "attachment" or (stream.type == "data" and not is_chapters)
        if is_missed and "timecode" not in stream.metadata:
            left_out.append(f"the {stream.type} stream {stream.index}")
    return left_out


def _content_tags(reader: InputContainer) -> dict[str, str]:
    unwanted = _FILE_TAGS | _INTERNAL_TAGS.get(reader.format.name, frozenset())
    return {
        key: value
        for key, value in reader.metadata.items()
        if key.lower() not in unwanted and not value.startswith(_UNKNOWN_TIME)
    }


def _add_subtitle(stream: SubtitleStream, writer: OutputContainer) -> Stream:
    copy = writer.add_stream_from_template(stream)
    copy.time_base = stream.time_base or Fraction(1, 1000)
    return copy

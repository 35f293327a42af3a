"""The part of a clip from a given time on, as a file of its own. No packet is encoded again."""

from __future__ import annotations  # PyAV's packets are generic for the type checker only

import heapq
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
from av import Packet
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.stream import Stream
from av.video.stream import VideoStream

from foley.atomic import atomic_path
from foley.errors import ParameterError
from foley.media.clock import seconds_of
from foley.media.containers import takes
from foley.media.matroska import write_pixel_shape
from foley.media.metadata import (
    LEFT_OUT_BEFORE,
    add_subtitles,
    copy_chapters,
    copy_stream_tags,
    copy_tags,
    list_left_streams,
    read_subtitles,
)
from foley.media.original import list_codecs
from foley.media.packets import complete_timestamps, cut_packets
from foley.media.picture import (
    FFMPEG_FORMAT,
    add_picture,
    is_animation,
    limit_packets,
    list_options,
    plan_picture,
)
from foley.media.source import MediaLimits, open_sound, open_video
from foley.media.timecode import add_seconds, read_timecode
from foley.media.timeline import demux_sound


def cut_clip(
    source: Path,
    destination: Path,
    start_seconds: float,
    *,
    stop_seconds: float | None = None,
    limits: MediaLimits | None = None,
) -> None:
    """Write what a clip shows and sounds from a time on, so that it begins at zero.

    The packets are copied from the key frame before that time on. In mp4 and mov an edit list hides
    what is before it. A picture that neither takes is written to mkv, which has no edit list and so
    begins with that key frame. Subtitles that mp4 and mov do not take are left out, as are streams
    of data; the notice about a result that is made of the part names them.

    Args:
        source: the clip.
        destination: the part; its name need not have a suffix.
        start_seconds: in the clip's clock.
        stop_seconds: leave out what is shown from there on; None for all.
        limits: `codecs` is checked.

    Raises:
        ParameterError: the clip ends before the start, or is an animation.
        VideoError: the clip cannot be read.
    """
    checked = limits or MediaLimits()
    packets_only = limit_packets(limits)
    with ExitStack() as stack:
        reader, picture = stack.enter_context(open_video(source, packets_only))
        if is_animation(reader, picture):
            raise ParameterError(
                "start_seconds: an animation or a zip of pictures begins at its first picture; "
                "leave the option out, or leave out the pictures before"
            )
        plan = plan_picture(reader, picture, "mp4", ("mov", "mkv"))
        name = plan.container
        partial_path = stack.enter_context(atomic_path(destination))
        writer = stack.enter_context(
            av.open(
                str(partial_path),
                "w",
                format=FFMPEG_FORMAT[name],
                options=_keep_all_tags(list_options(name, reader)),
            )
        )
        copy_tags(reader, writer)
        copy_chapters(reader, writer, stop_seconds, start_seconds)
        copy = add_picture(writer, picture, plan.tag)
        copy_stream_tags(picture, copy)
        _move_timecode(reader, picture, writer, copy, start_seconds)
        streams: list[tuple[Stream, Stream]] = [(picture, copy)]
        parts = [
            _begin_at_key_frame(
                cut_packets(
                    complete_timestamps(reader, picture, checked, stop_seconds), stop_seconds
                ),
                start_seconds,
            )
        ]
        if sound := stack.enter_context(open_sound(source, list_codecs(limits))):
            container, stream = sound
            if takes(FFMPEG_FORMAT[name], partial(_add_sound, stream)):
                parts.append(_read_sound(container, stream, start_seconds, stop_seconds))
                streams.append((stream, _add_sound(stream, writer)))
        subtitles = add_subtitles(reader, writer, FFMPEG_FORMAT[name])
        left_out = list_left_streams(reader, subtitles)
        if left_out:
            writer.metadata[LEFT_OUT_BEFORE] = ", ".join(left_out)
        writer.start_encoding()
        texts = read_subtitles(source, subtitles, packets_only, stop_seconds)
        parts.append(_drop_before(texts, start_seconds))
        copies = {id(original): added for original, added in streams}
        is_empty = True
        for packet in heapq.merge(*parts, key=_decode_seconds):
            assert packet.pts is not None
            assert packet.dts is not None
            is_empty &= packet.stream is not picture or _shown(packet) < start_seconds
            start = round(start_seconds / packet.time_base)
            packet.pts -= start
            packet.dts -= start
            packet.stream = copies.get(id(packet.stream), packet.stream)
            writer.mux(packet)
        if is_empty:
            raise ParameterError(
                f"start_seconds: is {start_seconds:g}, and the clip shows nothing from there on; "
                "name an earlier time"
            )
        shape = picture.sample_aspect_ratio or Fraction(1)
        if name == "mkv" and shape != 1:
            writer.close()
            write_pixel_shape(partial_path, shape, in_pixels=False)


def _keep_all_tags(options: dict[str, str]) -> dict[str, str]:
    """The options of a container with which it keeps tags of any name."""
    if "movflags" not in options:
        return options
    return {**options, "movflags": options["movflags"] + "+use_metadata_tags"}


def _begin_at_key_frame(packets: Iterable[Packet[Any]], start: float) -> Iterator[Packet[Any]]:
    """Leave out what is before the last key frame that is shown at the start or before."""
    waiting: list[Packet[Any]] | None = []
    for packet in packets:
        if waiting is None:
            yield packet
            continue
        if packet.is_keyframe and _shown(packet) <= start:
            waiting.clear()
        waiting.append(packet)
        if _decode_seconds(packet) > start:
            yield from waiting
            waiting = None
    yield from waiting or ()


def _read_sound(
    container: InputContainer, stream: AudioStream, start: float, stop: float | None
) -> Iterator[Packet[Any]]:
    last_dts: int | None = None
    for packet in demux_sound(container, stream):
        if not packet.size or packet.pts is None or packet.dts is None:
            continue
        length = seconds_of(packet.duration or 0, packet.time_base)
        if _shown(packet) + length <= start or (last_dts is not None and packet.dts <= last_dts):
            continue
        if stop is not None and _shown(packet) >= stop:
            return
        last_dts = packet.dts
        yield packet


def _drop_before(packets: Iterable[Packet[Any]], start: float) -> Iterator[Packet[Any]]:
    return (packet for packet in packets if _shown(packet) >= start)


def _add_sound(stream: AudioStream, writer: OutputContainer) -> Stream:
    copy = writer.add_stream_from_template(stream, opaque=True)
    copy.time_base = stream.time_base
    for key in ("title", "language"):
        if key in stream.metadata:
            copy.metadata[key] = stream.metadata[key]
    return copy


def _move_timecode(
    reader: InputContainer,
    picture: VideoStream,
    writer: OutputContainer,
    copy: VideoStream,
    start: float,
) -> None:
    found = read_timecode(reader, picture)
    if found is None:
        return
    moved = add_seconds(*found, start)
    for tags in (writer.metadata, copy.metadata):
        if "timecode" in tags:
            tags["timecode"] = moved


def _shown(packet: Packet[Any]) -> float:
    assert packet.pts is not None
    return seconds_of(packet.pts, packet.time_base)


def _decode_seconds(packet: Packet[Any]) -> float:
    assert packet.dts is not None
    return seconds_of(packet.dts, packet.time_base)

"""OpenTimelineIO: a clip and its new sounds laid out for an editor."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from urllib.parse import quote

from foley.atomic import atomic_path
from foley.configs import SAMPLE_RATE
from foley.errors import OutputError
from foley.media.source import MediaLimits, open_video
from foley.media.timecode import read_timecode, seconds_since_midnight

_DEFAULT_RATE = Fraction(25)  # of a clip that states none
# Only the clip's header is read.
_ANY_SIZE = MediaLimits(max_pixels=2**62, max_total_pixels=2**62, max_frame_rate=2**62)


@dataclass(frozen=True, kw_only=True)
class TimelineSound:
    """A sound of a timeline, on a track of its own.

    Attributes:
        name: of the track.
        path: of the file.
        is_heard: whether the track is switched on.
        has_timecode: whether the file has the clip's timecode, if the clip has one.
    """

    name: str
    path: Path
    is_heard: bool = True
    has_timecode: bool = False


def can_write_timelines() -> bool:
    """Whether the extra `otio` is installed."""
    return importlib.util.find_spec("opentimelineio") is not None


def write_timeline(
    destination: Path,
    sounds: Sequence[TimelineSound],
    *,
    duration_seconds: float,
    clip: Path | None = None,
) -> None:
    """Write a timeline on which all files begin together, each on a track of its own.

    Files are named relative to the timeline, so that their folder can be moved. Ranges begin at the
    timecode where a file has one, by which editors find media again.

    Args:
        destination: an existing file there is replaced.
        sounds: from the first track on.
        duration_seconds: of each sound, and of as much of the picture.
        clip: whose picture is shown; None for a sound without one.

    Raises:
        VideoError: the clip cannot be read.
        OutputError: `destination` cannot be written.
    """
    # Imported here, because the library is an extra.
    import opentimelineio as otio

    rate, start_seconds = (_DEFAULT_RATE, Fraction(0)) if clip is None else _read_clock(clip)

    def lay_out(
        name: str, path: Path, kind: str, at: Fraction, ticks: Fraction
    ) -> otio.schema.Track:
        span = otio.opentime.TimeRange(
            otio.opentime.RationalTime(round(at * ticks), float(ticks)),
            otio.opentime.RationalTime(round(duration_seconds * ticks), float(ticks)),
        )
        place = os.path.relpath(path.resolve(), destination.resolve().parent)
        media = otio.schema.ExternalReference(target_url=quote(Path(place).as_posix()))
        track = otio.schema.Track(name=name, kind=kind)
        track.append(otio.schema.Clip(name=path.name, media_reference=media, source_range=span))
        return track

    timeline = otio.schema.Timeline(name=destination.stem)
    timeline.global_start_time = otio.opentime.RationalTime(
        round(start_seconds * rate), float(rate)
    )
    if clip is not None:
        kind = otio.schema.TrackKind.Video
        timeline.tracks.append(lay_out("Picture", clip, kind, start_seconds, rate))
    for sound in sounds:
        at = start_seconds if sound.has_timecode else Fraction(0)
        kind = otio.schema.TrackKind.Audio
        track = lay_out(sound.name, sound.path, kind, at, Fraction(SAMPLE_RATE))
        track.enabled = sound.is_heard
        timeline.tracks.append(track)
    text = otio.adapters.write_to_string(timeline, "otio_json")
    try:
        with atomic_path(destination) as temporary:
            temporary.write_text(text)
    except OSError as error:
        raise OutputError(
            f"{destination} cannot be written ({error.strerror}); check the folder, its "
            "permissions and the space left"
        ) from error


def _read_clock(clip: Path) -> tuple[Fraction, Fraction]:
    """Return the frames a second of a clip, and the time of its first frame by its timecode."""
    with open_video(clip, _ANY_SIZE) as (reader, picture):
        if (found := read_timecode(reader, picture)) is not None:
            timecode, rate = found
            return rate, seconds_since_midnight(timecode, rate)
        rate = picture.average_rate or picture.guessed_rate or _DEFAULT_RATE
        return rate, Fraction(0)

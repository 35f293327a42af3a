"""From what a caller names to the clip that is sounded: pictures, their rate or time, a part."""

import shutil
from fractions import Fraction
from pathlib import Path

from foley.errors import OutputError, ParameterError, VideoDecodeError
from foley.media.cut import cut_clip
from foley.media.hold import hold_picture
from foley.media.images import set_frame_rate
from foley.media.numbering import is_pattern, pack_pictures
from foley.media.source import MediaLimits

_NTSC_TOLERANCE = 0.005


def prepare_clip(
    source: Path,
    destination: Path,
    *,
    start_seconds: float = 0.0,
    frame_rate: float | None = None,
    duration_seconds: float | None = None,
    stop_seconds: float | None = None,
    limits: MediaLimits | None = None,
) -> Path:
    """Return the clip that is meant: the source itself, or a file that is made of it.

    Args:
        source: a video, a zip of numbered pictures, or a pattern of their paths: frames/%04d.png.
        destination: of the new file.
        start_seconds: where the used part begins; 0 for the whole clip.
        frame_rate: of numbered pictures, in pictures per second.
        duration_seconds: how long a still picture is shown; None for other clips.
        stop_seconds: end of the used part; None for the end of the clip.
        limits: on the codecs of the clip.

    Raises:
        ParameterError: an option does not fit the source.
        VideoError: the source cannot be read.
        OutputError: the new file cannot be written.
    """
    if duration_seconds is not None:
        hold_picture(source, destination, duration_seconds, limits)
        return destination
    if is_pattern(source):
        if frame_rate is None:
            raise ParameterError(
                f"frame_rate: missing; the pictures {source} have no rate of their own, such as 24"
            )
        pack_pictures(source, destination)
        set_frame_rate(destination, to_fraction(frame_rate))
        source = destination
    elif frame_rate is not None:
        _copy(source, destination)
        set_frame_rate(destination, to_fraction(frame_rate))
        source = destination
    if start_seconds:
        cut_clip(source, destination, start_seconds, stop_seconds=stop_seconds, limits=limits)
        source = destination
    return source


def to_fraction(frame_rate: float) -> Fraction:
    """Return a frame rate exactly: 23.976 and 23.98 are 24000/1001.

    Args:
        frame_rate: pictures per second.
    """
    slower = Fraction(round(frame_rate) * 1000, 1001)
    if frame_rate != round(frame_rate) and abs(frame_rate - slower) < _NTSC_TOLERANCE:
        return slower
    return Fraction(frame_rate).limit_denominator(1001)


def _copy(source: Path, destination: Path) -> None:
    if not source.is_file():
        raise VideoDecodeError(f"there is no file {source}; check the path")
    try:
        shutil.copyfile(source, destination)
    except OSError as error:
        raise OutputError(
            f"{source} cannot be copied to {destination.parent} ({error.strerror}); make room "
            "there, or set TMPDIR to another folder"
        ) from error

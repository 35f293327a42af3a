"""From what a caller names to the clip that is sounded: packed pictures, a frame rate, a part."""

import re
import shutil
import zipfile
from fractions import Fraction
from pathlib import Path

from foley.atomic import atomic_path
from foley.errors import OutputError, ParameterError, VideoDecodeError
from foley.media.cut import cut_clip
from foley.media.images import check_numbers, set_frame_rate, split_numbers
from foley.media.source import MediaLimits

_NUMBER = re.compile(r"%(0?\d*)d")
_NTSC_TOLERANCE = 0.005


def is_pattern(path: Path) -> bool:
    """Whether a path names numbered pictures, such as frames/%04d.png, and no file.

    Args:
        path: as a caller wrote it.
    """
    return bool(_NUMBER.search(path.name)) and not path.exists()


def prepare_clip(
    source: Path,
    destination: Path,
    *,
    start_seconds: float = 0.0,
    frame_rate: float | None = None,
    stop_seconds: float | None = None,
    limits: MediaLimits | None = None,
) -> Path:
    """Return the clip that is meant: the source itself, or a file that is made of it.

    Args:
        source: a video, a zip of numbered pictures, or a pattern of their paths: frames/%04d.png.
        destination: of the new file.
        start_seconds: where the used part begins; 0 for the whole clip.
        frame_rate: of numbered pictures, in pictures per second.
        stop_seconds: end of the used part; None for the end of the clip.
        limits: on the codecs of the clip.

    Raises:
        ParameterError: an option does not fit the source.
        VideoError: the source cannot be read.
        OutputError: the new file cannot be written.
    """
    if is_pattern(source):
        if frame_rate is None:
            raise ParameterError(
                f"frame_rate: missing; the pictures {source} have no rate of their own, such as 24"
            )
        _pack(source, destination)
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


def _pack(pattern: Path, destination: Path) -> None:
    """Write the pictures of a pattern into a zip, without compression."""
    match = _NUMBER.search(pattern.name)
    assert match is not None
    digits = match[1].lstrip("0")
    number = rf"\d{{{digits},}}" if match[1].startswith("0") and digits else r"\d+"
    before, after = re.escape(pattern.name[: match.start()]), re.escape(pattern.name[match.end() :])
    wanted = re.compile(before + number + after)
    folder = pattern.parent
    names = (
        [p.name for p in folder.iterdir() if wanted.fullmatch(p.name)] if folder.is_dir() else []
    )
    if not names:
        raise VideoDecodeError(
            f"no file is named {pattern}, with a number in place of {match[0]}; check the path"
        )
    names.sort(key=split_numbers)
    if len(names) > 1:
        check_numbers(names)
    try:
        with atomic_path(destination) as partial, zipfile.ZipFile(partial, "w") as archive:
            for name in names:
                archive.write(folder / name, name)
    except OSError as error:
        raise OutputError(
            f"the pictures {pattern} cannot be packed into {destination.parent} "
            f"({error.strerror}); make room there, or set TMPDIR to another folder"
        ) from error


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

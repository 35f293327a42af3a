"""The timecode of a clip as a time reference of Broadcast Wave."""

import re
from fractions import Fraction
from pathlib import Path

from av.container import InputContainer
from av.video.stream import VideoStream

from foley.media.source import MediaLimits, open_video
from foley.version import __version__

_TIMECODE = re.compile(r"(\d\d):(\d\d):(\d\d)([:;.])(\d\d)")


def describe_wave(
    source: Path | None, sample_rate: int, limits: MediaLimits
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The tags of a Broadcast Wave file, and sentences for the caller.

    Args:
        source: the clip, whose timecode is the time reference; None without one.
        sample_rate: of the file, Hz.
        limits: for opening the clip.

    Raises:
        VideoError: the clip cannot be read.
    """
    tags = {"originator": f"foley {__version__}", "time_reference": "0"}
    found = None
    if source is not None:
        with open_video(source, limits) as (reader, picture):
            found = read_timecode(reader, picture)
    if found is None:
        return tags, ("There is no timecode: the time reference of the wav file is 0.",)
    timecode, rate = found
    tags["description"] = f"from timecode {timecode}"
    tags["time_reference"] = str(round(seconds_since_midnight(timecode, rate) * sample_rate))
    return tags, ()


def read_timecode(reader: InputContainer, picture: VideoStream) -> tuple[str, Fraction] | None:
    """The timecode of a clip's first frame and its frames a second; None if it states none.

    Args:
        reader: the open clip.
        picture: its video stream.
    """
    streams = [picture, *reader.streams]
    for tags in (reader.metadata, *(stream.metadata for stream in streams)):
        timecode = tags.get("timecode", "")
        rate = picture.average_rate or picture.guessed_rate
        if _TIMECODE.fullmatch(timecode) and rate:
            return timecode, _standard_rate(rate)
    return None


def seconds_since_midnight(timecode: str, rate: Fraction) -> Fraction:
    """The time of a timecode: its frames since midnight, over the frames a second.

    At 23.976 frames a second, an hour of timecode lasts 3603.6 s.

    Args:
        timecode: hh:mm:ss:ff; ; or . before the frames means that numbers are dropped, of which
            SMPTE 12M leaves out two, or four at 59.94, in each minute but each tenth.
        rate: frames a second.
    """
    return _count_frames(timecode, rate) / rate


def add_seconds(timecode: str, rate: Fraction, seconds: float) -> str:
    """Return the timecode of the frame that is shown so much later.

    Args:
        timecode: as for `seconds_since_midnight`.
        rate: frames a second.
        seconds: at least 0.
    """
    match = _TIMECODE.fullmatch(timecode)
    assert match is not None
    nominal = round(rate)
    number = _count_frames(timecode, rate) + round(Fraction(seconds) * rate)
    if match[4] != ":":
        dropped = nominal // 15
        tens, rest = divmod(number, 600 * nominal - 9 * dropped)
        further = max(0, rest - dropped) // (60 * nominal - dropped)
        number += dropped * (9 * tens + further)
    seconds_left, frames = divmod(number, nominal)
    minutes, second = divmod(seconds_left, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours % 24:02}:{minute:02}:{second:02}{match[4]}{frames:02}"


def _count_frames(timecode: str, rate: Fraction) -> int:
    match = _TIMECODE.fullmatch(timecode)
    assert match is not None
    hours, minutes, seconds, frames = (int(match[group]) for group in (1, 2, 3, 5))
    nominal = round(rate)
    minutes += 60 * hours
    number = (60 * minutes + seconds) * nominal + frames
    if match[4] != ":":
        number -= nominal // 15 * (minutes - minutes // 10)
    return number


def _standard_rate(rate: Fraction) -> Fraction:
    """The nearest whole number of frames a second, or its NTSC counterpart."""
    whole = Fraction(max(1, round(rate)))
    slower = whole * 1000 / 1001
    return min(whole, slower, key=lambda candidate: abs(candidate - rate))

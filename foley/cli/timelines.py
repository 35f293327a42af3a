"""`foley generate --otio`: a timeline of the clip and its files, beside each result."""

from pathlib import Path

from foley.cli.backends import ClipResult
from foley.cli.plan import AUDIO_SUFFIXES, ClipTask
from foley.errors import ConfigError, ParameterError


def check_timelines(*, is_piped: bool) -> None:
    """Check before the work that timelines can be written.

    Args:
        is_piped: whether the clip or the result has no place of its own.

    Raises:
        ParameterError: it has none.
        ConfigError: the extra for them is missing.
    """
    from foley.media.otio import can_write_timelines

    if is_piped:
        raise ParameterError(
            "--otio names the files of the clip and the result; use names of files instead of -"
        )
    if not can_write_timelines():
        raise ConfigError(
            "--otio needs the extra 'otio', which is not installed; install foley-serving[otio]"
        )


def write_timelines(task: ClipTask, result: ClipResult) -> list[Path]:
    """Write the timeline of each variation, and return their paths.

    The clip's own sound and the layers have tracks of their own. What a mix holds already is
    switched off, so that nothing is heard twice.

    Args:
        task: what was asked for.
        result: what was made.

    Raises:
        RequestError: the clip cannot be read, or a file cannot be written.
    """
    from foley.media.otio import TimelineSound, write_timeline
    from foley.media.source import MediaLimits
    from foley.media.tracks import has_sound

    is_broadcast = task.mix.broadcast_wave
    layers = [
        TimelineSound(
            name=f"Layer {number}",
            path=path,
            is_heard=False,
            has_timecode=is_broadcast and path.suffix == ".wav",
        )
        for number, path in enumerate(result.stems, start=1)
    ]
    original = []
    if task.clip is not None and has_sound(task.clip, MediaLimits()):
        is_heard = task.mix.original_sound == "keep"
        original = [
            TimelineSound(name="Original", path=task.clip, is_heard=is_heard, has_timecode=True)
        ]
    paths = []
    for sound in result.paths:
        is_video = sound.suffix.lower() not in AUDIO_SUFFIXES
        has_timecode = is_video or (is_broadcast and sound.suffix.lower() == ".wav")
        main = TimelineSound(name="Sound", path=sound, has_timecode=has_timecode)
        path = sound.with_suffix(".otio")
        write_timeline(
            path,
            [main, *layers, *original],
            duration_seconds=result.duration_seconds,
            clip=task.clip,
        )
        paths.append(path)
    return paths

"""The fork server of the page: each picture of a clip or a sound is drawn in a confined child.

Run as `python -m runners.page.plot_server`. The page opens no media file itself.
"""

import tempfile
from pathlib import Path

FILM_STRIP = "strip.jpg"


def draw_film_strip(
    folder: Path,
    *,
    clip: str,
    duration_seconds: float,
    start_seconds: float = 0.0,
    frame_rate: float | None = None,
    still_seconds: float | None = None,
) -> str:
    """Write `FILM_STRIP` into the folder, and return the suffix for the clip's format.

    Args:
        folder: of the result.
        clip: name of the video in the folder.
        duration_seconds: length of the whole width.
        start_seconds: where the used part of the clip begins. What is before is cut off the file.
        frame_rate: of a zip of numbered pictures, which is written into it.
        still_seconds: how long a still picture is shown, which becomes a clip of that length.

    Raises:
        VideoError: the clip cannot be decoded.
    """
    from runners.page import plots

    if frame_rate is not None:
        plots.set_rate(folder / clip, frame_rate)
    if still_seconds is not None:
        plots.hold(folder / clip, still_seconds)
    if start_seconds:
        plots.cut_beginning(folder / clip, start_seconds, duration_seconds)
    plots.draw_film_strip(folder / clip, duration_seconds, folder / FILM_STRIP)
    return plots.recognize_suffix(folder / clip)


def copy_picture(folder: Path, *, source: str, copy: str) -> None:
    """Copy the picture of a video, without its sounds.

    Args:
        folder: of the result.
        source: name of the video in the folder.
        copy: name of the new file.

    Raises:
        VideoError: the video cannot be read.
    """
    from runners.page import plots

    plots.copy_picture(folder / source, folder / copy)


def draw_sound(folder: Path, *, file: str, duration_seconds: float) -> tuple[str, str] | None:
    """Write a spectrogram into the folder; returns the waveform and the spectrogram's name.

    The waveform is an SVG path. Without an audio stream there is neither.

    Args:
        folder: of the result.
        file: name of the sound or video in the folder.
        duration_seconds: length of the whole width.

    Raises:
        VideoError: the file cannot be decoded.
    """
    from runners.page import plots

    sound = plots.read_sound(folder / file)
    if sound is None:
        return None
    samples, rate = sound
    num_samples = max(1, round(duration_seconds * rate))
    name = f"{Path(file).stem}-spectrogram.png"
    plots.draw_spectrogram(samples, num_samples, rate, folder / name)
    return plots.trace_waveform(samples, num_samples), name


def prepare() -> None:
    """Import and warm up what the tasks need, since a confined child reads few files."""
    import av.subtitles.stream  # noqa: F401 - imported late by PyAV
    import numpy as np

    from runners.page import plots

    with tempfile.TemporaryDirectory() as folder:
        plots.draw_spectrogram(np.zeros(1, np.float32), 1, 48_000, Path(folder) / "warm.png")


if __name__ == "__main__":
    from runners.sandbox.fork_server import main

    prepare()
    main(
        {
            "draw_film_strip": draw_film_strip,
            "draw_sound": draw_sound,
            "copy_picture": copy_picture,
        }
    )

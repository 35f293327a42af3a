"""A plot of a clip and its sounds over one time axis: frames, waveforms, spectrograms."""

# S samples

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from runners.page import plots

WIDTH_INCHES, STRIP_INCHES, WAVE_INCHES, SPECTROGRAM_INCHES = 12.0, 1.0, 0.8, 1.6
DOTS_PER_INCH = 110
TRUE, FOUND = "#1a9850", "#e66101"
TICKS_HZ = (100, 1000, 10_000)


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A sound to draw.

    Attributes:
        name: its label.
        samples: float32 [S].
        rate: in Hz.
        found: the detected onsets, in seconds.
        shaded: a range of seconds that is shaded; None for none.
    """

    name: str
    samples: NDArray[np.float32]
    rate: int
    found: Sequence[float]
    shaded: tuple[float, float] | None = None


def draw(
    clip: Path,
    sounds: Sequence[Sound],
    path: Path,
    *,
    title: str = "",
    events: Sequence[float] | None = None,
) -> None:
    """Write a PNG: a strip of frames, and each sound's waveform and spectrogram below it.

    Args:
        clip: whose frames are shown.
        sounds: at least one; the first determines the length of the time axis.
        path: of the PNG.
        title: above the plot.
        events: the known events, in seconds; None if they are not known.
    """
    seconds = len(sounds[0].samples) / sounds[0].rate
    heights = [STRIP_INCHES, *(h for _ in sounds for h in (WAVE_INCHES, SPECTROGRAM_INCHES))]
    figure = Figure(
        figsize=(WIDTH_INCHES, sum(heights) + 0.25 * len(heights) + 0.5),
        dpi=DOTS_PER_INCH,
        layout="constrained",
    )
    grid = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)
    strip, *rows = grid[:, 0]
    _draw_strip(strip, clip, seconds)
    for sound, wave, spectrum in zip(sounds, rows[::2], rows[1::2], strict=True):
        draw_sound(wave, spectrum, sound, round(seconds * sound.rate))
    for axes in (strip, *rows):
        for at in events or ():
            axes.axvline(at, color=TRUE, linewidth=1.2, linestyle="--", alpha=0.9)
    for sound, wave in zip(sounds, rows[::2], strict=True):
        wave.plot(sound.found, [0.9] * len(sound.found), "v", color=FOUND, markersize=6)
    for at in sounds[0].found:
        strip.axvline(at, color=FOUND, linewidth=1.2, alpha=0.9)
    known = "" if events is None else "green dashed: known events; "
    strip.set_title(f"{title}\n{known}orange: detected onsets".strip(), loc="left", fontsize=9)
    rows[-1].set_xlabel("seconds")
    rows[-1].set_xlim(0, seconds)
    figure.savefig(path)


def _draw_strip(axes: Axes, clip: Path, seconds: float) -> None:
    (first,) = plots.pick_frames(clip, [0.0])
    width_inches = STRIP_INCHES * first.width / first.height
    count = max(2, round(WIDTH_INCHES / width_inches))
    share = seconds / count
    frames = plots.pick_frames(clip, [(index + 0.5) * share for index in range(count)])
    for index, frame in enumerate(frames):
        axes.imshow(frame, extent=(index * share, (index + 1) * share, 0, 1), aspect="auto")
    axes.set_ylim(0, 1)
    axes.set_yticks([])


def draw_sound(wave: Axes, spectrum: Axes, sound: Sound, num_samples: int) -> None:
    """Draw the waveform and the spectrogram of a sound.

    Args:
        wave: for the waveform, from -1 to 1.
        spectrum: for the spectrogram, with the frequencies of `plots`.
        sound: whose range is shaded; its onsets are not drawn.
        num_samples: that the time axis, in seconds, stands for.
    """
    seconds = num_samples / sound.rate
    lower, upper = plots.measure_peaks(sound.samples, num_samples)
    middle = (np.arange(len(lower)) + 0.5) * seconds / len(lower)
    wave.fill_between(middle, lower, upper, linewidth=0.4, color="#2c3e50")
    if sound.shaded is not None:
        wave.axvspan(*sound.shaded, color=FOUND, alpha=0.2, linewidth=0)
    wave.set_ylim(-1, 1)
    wave.set_yticks([])
    wave.set_ylabel(sound.name, fontsize=9)
    spectrum.imshow(
        plots.measure_spectrum(sound.samples, num_samples, sound.rate),
        extent=(0, seconds, 0, 1),
        origin="lower",
        aspect="auto",
        cmap=plots.COLOURS,
        vmin=plots.FLOOR_DB,
        vmax=0,
    )
    octaves = np.log(np.array(TICKS_HZ) / plots.LOWEST_HZ)
    places = octaves / np.log(plots.HIGHEST_HZ / plots.LOWEST_HZ)
    spectrum.set_yticks(places, [f"{hz / 1000:g} kHz" for hz in TICKS_HZ], fontsize=7)

"""Draw the seams between the windows of long sounds.

    python -m benchmarks.quality.plot_seams [--seconds 32] [--out docs/images/seams.webp]

Each row is one sound: of a drawn clip of hits, of drawn shots that are joined by cuts, and of rain
without a picture. Each column is one seam, 2 s to each side of the middle of its overlap, which is
shaded.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.quality.drawing import FOUND, TRUE, Sound, draw_sound
from benchmarks.quality.held_out import HeldOutClip
from benchmarks.quality.seams import (
    TEXTURES,
    Spans,
    draw_joined,
    draw_whole,
    find_clip_seams,
    find_seams,
)
from benchmarks.quality.sync import add_options, collect_options, load_pipeline
from foley.configs import LATENT_RATE, SAMPLE_RATE
from foley.pipeline import FoleyPipeline
from foley.request import GenerationRequest
from foley.types import NoPicture
from training.judge import detect_onsets

PICTURE = Path(__file__).parents[2] / "docs" / "images" / "seams.webp"
REACH_SECONDS = 2.0
NUM_SEAMS = 3  # of each sound
_WIDTH, _HEIGHT = 12.0, 2.2  # inches: of the picture, of a row


class _Row:
    """A sound with its seams.

    Args:
        name: its label.
        waveform: float32 [S].
        seams: of its windows.
        events: seconds of the hits that are seen; None where there is no picture.
    """

    def __init__(
        self, name: str, waveform: Tensor, seams: Spans, events: list[float] | None
    ) -> None:
        self.name, self.seams, self.events = name, seams, events
        self._waveform = waveform
        self._found = detect_onsets(waveform)

    def draw(self, wave: Axes, spectrum: Axes, number: int) -> None:
        """Draw one seam."""
        seam = self.seams[number]
        start = sum(seam) / 2 - REACH_SECONDS
        first, count = round(start * SAMPLE_RATE), round(2 * REACH_SECONDS * SAMPLE_RATE)
        sound = Sound(
            name=self.name if number == 0 else "",
            samples=self._waveform[first : first + count].numpy(),
            rate=SAMPLE_RATE,
            found=[at - start for at in self._found if 0 <= at - start <= 2 * REACH_SECONDS],
            shaded=(seam[0] - start, seam[1] - start),
        )
        draw_sound(wave, spectrum, sound, count)
        for at in self.events or ():
            if 0 <= at - start <= 2 * REACH_SECONDS:
                for axes in (wave, spectrum):
                    axes.axvline(at - start, color=TRUE, linewidth=1.2, linestyle="--")
        if self.events is not None:  # rain is nothing but onsets
            wave.plot(sound.found, [0.9] * len(sound.found), "v", color=FOUND, markersize=5)
        wave.set_title(f"seam at {sum(seam) / 2:.2f} s", loc="left", fontsize=8)


def draw_rows(rows: list[_Row], path: Path) -> None:
    """Write the picture."""
    figure = Figure(figsize=(_WIDTH, _HEIGHT * len(rows) + 0.6), dpi=100, layout="constrained")
    grid = figure.subplots(2 * len(rows), NUM_SEAMS, sharex=True, height_ratios=[1, 2] * len(rows))
    for index, row in enumerate(rows):
        for number in range(NUM_SEAMS):
            row.draw(grid[2 * index, number], grid[2 * index + 1, number], number)
            if number:
                grid[2 * index + 1, number].set_yticks([])
    for axes in grid[-1]:
        axes.set_xlim(0, 2 * REACH_SECONDS)
        places = np.linspace(0, 2 * REACH_SECONDS, 5)
        axes.set_xticks(places, [f"{at - REACH_SECONDS:+g}" for at in places])
        axes.set_xlabel("seconds from the middle of the overlap")
    figure.suptitle(
        "shaded: the overlap of two windows; green dashed: hits that are seen; "
        "orange: detected onsets",
        x=0.01,
        ha="left",
        fontsize=9,
    )
    figure.savefig(path)


def make_rows(pipeline: FoleyPipeline, seconds: float, seed: int, **options: Any) -> list[_Row]:
    """Generate the sounds.

    Args:
        pipeline: the model.
        seconds: of each, enough for `NUM_SEAMS` seams.
        seed: of the noise.
        options: of the request.
    """

    def make(clip: HeldOutClip | None, prompt: str) -> Tensor:
        request = GenerationRequest.parse(prompt=prompt, seed=seed, **options)
        frames = NoPicture(duration_seconds=seconds) if clip is None else clip.frames
        print(prompt, flush=True)
        return pipeline.generate(frames, request).waveforms[0, 0]

    (whole,) = draw_whole(pipeline, 1, seconds, "tap")
    (joined,) = draw_joined(pipeline, 1, seconds, "strike")
    rain = make(None, TEXTURES["rain"])
    return [
        _Row("hits", make(whole, whole.prompt), find_clip_seams(whole), whole.events),
        _Row("shots", make(joined, joined.prompt), find_clip_seams(joined), joined.events),
        _Row("rain", rain, find_seams(round(seconds * LATENT_RATE)), None),
    ]


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=32.0, help="of each sound")
    parser.add_argument("--out", type=Path, default=PICTURE)
    add_options(parser, steps=None)
    args = parser.parse_args()
    draw_rows(make_rows(load_pipeline(args), args.seconds, **collect_options(args)), args.out)


if __name__ == "__main__":
    main()

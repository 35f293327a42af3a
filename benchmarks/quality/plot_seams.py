"""Draw the seams between the windows of long sounds.

    python -m benchmarks.quality.plot_seams [--seed 0] [--out docs/images/seams.webp]

Each row is one sound: of drawn shots of hits that are joined by cuts, the exact sound of that clip,
and rain without a picture. Each column is one seam, 2 s to each side of the middle of its overlap,
which is shaded. On a CPU, most of the two to four minutes are for drawing the clip; OpenMP's
threads, which wait for one another, double them where other programs run (`OMP_NUM_THREADS=1`).
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.quality.drawing import FOUND, TRUE, Sound, draw_sound
from benchmarks.quality.seams import TEXTURES, Spans, draw_joined, find_clip_seams, find_seams
from foley.configs import LATENT_RATE, SAMPLE_RATE
from foley.pipeline import FoleyPipeline
from foley.request import GenerationRequest
from foley.types import NoPicture, VideoFrames
from training.judge import detect_onsets

PICTURE = Path(__file__).parents[2] / "docs" / "images" / "seams.webp"
REACH_SECONDS = 2.0
NUM_SEAMS = 3  # of each sound, the last ones
CLIP_SECONDS, RAIN_SECONDS = 16.0, 32.0
_WIDTH, _HEIGHT = 10.0, 1.9  # inches: of the picture, of a row


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
        self.name, self.seams, self.events = name, seams[-NUM_SEAMS:], events
        self._waveform = waveform
        self._found = detect_onsets(waveform)

    def draw(self, wave: Axes, spectrum: Axes, number: int) -> None:
        """Draw one seam."""
        seam = self.seams[number]
        start = sum(seam) / 2 - REACH_SECONDS
        first, count = round(start * SAMPLE_RATE), round(2 * REACH_SECONDS * SAMPLE_RATE)
        sound = Sound(
            name="" if number else self.name,
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
        wave.set_title(f"{sum(seam) / 2:.2f} s", loc="left", fontsize=8)


def draw_rows(rows: list[_Row], path: Path) -> None:
    """Write the picture."""
    figure = Figure(figsize=(_WIDTH, _HEIGHT * len(rows) + 0.6), dpi=90, layout="constrained")
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
    figure.supxlabel("seconds from the middle of the overlap", fontsize=9)
    figure.suptitle(
        "shaded: the overlap of two windows; green dashed: hits that are seen; "
        "orange: detected onsets",
        x=0.01,
        ha="left",
        fontsize=9,
    )
    figure.savefig(path, pil_kwargs={"quality": 85, "method": 6})


def make_rows(pipeline: FoleyPipeline, quality: str, seed: int) -> list[_Row]:
    """Generate the sounds.

    Args:
        pipeline: the model.
        quality: of the requests.
        seed: of the noise.
    """

    def make(frames: VideoFrames | NoPicture, prompt: str) -> Tensor:
        request = GenerationRequest.parse(prompt=prompt, seed=seed, quality=quality)
        return pipeline.generate(frames, request).waveforms[0, 0]

    (clip,) = draw_joined(pipeline, 1, CLIP_SECONDS, "tap")
    seams = find_clip_seams(clip)
    rain = make(NoPicture(duration_seconds=RAIN_SECONDS), TEXTURES["rain"])
    return [
        _Row("hits", make(clip.frames, clip.prompt), seams, clip.events),
        _Row("exact", clip.sound, seams, clip.events),
        _Row("rain", rain, find_seams(round(RAIN_SECONDS * LATENT_RATE)), None),
    ]


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quality", default="fast")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--out", type=Path, default=PICTURE)
    args = parser.parse_args()
    pipeline = FoleyPipeline.from_preset("tiny", "auto")
    draw_rows(make_rows(pipeline, args.quality, args.seed), args.out)


if __name__ == "__main__":
    main()

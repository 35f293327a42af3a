"""Drawn clips in styles that no training uses: how well onsets are found in each.

    python -m training.foreign --state FOLDER --out FILE [--count 32] [--seconds 3 5 8]

Three styles restyle the finished pictures of held-out drawn clips, and the fourth is
`scene.UNSEEN`, pencil on paper. Nothing in training draws like any of them. Each clip is generated
with three noises, by default as served.
"""

# F pictures, H = W = 224

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from foley.plans import SamplingPlan
from training import judge
from training.clips import Batch
from training.evaluate import (
    AS_SERVED,
    HELD_OUT_SEED,
    Sampling,
    TrainedModel,
    add_quality,
    choose_plan,
    generate_sounds,
    load_trained,
    make_held_out,
    match_figures,
    score,
)
from training.scene import PLAIN, UNSEEN, Style
from training.settings import set_up, write_record

NOISE_SEEDS = (0, 1, 2)
BLOCK = 4  # pixels a side
_AT_ONCE = 256


def pixelate(pictures: Tensor) -> Tensor:
    """Old computer graphics: blocks of 4 pixels a side in 27 colours.

    Args:
        pictures: 0 to 1, [F, 3, H, W]; so is the result.
    """
    blocks = F.avg_pool2d(pictures, BLOCK)
    return F.interpolate((2 * blocks).round() / 2, scale_factor=BLOCK, mode="nearest")


def trace_contours(pictures: Tensor) -> Tensor:
    """Bright outlines on dark blue: how strongly brightness changes, without areas or colours.

    Args:
        pictures: 0 to 1, [F, 3, H, W]; so is the result.
    """
    grey = F.avg_pool2d(pictures.mean(1, keepdim=True), 5, 1, 2, count_include_pad=False)
    across = F.pad(grey[..., 2:] - grey[..., :-2], (1, 1))
    down = F.pad(grey[..., 2:, :] - grey[..., :-2, :], (0, 0, 1, 1))
    line = (torch.hypot(across, down) / 0.08 - 0.25).clamp(0, 1)
    dark = pictures.new_tensor((0.05, 0.08, 0.2))[:, None, None]
    bright = pictures.new_tensor((1.0, 0.95, 0.7))[:, None, None]
    return dark + line * (bright - dark)


def print_halftone(pictures: Tensor) -> Tensor:
    """A newspaper: black dots on paper, larger where it is darker, in rows at 45 degrees.

    Args:
        pictures: 0 to 1, [F, 3, H, W]; so is the result.
    """
    grey = F.avg_pool2d(pictures.mean(1, keepdim=True), 3, 1, 1, count_include_pad=False)
    place = torch.arange(grey.shape[-1], device=pictures.device) * (math.pi / BLOCK)
    turned, other = place[:, None] + place[None], place[:, None] - place[None]
    screen = 0.5 + 0.25 * (torch.cos(turned) + torch.cos(other))
    ink = (0.5 + 3 * (screen - grey)).clamp(0, 1)
    return (0.95 - 0.85 * ink).expand(-1, 3, -1, -1)


def keep(pictures: Tensor) -> Tensor:
    """The pictures as they are."""
    return pictures


Restyle = Callable[[Tensor], Tensor]
STYLES: dict[str, tuple[Style, Restyle]] = {
    "pencil": (UNSEEN, keep),
    "pixels": (PLAIN, pixelate),
    "contours": (PLAIN, trace_contours),
    "halftone": (PLAIN, print_halftone),
}


def restyle_batch(batch: Batch, restyle: Restyle) -> Batch:
    """The batch with its pictures drawn in another style."""
    pictures = batch.pictures()
    parts = [
        (restyle(part.float() / 255).clamp(0, 1) * 255).round().to(torch.uint8)
        for part in pictures.flatten(0, 1).split(_AT_ONCE)
    ]
    return replace(batch, drawn=torch.cat(parts).unflatten(0, pictures.shape[:2]))


class StyleMatches:
    """The counts of one style: of each noise, exact sounds, and another clip's sync features."""

    def __init__(self, plan: SamplingPlan) -> None:
        self._plan = plan
        self.noises = {seed: judge.Match() for seed in NOISE_SEEDS}
        self.exact, self.other_clip = judge.Match(), judge.Match()

    def add(self, parts: TrainedModel, batch: Batch) -> None:
        """Generate the sounds of restyled clips, and count their onsets."""
        how = Sampling(self._plan)
        for seed, match in self.noises.items():
            score(batch, generate_sounds(parts, batch, replace(how, seed=seed)), match)
        score(batch, batch.waveform(), self.exact)
        score(batch, generate_sounds(parts, batch, how, shuffled=True), self.other_clip)

    def figures(self) -> dict[str, object]:
        """F1 as the mean of the noises, and all figures."""
        mean = sum(match.f1 for match in self.noises.values()) / len(self.noises)
        return {
            "f1": round(mean, 4),
            "events": self.exact.truth,
            **{f"seed_{seed}": match_figures(match) for seed, match in self.noises.items()},
            "exact": match_figures(self.exact),
            "other_clip": match_figures(self.other_clip),
        }


def measure_styles(
    parts: TrainedModel,
    names: Sequence[str],
    lengths: Sequence[float],
    count: int,
    plan: SamplingPlan = AS_SERVED,
) -> dict[str, dict[str, object]]:
    """The figures of each style.

    Args:
        parts: the model.
        names: of `STYLES`.
        lengths: of the clips, in seconds.
        count: clips of each length.
        plan: of the sampler.
    """
    matches = {name: StyleMatches(plan) for name in names}
    # The pictures that several styles begin with are drawn once.
    for base in dict.fromkeys(STYLES[name][0] for name in names):
        for seconds in lengths:
            for batch in make_held_out(parts, seconds, count, base, quiet=True):
                drawn = replace(batch, drawn=batch.pictures())
                for name, match in matches.items():
                    if STYLES[name][0] == base:
                        match.add(parts, restyle_batch(drawn, STYLES[name][1]))
                        print(name, match.figures(), flush=True)
    return {name: match.figures() for name, match in matches.items()}


def main() -> None:
    """Measure a state in each style and write a record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=32, help="clips of each length")
    parser.add_argument("--seconds", type=float, nargs="+", default=(3.0, 5.0, 8.0))
    add_quality(parser)
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=tuple(STYLES))
    args = parser.parse_args()
    plan = choose_plan(args)
    parts = load_trained(args.state, set_up(9))
    figures = measure_styles(parts, args.styles, args.seconds, args.count, plan)
    write_record(
        args.out,
        what="foreign_styles",
        seed=HELD_OUT_SEED,
        plan=plan._asdict(),
        seconds=list(args.seconds),
        clips_of_each_length=args.count,
        styles=figures,
    )


if __name__ == "__main__":
    main()

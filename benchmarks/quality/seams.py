"""Measure whether the seams between the windows of long sounds are heard.

    python -m benchmarks.quality.seams [--clips 1] [--seconds 30] [--record]

Long drawn clips of hits are compared with the same number of drawn clips of 8 s. `near` and
`elsewhere` are the events, and the onsets, within 1 s of the middle of an overlap and the others.
Textures are long sounds of prompts alone. `dip_db` is the level in the overlaps minus the level
elsewhere, `drift_db` that of the last 5 s minus that of the first 5 s.
"""

import argparse
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from benchmarks.quality.held_out import generate_clips
from benchmarks.quality.sync import add_options, add_record_options, report_figures
from foley.configs import LATENT_RATE, SAMPLE_RATE
from foley.pipeline import FoleyPipeline
from foley.request import GenerationRequest
from foley.types import NoPicture
from foley.windows import plan_windows
from training import judge
from training.scene import MAX_HITS

ACTIONS = ("bounce", "tap", "strike")
TEXTURES = ("steady rain", "wind", "a stream")
SHORT_SECONDS = 8.0
NEAR_SECONDS = 1.0
FIRST_CLIP = 700  # of the generator
_FRAME = SAMPLE_RATE // 10


def find_seams(seconds: float) -> list[tuple[float, float]]:
    """Return where windows overlap, from and to, in seconds.

    Args:
        seconds: length of the sound.
    """
    windows = plan_windows(round(seconds * LATENT_RATE))
    return [(b.start / LATENT_RATE, a.stop / LATENT_RATE) for a, b in pairwise(windows)]


def measure_hits(
    pipeline: FoleyPipeline, num_clips: int, seconds: float, seed: int, **options: Any
) -> dict[str, Any]:
    """Return the figures of onsets.

    Args:
        pipeline: the model.
        num_clips: of each action.
        seconds: length of each.
        seed: of the first clip's noise; the others follow.
        options: of the request.
    """
    middles = [(start + stop) / 2 for start, stop in find_seams(seconds)]
    whole, near, elsewhere = judge.Match(), judge.Match(), judge.Match()
    clicks, number = 0, 0
    for action in ACTIONS:
        for clip in generate_clips(
            pipeline.preset, num_clips, seconds, first=FIRST_CLIP, action=action, quiet=True
        ):
            request = GenerationRequest.parse(prompt=clip.prompt, seed=seed + number, **options)
            sound = pipeline.generate(clip.frames, request).waveforms[0, 0]
            number += 1
            if len(clip.events) >= MAX_HITS - 1:  # the generator left hits out
                continue
            found = judge.detect_onsets(sound)
            whole.add(found, clip.events, clip.unscored)
            clicks += judge.count_clicks(sound)
            for match, is_near in ((near, True), (elsewhere, False)):
                match.add(
                    _choose(found, middles, is_near=is_near),
                    _choose(clip.events, middles, is_near=is_near),
                    clip.unscored,
                )
            print(f"{action} {seconds:g} s: {whole}", flush=True)
    places = {"all": whole, "near": near, "elsewhere": elsewhere}
    return {
        "f1": {name: round(m.f1, 4) for name, m in places.items() if m.truth},
        "false_onsets": {name: m.found - m.hits for name, m in places.items()},
        "num_events": {name: m.truth for name, m in places.items()},
        "clicks_a_clip": round(clicks / max(number, 1), 2),
        "num_clips": number,
    }


def measure_textures(
    pipeline: FoleyPipeline, seconds: float, seed: int, **options: Any
) -> dict[str, Any]:
    """Return the figures of steady sounds, by prompt.

    Args:
        pipeline: the model.
        seconds: length of each.
        seed: of the noise.
        options: of the request.
    """
    figures = {}
    for prompt in TEXTURES:
        request = GenerationRequest.parse(prompt=prompt, seed=seed, **options)
        made = pipeline.generate(NoPicture(duration_seconds=seconds), request)
        levels = measure_levels(made.waveforms[0, 0])
        in_overlap = torch.zeros(len(levels), dtype=torch.bool)
        for start, stop in find_seams(seconds):
            in_overlap[round(10 * start) : round(10 * stop)] = True
        figures[prompt] = {
            "dip_db": round(float(levels[in_overlap].mean() - levels[~in_overlap].mean()), 2),
            "drift_db": round(float(levels[-50:].mean() - levels[:50].mean()), 2),
            "level_db": round(float(levels.mean()), 1),
            "clicks": judge.count_clicks(made.waveforms[0, 0]),
        }
        print(prompt, figures[prompt], flush=True)
    return figures


def measure_levels(waveform: Tensor) -> Tensor:
    """Return the level of each tenth of a second in dB of full scale.

    Args:
        waveform: [S], 48 kHz.
    """
    frames = waveform[: len(waveform) // _FRAME * _FRAME].view(-1, _FRAME)
    return 10 * frames.square().mean(1).add(1e-9).log10()


def _choose(times: list[float], middles: list[float], *, is_near: bool) -> list[float]:
    return [t for t in times if any(abs(t - m) < NEAR_SECONDS for m in middles) == is_near]


def main() -> None:
    """Measure a preset."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=1, help="of each action")
    parser.add_argument("--seconds", type=float, default=30.0, help="of a long clip, over 15")
    add_record_options(parser)
    add_options(parser, steps=None)
    args = parser.parse_args()

    def measure(pipeline: FoleyPipeline, seed: int, **options: Any) -> dict[str, Any]:
        return {
            "textures": measure_textures(pipeline, args.seconds, seed, **options),
            "short": measure_hits(pipeline, args.clips, SHORT_SECONDS, seed, **options),
            "long": measure_hits(pipeline, args.clips, args.seconds, seed, **options),
        }

    report_figures(args, "seams", args.seconds, measure)


if __name__ == "__main__":
    main()

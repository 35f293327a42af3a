"""Whether sound follows motion, for clips of which nobody knows the events: the two real ones.

    python -m benchmarks.quality.motion [CLIP ...] [--out OUT] [--seeds 4] [--record]

Two rank correlations over frames of 40 ms: the sound's level with how much the picture moves, and
the sound's rises with the motion's. Beside them stand two controls: the same sound shifted in time
(against all shifts of at least half a second; `share_below` is the share that scores lower, 0.5 by
chance), and the sound made for the same picture run backwards. Cuts count as motion, as they do for
the model. --out also draws the clips. The last line is one JSON object.
"""

# n frames at 25 fps, S samples

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.quality.drawing import draw
from benchmarks.quality.pictures import heard
from benchmarks.quality.sync import add_options, load, options_of
from benchmarks.records import ROOT, environment, finish
from foley.configs import SAMPLE_RATE, SYNC_FPS
from foley.media.mux import write_video
from foley.pipeline import FoleyPipeline
from foley.types import VideoFrames

# What a visitor might ask of each, in words that `tiny` knows.
PROMPTS = {"bigbuckbunny.mp4": "soft taps and wind", "bikes.mp4": "wind blowing"}
SAMPLES = SAMPLE_RATE // SYNC_FPS
LEAST_SHIFT = SYNC_FPS // 2  # frames
FLOOR_DB = -60.0

Curve = NDArray[np.float64]


def motion_of(frames: Tensor) -> Curve:
    """How much each frame differs from the one before, in dB of full scale [n]; the first is 0."""
    grey = frames.float().mean(-1) / 255  # [n, H, W]
    change = (grey[1:] - grey[:-1]).abs().mean((1, 2)).double()
    return np.concatenate(([0.0], 20 * np.log10(change.numpy() + 1e-4) + 80))


def level_of(waveform: Tensor) -> Curve:
    """Levels in dB of a sound [S] in the frames of the picture, at least FLOOR_DB."""
    count = len(waveform) // SAMPLES
    power = waveform[: count * SAMPLES].double().view(count, SAMPLES).square().mean(1)
    return np.maximum(10 * np.log10(power.numpy() + 1e-12), FLOOR_DB)


def rises(curve: Curve) -> Curve:
    """By how much a curve rises from frame to frame; falls count as nothing."""
    return np.maximum(np.diff(curve, prepend=curve[0]), 0.0)


def rank_correlation(first: Curve, second: Curve) -> float:
    """Spearman's: of the ranks, equal values sharing theirs; 0 where one does not vary."""
    ranks = [_ranks(values) for values in (first, second)]
    if min(rank.std() for rank in ranks) == 0:
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(values: Curve) -> Curve:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends: Curve = np.cumsum(counts).astype(float)
    return (ends - (counts - 1) / 2)[inverse]


def against_shifts(moved: Curve, sounded: Curve) -> dict[str, float]:
    """The correlation, and where it lies among those with the sound shifted around in time."""
    own = rank_correlation(moved, sounded)
    shifts = range(LEAST_SHIFT, len(moved) - LEAST_SHIFT)
    others = [rank_correlation(moved, np.roll(sounded, shift)) for shift in shifts]
    return {
        "correlation": own,
        "shifted_mean": float(np.mean(others)),
        "share_below": float(np.mean([other < own for other in others])),
    }


def backwards(frames: VideoFrames) -> VideoFrames:
    """The same picture, its end first."""
    return replace(frames, visual=frames.visual.flip(0), sync=frames.sync.flip(0))


def follow(
    pipeline: FoleyPipeline, frames: VideoFrames, seeds: range, **options: Any
) -> tuple[dict[str, dict[str, float]], Tensor]:
    """Means over the seeds of both measures and their controls, and the first sound [S]."""
    moved = motion_of(frames.sync)
    found: dict[str, list[dict[str, float]]] = {"level": [], "rises": []}
    first = None
    for seed in seeds:
        sound = pipeline(frames, seed=seed, **options).waveforms[0, 0]
        other = pipeline(backwards(frames), seed=seed, **options).waveforms[0, 0]
        first = sound if first is None else first
        count = min(len(moved), len(sound) // SAMPLES)
        picture = moved[:count]
        for name, change in (("level", lambda curve: curve), ("rises", rises)):
            own, control = (change(level_of(w)[:count]) for w in (sound, other))
            figures = against_shifts(change(picture), own)
            figures["backwards"] = rank_correlation(change(picture), control)
            found[name].append(figures)
    assert first is not None
    return {
        name: {key: round(float(np.mean([f[key] for f in rows])), 4) for key in rows[0]}
        for name, rows in found.items()
    }, first


def main() -> None:
    """Measure the clips named, or the examples."""
    parser = argparse.ArgumentParser(description=__doc__)
    examples = sorted((ROOT / "examples").glob("*.mp4"))
    parser.add_argument("clips", type=Path, nargs="*", default=examples)
    parser.add_argument("--out", type=Path, help="also write the clips with sound, and pictures")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--prompt", help="for all; without it, one for each example")
    parser.add_argument("--hardware", default="cpu", help="short name for the record's file")
    parser.add_argument("--record", action="store_true")
    add_options(parser, steps=None)
    args = parser.parse_args()
    pipeline, options = load(args), options_of(args)
    seeds = range(options.pop("seed"), args.seed + args.seeds)
    rows = {}
    for clip in args.clips:
        prompt = args.prompt if args.prompt is not None else PROMPTS.get(clip.name, "")
        frames = pipeline.decode_video(clip, trim=True)
        figures, sound = follow(pipeline, frames, seeds, prompt=prompt, **options)
        rows[clip.name] = {"prompt": prompt, **figures}
        print(clip.name, rows[clip.name], flush=True)
        if args.out is not None:
            args.out.mkdir(parents=True, exist_ok=True)
            made = heard("generated", sound, SAMPLE_RATE)
            title = f"{clip.name}   {prompt!r}   seed {seeds[0]}"
            draw(clip, [made], args.out / f"{clip.stem}.png", title=title)
            stop = len(sound) / SAMPLE_RATE if frames.trimmed else None
            write_video(clip, sound[None], args.out / f"{clip.stem}.mp4", stop_seconds=stop)
    record = environment() | {
        "what": "motion",
        "weights": pipeline.source,
        "num_seeds": len(seeds),
        **options,
        "clips": rows,
    }
    finish(record, hardware=args.hardware, write=args.record)


if __name__ == "__main__":
    main()

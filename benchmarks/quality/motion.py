"""Measure whether sound follows motion, for clips without known events.

    python -m benchmarks.quality.motion [CLIP ...] [--out OUT] [--seeds 4] [--record]

The figures are two rank correlations over frames of 40 ms: the sound's level with the amount of
motion, and the rises of the level with the rises of the motion. There are two controls. The first
is the same sound shifted in time by every shift of at least half a second; `share_below` is the
share of the shifts with a lower correlation, 0.5 by chance. The second is the sound that is
generated for the reversed clip. Cuts count as motion. With --out the clips are also plotted.
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
from benchmarks.quality.plot_clips import make_sound
from benchmarks.quality.sync import add_options, collect_options, load_pipeline
from benchmarks.records import ROOT, environment, finish
from foley.configs import SAMPLE_RATE, SYNC_FPS
from foley.media.mux import write_video
from foley.media.source import MediaLimits
from foley.pipeline import FoleyPipeline
from foley.types import VideoFrames

# Prompts for the example clips, in words that `tiny` knows.
PROMPTS = {"bigbuckbunny.mp4": "soft taps and wind", "bikes.mp4": "wind blowing"}
SAMPLES = SAMPLE_RATE // SYNC_FPS
MIN_SHIFT = SYNC_FPS // 2  # frames
FLOOR_DB = -60.0

Curve = NDArray[np.float64]


def measure_motion(frames: Tensor) -> Curve:
    """The difference of each frame from the previous one, in dB [n]; 0 for the first.

    Args:
        frames: uint8 [n, H, W, 3].
    """
    grey = frames.float().mean(-1) / 255  # [n, H, W]
    change = (grey[1:] - grey[:-1]).abs().mean((1, 2)).double()
    levels: Curve = np.concatenate(([0.0], 20 * np.log10(change.numpy() + 1e-4) + 80))
    return levels


def measure_level(waveform: Tensor) -> Curve:
    """The level of a sound [S] in each frame of the picture, in dB, at least FLOOR_DB."""
    count = len(waveform) // SAMPLES
    power = waveform[: count * SAMPLES].double().view(count, SAMPLES).square().mean(1)
    levels: Curve = np.maximum(10 * np.log10(power.numpy() + 1e-12), FLOOR_DB)
    return levels


def keep_rises(curve: Curve) -> Curve:
    """The rise of a curve from frame to frame; 0 where it falls."""
    rises: Curve = np.maximum(np.diff(curve, prepend=curve[0]), 0.0)
    return rises


def rank_correlation(first: Curve, second: Curve) -> float:
    """Spearman's rank correlation of two series; 0 if one of them is constant."""
    one, two = _ranks(first), _ranks(second)
    if min(one.std(), two.std()) == 0:
        return 0.0
    return float(np.corrcoef(one, two)[0, 1])


def _ranks(values: Curve) -> Curve:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends: Curve = np.cumsum(counts).astype(float)
    ranks: Curve = (ends - (counts - 1) / 2)[inverse]
    return ranks


def compare_with_shifts(moved: Curve, sounded: Curve) -> dict[str, float]:
    """The rank correlation, and its place among those with the sound shifted cyclically.

    Args:
        moved: motion of each frame.
        sounded: level of each frame, as many.
    """
    own = rank_correlation(moved, sounded)
    shifts = range(MIN_SHIFT, len(moved) - MIN_SHIFT)
    others = [rank_correlation(moved, np.roll(sounded, shift)) for shift in shifts]
    return {
        "correlation": own,
        "shifted_mean": float(np.mean(others)),
        "share_below": float(np.mean([other < own for other in others])),
    }


def reverse(frames: VideoFrames) -> VideoFrames:
    """The frames in reverse order."""
    return replace(frames, visual=frames.visual.flip(0), sync=frames.sync.flip(0))


def measure_clip(
    pipeline: FoleyPipeline, frames: VideoFrames, seeds: range, **options: Any
) -> tuple[dict[str, dict[str, float]], Tensor]:
    """The means of the figures over the seeds, and the first sound [S].

    Args:
        pipeline: the model.
        frames: of the clip.
        seeds: of the noise.
        options: of the pipeline's call.
    """
    moved = measure_motion(frames.sync)
    found: dict[str, list[dict[str, float]]] = {"level": [], "rises": []}
    first = None
    for seed in seeds:
        sound = pipeline(frames, seed=seed, **options).waveforms[0, 0]
        other = pipeline(reverse(frames), seed=seed, **options).waveforms[0, 0]
        first = sound if first is None else first
        count = min(len(moved), len(sound) // SAMPLES)
        picture = moved[:count]
        for name, change in (("level", lambda curve: curve), ("rises", keep_rises)):
            own, control = (change(measure_level(w)[:count]) for w in (sound, other))
            figures = compare_with_shifts(change(picture), own)
            figures["backwards"] = rank_correlation(change(picture), control)
            found[name].append(figures)
    assert first is not None
    return {
        name: {key: round(float(np.mean([f[key] for f in rows])), 4) for key in rows[0]}
        for name, rows in found.items()
    }, first


def main() -> None:
    """Measure the named clips, or the examples."""
    parser = argparse.ArgumentParser(description=__doc__)
    examples = sorted((ROOT / "examples").glob("*.mp4"))
    parser.add_argument("clips", type=Path, nargs="*", default=examples)
    parser.add_argument("--out", type=Path, help="folder for clips with sound and for plots")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--prompt", help="for all clips; by default one for each example")
    parser.add_argument("--hardware", default="cpu", help="short name for the record's file")
    parser.add_argument("--record", action="store_true")
    add_options(parser, steps=None)
    args = parser.parse_args()
    pipeline, options = load_pipeline(args), collect_options(args)
    seeds = range(options.pop("seed"), args.seed + args.seeds)
    rows = {}
    for clip in args.clips:
        prompt = args.prompt if args.prompt is not None else PROMPTS.get(clip.name, "")
        frames = pipeline.decode_video(clip, trim=True, limits=MediaLimits(max_seconds=15))
        figures, sound = measure_clip(pipeline, frames, seeds, prompt=prompt, **options)
        rows[clip.name] = {"prompt": prompt, **figures}
        print(clip.name, rows[clip.name], flush=True)
        if args.out is not None:
            args.out.mkdir(parents=True, exist_ok=True)
            drawn = make_sound("generated", sound, SAMPLE_RATE)
            title = f"{clip.name}   {prompt!r}   seed {seeds[0]}"
            draw(clip, [drawn], args.out / f"{clip.stem}.png", title=title)
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

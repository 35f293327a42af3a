"""Measure whether the pause at a clip's end stays quiet, or a sound swells there without a hit.

    python -m benchmarks.quality.pauses [CLIP] [--prompts "wind blowing" ...] [--seeds 3] [--record]

The level of each 50 ms is measured, at least FLOOR_DB, which is inaudible. Around an onset, which
is heard as a hit, no level counts: from 0.1 s before it to 0.6 s after it, the rest is the clip's
pauses. `end_db` is the loudest moment of the pauses in the last second, `pauses_db` the median of
the pauses before it. `swell_db` is the most by which the level rises in the last second without an
onset: after a hit it may only fall, so its ringing counts nothing. `hits_at_end` is the number of
onsets in that second.
"""

# S samples, T moments of 50 ms

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.quality.sync import (
    add_options,
    add_record_options,
    collect_options,
    load_pipeline,
)
from benchmarks.records import ROOT, environment, finish
from foley.configs import SAMPLE_RATE
from foley.media.source import MediaLimits
from training.judge import detect_onsets

CLIP = ROOT / "examples" / "bigbuckbunny.mp4"
PROMPTS = ("", "soft taps and wind", "dripping water", "wind blowing", "footsteps on grass")
FLOOR_DB = -60.0
SWELL_DB = 6.0  # a rise that is heard
_MOMENT = SAMPLE_RATE // 20
_BEFORE, _AFTER = 2, 12  # moments around an onset that do not count
_END = 20  # moments of the last second


def measure_levels(waveform: Tensor) -> Tensor:
    """The level of each 50 ms of a sound [S] in dB, at least `FLOOR_DB`, [T]."""
    count = len(waveform) // _MOMENT
    power = waveform[: count * _MOMENT].double().view(count, _MOMENT).square().mean(1)
    return (10 * torch.log10(power + 1e-12)).clamp_min(FLOOR_DB)


def find_pauses(count: int, onsets: Sequence[float]) -> Tensor:
    """Which moments belong to no hit, bool [T].

    Args:
        count: T.
        onsets: in seconds.
    """
    quiet = torch.ones(count, dtype=torch.bool)
    for onset in onsets:
        at = int(onset * SAMPLE_RATE / _MOMENT)
        quiet[max(at - _BEFORE, 0) : at + _AFTER] = False
    return quiet


def measure_swell(levels: Tensor, onsets: Sequence[float]) -> float:
    """The most by which the level rises in the last second without an onset, in dB.

    Args:
        levels: [T].
        onsets: in seconds.
    """
    near = {
        int(onset * SAMPLE_RATE / _MOMENT) + step
        for onset in onsets
        for step in range(-_BEFORE, _BEFORE + 1)
    }
    lowest, swell = float(levels[-_END]), 0.0
    for moment in range(len(levels) - _END, len(levels)):
        level = float(levels[moment])
        # A hit begins anew what may only fall.
        lowest = level if moment in near else min(lowest, level)
        swell = max(swell, level - lowest)
    return swell


def measure_end(waveform: Tensor) -> dict[str, float | None]:
    """The figures of one sound [S] of at least two seconds; None where it has no such pause."""
    onsets = detect_onsets(waveform)
    levels = measure_levels(waveform)
    quiet = find_pauses(len(levels), onsets)
    before, end = levels[:-_END][quiet[:-_END]], levels[-_END:][quiet[-_END:]]
    return {
        "pauses_db": round(float(before.median()), 1) if len(before) else None,
        "end_db": round(float(end.max()), 1) if len(end) else None,
        "swell_db": round(measure_swell(levels, onsets), 1),
        "hits_at_end": sum(onset >= len(waveform) / SAMPLE_RATE - 1 for onset in onsets),
    }


def main() -> None:
    """Measure a clip."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", type=Path, nargs="?", default=CLIP)
    parser.add_argument("--prompts", nargs="+", default=PROMPTS)
    parser.add_argument("--seeds", type=int, default=3)
    add_record_options(parser)
    add_options(parser, steps=None)
    args = parser.parse_args()
    pipeline, options = load_pipeline(args), collect_options(args)
    seeds = range(options.pop("seed"), args.seed + args.seeds)
    frames = pipeline.decode_video(args.clip, trim=True, limits=MediaLimits(max_seconds=15))
    rows: list[dict[str, Any]] = []
    for prompt in args.prompts:
        for seed in seeds:
            sound = pipeline(frames, prompt=prompt, seed=seed, **options).waveforms[0, 0].cpu()
            rows.append({"prompt": prompt, "seed": seed, **measure_end(sound)})
            print(rows[-1], flush=True)
    whole = [row for row in rows if None not in row.values()]
    record = environment() | {
        "what": "pauses",
        "weights": pipeline.source,
        "clip": args.clip.name,
        "num_seeds": len(seeds),
        **options,
        "sounds": len(rows),
        "with_pause_at_end": len(whole),
        "pauses_db": median(row["pauses_db"] for row in whole) if whole else None,
        "end_db": max((row["end_db"] for row in whole), default=None),
        "swell_db": max(row["swell_db"] for row in rows),
        "with_swell": sum(row["swell_db"] > SWELL_DB for row in rows),
        "with_hit_at_end": sum(row["hits_at_end"] > 0 for row in rows),
        "rows": rows,
    }
    finish(record, hardware=args.hardware, write=args.record)


if __name__ == "__main__":
    main()

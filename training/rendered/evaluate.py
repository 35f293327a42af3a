"""Measure generated sounds of rendered held-out clips: onsets by kind of scene.

python -m training.rendered.evaluate --state FOLDER --out FILE [--count 48] [--seconds 5]
"""

# B clips, S samples

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch import multiprocessing as mp

from foley.plans import SamplingPlan
from training import judge
from training.clips import Batch
from training.evaluate import (
    AS_SERVED,
    Sampling,
    TrainedModel,
    add_quality,
    choose_plan,
    generate_sounds,
    load_trained,
)
from training.rendered.clip import RenderedClip, list_unscored, make_clip
from training.rendered.stream import collate
from training.settings import set_up, write_record

HELD_OUT_SEED = 911
NOISE_SEEDS = (0, 1, 2)
_AT_ONCE = 12


def make_clips(count: int, seconds: float, *, unseen: bool, processes: int) -> list[RenderedClip]:
    """Return held-out clips, drawn by several processes.

    Args:
        count: clips.
        seconds: length of each, a multiple of 1 / 25.
        unseen: whether shapes and textures are those that training never uses.
        processes: that draw.
    """
    seeds = [(HELD_OUT_SEED, int(unseen), index) for index in range(count)]
    make = partial(make_clip, seconds=seconds, unseen=unseen)
    with mp.get_context("spawn").Pool(processes) as pool:
        return pool.map(make, seeds, chunksize=1)


def score(
    made: Sequence[RenderedClip], sounds: Sequence[Tensor]
) -> tuple[judge.Match, dict[str, judge.Match]]:
    """Return how well the onsets of sounds [S] match the events of clips, in all and by kind.

    An event that cannot be seen, or that a louder one masks, counts neither way; nor does rubbing.
    """
    total: judge.Match = judge.Match()
    kinds: dict[str, judge.Match] = defaultdict(judge.Match)
    for clip, sound in zip(made, sounds, strict=True):
        scored = [event.seconds for event in clip.events if event.scored]
        rest = list_unscored(clip)
        for match in (total, kinds[clip.kind]):
            match.add(judge.detect_onsets(sound), judge.merge_close_events(scored), rest)
    return total, kinds


def _figures(match: judge.Match) -> dict[str, float]:
    return {
        "onset_f1": round(match.f1, 4),
        "precision": round(match.precision, 4),
        "recall": round(match.recall, 4),
        "median_error_ms": round(match.median_error_ms, 2),
        "events": match.truth,
    }


@torch.no_grad()
def measure(
    parts: TrainedModel, made: Sequence[RenderedClip], plan: SamplingPlan = AS_SERVED
) -> dict[str, object]:
    """Return the figures of one set of clips: exact sounds, generated ones, and chance."""
    batches = [collate(made[i : i + _AT_ONCE]) for i in range(0, len(made), _AT_ONCE)]
    exact = [sound for batch in batches for sound in batch.to(parts.device).waveform().cpu()]
    figures: dict[str, object] = {"clips": len(made), "exact": _figures(score(made, exact)[0])}
    by_kind: dict[str, list[float]] = defaultdict(list)
    for seed in NOISE_SEEDS:
        sounds = _generate(parts, batches, plan, seed)
        total, kinds = score(made, sounds)
        figures[f"seed_{seed}"] = _figures(total)
        for kind, match in kinds.items():
            by_kind[kind].append(round(match.f1, 3))
    figures["chance"] = _figures(score(made, [*sounds[1:], sounds[0]])[0])
    figures["by_kind"] = dict(sorted(by_kind.items()))
    return figures


def _generate(
    parts: TrainedModel, batches: Sequence[Batch], plan: SamplingPlan, seed: int
) -> list[Tensor]:
    sounds = []
    for index, batch in enumerate(batches):
        on_device = replace(batch.to(parts.device))
        how = Sampling(plan, seed=100 * seed + index)
        sounds += list(generate_sounds(parts, on_device, how).cpu())
    return sounds


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=48, help="clips of each set")
    parser.add_argument("--seconds", type=float, default=5.12)
    parser.add_argument("--processes", type=int, default=12)
    add_quality(parser)
    args = parser.parse_args()
    plan = choose_plan(args)
    device = set_up(4)
    sets = {
        name: make_clips(
            args.count, args.seconds, unseen=name == "unseen", processes=args.processes
        )
        for name in ("seen", "unseen")
    }
    parts = load_trained(args.state, device)
    write_record(
        args.out,
        what="rendered_quality",
        plan=plan._asdict(),
        seconds_a_clip=args.seconds,
        **{name: measure(parts, made, plan) for name, made in sets.items()},
    )


if __name__ == "__main__":
    main()

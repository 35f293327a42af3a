"""Measure whether cues are heard, and where, on held-out drawn clips of hits.

    python -m benchmarks.quality.cues [--clips 8] [--record]

Each clip is made three times with one seed: without cues or prompt, with two materials asked for in
its two halves, and with one second of a second material in the middle of a general prompt.
`training.judge` says of each hit which material it is. A share is that of the hits with the
material asked for; `f1` is that of the onsets with the events. `taken_for` counts what was heard in
place of what was asked for. Each way is run once before its time counts.

`textures`: without a picture, two steady sounds are asked for in the two halves, all pairs of
`training.text.TEXTURES`. Each half is compared, by the levels of its bands, with sounds that were
made of each prompt alone with other seeds; the share is that of the halves nearest to the one asked
for. The half second around the border does not count. `blend_seconds` is how long the border takes:
the levels of the bands go from those of the first half, 0, to those of the second, 1, and the
median of all pairs, whose halves are as asked, needs so long from 0.1 to 0.9.
"""

import argparse
import itertools
import time
from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.held_out import HELD_OUT_SEED, make_frames
from benchmarks.quality.sync import add_options, add_record_options, report_figures
from foley.configs import SAMPLE_RATE
from foley.pipeline import FoleyPipeline
from training import clips, judge, labels, text
from training.materials import MATERIALS
from training.scene import PLAIN
from training.settings import load_state
from training.unpack import CHECKPOINTS

SECONDS = 4.0
BORDER = SECONDS / 2
MIDDLE = (1.5, 2.5)  # of the short cue
NEAR_SECONDS = 0.5  # of the border
FIRST_CLIP = 500  # of the generator; the method was chosen on clips before it
ACTIONS = ("bounce", "tap", "strike")
NAMES = ("plain", "halves", "middle")
TEXTURES = tuple(words[0] for words in text.TEXTURES.values())
REFERENCE_SEEDS = (1000, 1001, 1002)
UNSURE_SECONDS = 0.25  # on each side of the border


def make_options(name: str, one: str, other: str) -> dict[str, Any]:
    """Return the prompt and the cues of one of `NAMES`.

    Args:
        name: of the way.
        one: prompt of the first half, and around the middle.
        other: prompt of the second half, and of the middle.
    """
    if name == "plain":
        return {}
    first = {"start_seconds": 0, "stop_seconds": BORDER, "prompt": one}
    second = {"start_seconds": BORDER, "stop_seconds": SECONDS, "prompt": other}
    middle = {"start_seconds": MIDDLE[0], "stop_seconds": MIDDLE[1], "prompt": other}
    return {"prompt": one, "cues": [first, second] if name == "halves" else [middle]}


def measure(pipeline: FoleyPipeline, num_clips: int, seed: int, **options: Any) -> dict[str, Any]:
    """Return the figures.

    Args:
        pipeline: the model.
        num_clips: of each action.
        seed: of the first clip's noise; the others follow.
        options: of the pipeline's call.
    """
    materials = judge.MaterialJudge().eval()
    materials.load_state_dict(load_state(CHECKPOINTS / "judge.safetensors"))
    rng = np.random.default_rng(seed + FIRST_CLIP)
    counts = Counter[tuple[str, bool]]()
    taken = Counter[str]()
    matches = {name: judge.Match() for name in NAMES}
    seconds = dict.fromkeys(NAMES, 0.0)
    numbers = [(action, i) for i in range(num_clips) for action in ACTIONS]
    for number, (action, index) in enumerate(numbers):
        batch = clips.make_batch(
            HELD_OUT_SEED, FIRST_CLIP + index, 1, SECONDS, PLAIN, action=action, quiet=True
        )
        hits = batch.hits["seconds"].tolist()
        frames = make_frames(batch.pictures()[0], pipeline.preset)
        seen = {int(m) for m in batch.hits["material"]}
        pair = rng.choice([m for m in range(len(MATERIALS)) if m not in seen], 2, replace=False)
        prompts = [text.name_material(rng, MATERIALS[m]) for m in pair]
        turn = number % len(NAMES)  # for the times: none is always last
        if number == 0:
            for name in NAMES:
                pipeline(frames, **make_options(name, *prompts), seed=seed, **options)
        for name in NAMES[turn:] + NAMES[:turn]:
            start = time.perf_counter()
            made = pipeline(frames, **make_options(name, *prompts), seed=seed + number, **options)
            seconds[name] += time.perf_counter() - start
            sound = made.waveforms[0, 0]
            matches[name].add(
                judge.detect_onsets(sound),
                judge.merge_close_events(hits),
                labels.find_shoves(batch)[0],
            )
            if not hits:
                continue
            with torch.inference_mode():
                windows = judge.cut_hit_windows(
                    sound[None], torch.zeros(len(hits), dtype=torch.long), torch.tensor(hits)
                )
                heard = materials(materials.features(windows)).argmax(1).tolist()
            for when, what in zip(hits, heard, strict=True):
                for place, wanted in _ask(name, when, pair.tolist()):
                    counts[place, what == wanted] += 1
                    if what != wanted and name != "plain":
                        taken[f"{place}: {MATERIALS[wanted]} taken for {MATERIALS[what]}"] += 1
        print(number + 1, dict(counts), flush=True)
    places = sorted({place for place, _ in counts})
    totals = {place: counts[place, True] + counts[place, False] for place in places}
    return {
        "asked": {place: round(counts[place, True] / totals[place], 4) for place in places},
        "hits": totals,
        "taken_for": dict(taken.most_common()),
        "f1": {name: round(match.f1, 4) for name, match in matches.items()},
        "seconds_per_clip": {name: round(s / len(numbers), 3) for name, s in seconds.items()},
        "num_clips": len(numbers),
        "chance": round(1 / len(MATERIALS), 4),
        "textures": measure_textures(pipeline, seed, **options),
    }


def measure_textures(pipeline: FoleyPipeline, seed: int, **options: Any) -> dict[str, Any]:
    """Return the share of halves of sounds without a picture that are the texture asked for.

    Args:
        pipeline: the model.
        seed: of the first sound's noise; the others follow.
        options: of the pipeline's call.
    """
    count = round((BORDER - UNSURE_SECONDS) * SAMPLE_RATE)

    def make(prompt: str, number: int, **more: Any) -> Tensor:
        made = pipeline(
            None, prompt, duration_seconds=SECONDS, seed=seed + number, **more, **options
        )
        sound: Tensor = made.waveforms[0]
        return sound

    def describe(sound: Tensor) -> Tensor:
        return torch.cat([describe_bands(part) for part in (sound[:, :count], sound[:, -count:])])

    references = torch.stack(
        [
            torch.cat([describe(make(prompt, number)) for number in REFERENCE_SEEDS]).mean(0)
            for prompt in TEXTURES
        ]
    )
    right, ways = [], []
    for number, (one, other) in enumerate(itertools.permutations(range(len(TEXTURES)), 2)):
        cues = make_options("halves", TEXTURES[one], TEXTURES[other])
        sound = make(TEXTURES[one], number, cues=cues["cues"])
        halves = describe(sound)
        nearest = torch.cdist(halves, references).argmin(1).tolist()
        right += [nearest[0] == one, nearest[1] == other]
        if all(right[-2:]):
            ways.append(follow_way(sound[0]))
    return {
        "asked": round(sum(right) / len(right), 4),
        "num_halves": len(right),
        "chance": round(1 / len(TEXTURES), 4),
        "blend_seconds": _measure_blend(torch.stack(ways)) if ways else None,
    }


def describe_bands(sound: Tensor) -> Tensor:
    """Return the levels of bands over their mean, and their spread, of a sound [1, S]: [1, 96]."""
    levels, spread = judge.band_levels(sound).chunk(2, dim=1)
    return torch.cat([levels - levels.mean(1, keepdim=True), spread], dim=1)


def follow_way(sound: Tensor) -> Tensor:
    """Return how far a sound [S] is from its first half, 0, to its second, 1, every 10 ms."""
    levels = judge.spectrum_db(sound)
    frames = levels.shape[1]
    near = round(frames * NEAR_SECONDS / SECONDS)
    first = levels[:, near : frames // 2 - near].mean(1)
    way = levels[:, frames // 2 + near : -near].mean(1) - first
    return (levels - first[:, None]).T @ way / way.square().sum()


def _measure_blend(ways: Tensor) -> float:
    """Return the seconds from 0.1 to 0.9 of the median of ways [N, t]."""
    middle = ways.median(0).values
    frames = len(middle)
    near = slice(round(frames * (BORDER - NEAR_SECONDS) / SECONDS), None)
    passed = [int((middle[near] > level).nonzero()[0]) for level in (0.1, 0.9)]
    return round((passed[1] - passed[0]) * SECONDS / frames, 2)


def _ask(name: str, when: float, pair: list[int]) -> list[tuple[str, int]]:
    """Return for a hit the places that count it, and the material asked for there."""
    half = "first_half" if when < BORDER else "second_half"
    wanted = pair[half == "second_half"]
    if name == "plain":
        return [(f"plain_{half}", wanted)]
    if name == "middle":
        is_inside = MIDDLE[0] <= when < MIDDLE[1]
        return [("middle_inside" if is_inside else "middle_outside", pair[is_inside])]
    places = [(half, wanted)]
    if abs(when - BORDER) < NEAR_SECONDS:
        places.append(("before_border" if when < BORDER else "after_border", wanted))
    return places


def main() -> None:
    """Measure a preset."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=8, help="of each action")
    add_record_options(parser)
    add_options(parser, steps=None)
    args = parser.parse_args()
    report_figures(args, "cues", SECONDS, partial(measure, num_clips=args.clips))


if __name__ == "__main__":
    main()

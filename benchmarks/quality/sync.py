"""Measure how well generated sounds match the events of a folder of clips.

    python -m benchmarks.quality.sync DIR [--seeds 3] [--steps 20] [--solver euler] ...

DIR contains NAME.mp4 and NAME.json: {"events": [{"time": seconds}, ...], "prompt": "..."}. The
optional list "unscored" has the form of "events": an onset at one of these times that matches no
event is not counted. The last line is one JSON object with f1, precision, recall and
median_error_ms, over all seeds. Its "chance" is the F1 of the same sounds against the events of
another time: those of the clip, shifted in a circle by eight shifts of at least half a second. Its
"exact" is the F1 of the sounds in NAME.wav, where there are such files.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.records import environment, finish
from foley.pipeline import FoleyPipeline
from foley.plans import QUALITIES, Solver
from foley.request import GenerationRequest
from runners.page.plots import read_sound
from training.judge import Match, detect_onsets, merge_close_events

NUM_SHIFTS = 8
LEAST_SHIFT_SECONDS = 0.5


def find_labelled_clips(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The clips of a folder that have a description, with it, in order of name.

    Raises:
        SystemExit: there is none.
    """
    pairs = []
    for clip in sorted(folder.glob("*.mp4")):
        description = clip.with_suffix(".json")
        if description.is_file():
            pairs.append((clip, json.loads(description.read_text())))
    if not pairs:
        raise SystemExit(f"{folder} holds no NAME.mp4 with a NAME.json")
    return pairs


def add_shifted(
    match: Match, found: list[float], truth: list[float], unscored: list[float], duration: float
) -> None:
    """Add a sound's onsets to a match with the events of other times, which is what chance gives.

    Args:
        match: to add to.
        found: onsets, in seconds; so are the events and the unscored times.
        truth: events.
        unscored: times at which an onset counts neither way.
        duration: of the sound, in seconds.
    """
    if duration <= 2 * LEAST_SHIFT_SECONDS:
        return
    for index in range(NUM_SHIFTS):
        room = duration - 2 * LEAST_SHIFT_SECONDS
        shift = LEAST_SHIFT_SECONDS + room * index / (NUM_SHIFTS - 1)
        moved = [[(moment + shift) % duration for moment in own] for own in (truth, unscored)]
        match.add(found, merge_close_events(moved[0]), moved[1])


def evaluate(
    pipeline: FoleyPipeline,
    pairs: list[tuple[Path, dict[str, Any]]],
    chance: Match | None = None,
    **options: Any,
) -> tuple[Match, list[float]]:
    """Match the onsets of generated sounds with the events.

    Args:
        pipeline: the model.
        pairs: clips and their descriptions.
        chance: the sounds are added to it as by `add_shifted`, if it is given.
        options: of the pipeline's call.

    Returns:
        The match over all clips, and the seconds that each generation took.
    """
    total = Match()
    seconds: list[float] = []
    for clip, description in pairs:
        start = time.perf_counter()
        sound = pipeline(clip, prompt=description.get("prompt", ""), **options)
        seconds.append(time.perf_counter() - start)
        duration = sound.duration_seconds
        truth = [event["time"] for event in description["events"] if event["time"] < duration]
        unscored = [moment["time"] for moment in description.get("unscored", ())]
        found, own = detect_onsets(sound.waveforms[0, 0]), Match()
        for match in (own, total):
            match.add(found, merge_close_events(truth), unscored)
        if chance is not None:
            add_shifted(chance, found, truth, unscored, duration)
        print(
            f"{clip.name:30} f1 {own.f1:.3f}  precision {own.precision:.3f}  "
            f"recall {own.recall:.3f}  {own.median_error_ms:5.1f} ms  {seconds[-1]:.2f} s",
            flush=True,
        )
    return total, seconds


def match_exact(pairs: list[tuple[Path, dict[str, Any]]]) -> Match | None:
    """Match the onsets of the sounds beside the clips with the events; None where there is none.

    Args:
        pairs: clips and their descriptions.
    """
    exact, read = Match(), 0
    for clip, description in pairs:
        file = clip.with_suffix(".wav")
        if not file.is_file() or (sound := read_sound(file)) is None:
            continue
        read += 1
        waveform = torch.from_numpy(sound[0])
        truth, unscored = (
            [moment["time"] for moment in description.get(name, ())]
            for name in ("events", "unscored")
        )
        exact.add(detect_onsets(waveform), merge_close_events(truth), unscored)
    return exact if read else None


def add_options(parser: argparse.ArgumentParser, *, steps: int | None) -> None:
    """Add the options of the model and of the generation.

    Args:
        parser: of the command.
        steps: the default; None for the preset's own plan of the sampler.
    """
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--solver", choices=get_args(Solver))
    parser.add_argument("--quality", choices=QUALITIES, help="in place of steps and solver")
    parser.add_argument("--guidance-scale", type=float, help="by default the preset's")
    parser.add_argument("--negative-prompt", default="noisy, harsh")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--seed", type=int, default=0)


def load_pipeline(args: argparse.Namespace) -> FoleyPipeline:
    """Load the model that the options name."""
    return FoleyPipeline.from_preset(args.preset, args.device, args.weights)


def collect_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments for the pipeline's call.

    Steps and a solver are plain ones, with equal steps that are all guided.
    """
    sampler: dict[str, Any] = {}
    if args.quality is not None:
        sampler = {"quality": args.quality}
    elif args.steps is not None or args.solver is not None:
        sampler = {"num_inference_steps": args.steps, "solver": args.solver or "euler"}
        sampler |= {"schedule_shift": 1.0, "guidance_interval": 0.0}
    return sampler | {
        "guidance_scale": args.guidance_scale,
        "negative_prompt": args.negative_prompt,
        "seed": args.seed,
    }


def report_figures(
    args: argparse.Namespace, what: str, seconds: float, measure: Callable[..., dict[str, Any]]
) -> None:
    """Measure a preset, print the record and, if it was asked for, write it.

    Args:
        args: with the options of `add_options` and `add_record_options`.
        what: names the benchmark.
        seconds: length of each sound.
        measure: called with the pipeline, `seed` and the options of a generation.
    """
    pipeline, options = load_pipeline(args), collect_options(args)
    seed = options.pop("seed")
    record = environment() | {
        "what": what,
        "weights": pipeline.source,
        "seconds": seconds,
        "seed": seed,
        **options,
        **measure(pipeline, seed=seed, **options),
    }
    finish(record, hardware=args.hardware, write=args.record)


def add_record_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the record."""
    parser.add_argument("--hardware", default="cpu", help="short name for the record's file")
    parser.add_argument("--record", action="store_true")


def main() -> None:
    """Evaluate a folder of clips."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=1, help="noises, counted up from --seed")
    add_record_options(parser)
    add_options(parser, steps=20)
    args = parser.parse_args()
    pairs = find_labelled_clips(args.folder)
    pipeline, options = load_pipeline(args), collect_options(args)
    asked = GenerationRequest(**options)
    total, chance, seconds, each = Match(), Match(), [], []
    for seed in range(args.seed, args.seed + args.seeds):
        own, taken = evaluate(pipeline, pairs, chance, **options | {"seed": seed})
        total.join(own)
        seconds += taken
        each.append(round(own.f1, 4))
    exact = match_exact(pairs)
    record = environment() | {
        "what": "sync",
        "folder": args.folder.name,
        "f1": total.f1,
        "each_seed": each,
        "precision": total.precision,
        "recall": total.recall,
        "median_error_ms": total.median_error_ms if total.hits else None,
        "chance": chance.f1,
        "exact": None if exact is None else exact.f1,
        "clips": len(pairs),
        "events": total.truth // args.seeds,
        "plan": asked.choose_sampling(pipeline.preset)._asdict(),
        "guidance_scale": asked.choose_guidance(pipeline.preset),
        "seed": args.seed,
        "model": pipeline.description,
        "seconds_per_clip": sum(seconds) / len(seconds),
    }
    finish(record, hardware=args.hardware, write=args.record)


if __name__ == "__main__":
    main()

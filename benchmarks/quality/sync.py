"""Measure how well generated sounds match the events of a folder of clips.

    python -m benchmarks.quality.sync DIR [--steps 20] [--solver euler] [--guidance-scale 3] ...

DIR contains NAME.mp4 and NAME.json: {"events": [{"time": seconds}, ...], "prompt": "..."}. The
optional list "unscored" has the form of "events": an onset at one of these times that matches no
event is not counted. The last line is one JSON object with f1, precision, recall and
median_error_ms.
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
from foley.request import GenerationRequest, Solver
from training.judge import Match, detect_onsets, merge_close_events


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


def evaluate(
    pipeline: FoleyPipeline, pairs: list[tuple[Path, dict[str, Any]]], **options: Any
) -> tuple[Match, list[float]]:
    """Match the onsets of generated sounds with the events.

    Args:
        pipeline: the model.
        pairs: clips and their descriptions.
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
        print(
            f"{clip.name:30} f1 {own.f1:.3f}  precision {own.precision:.3f}  "
            f"recall {own.recall:.3f}  {own.median_error_ms:5.1f} ms  {seconds[-1]:.2f} s",
            flush=True,
        )
    return total, seconds


def add_options(parser: argparse.ArgumentParser, *, steps: int | None) -> None:
    """Add the options of the model and of the generation.

    Args:
        parser: of the command.
        steps: the default; None for the preset's.
    """
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--solver", choices=get_args(Solver), default="euler")
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
    """The keyword arguments for the pipeline's call."""
    return {
        "num_inference_steps": args.steps,
        "solver": args.solver,
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
    add_options(parser, steps=20)
    args = parser.parse_args()
    pairs = find_labelled_clips(args.folder)
    asked = GenerationRequest(guidance_scale=args.guidance_scale)
    pipeline = load_pipeline(args)
    total, seconds = evaluate(pipeline, pairs, **collect_options(args))
    print(
        json.dumps(
            {
                "what": "sync",
                "f1": total.f1,
                "precision": total.precision,
                "recall": total.recall,
                "median_error_ms": total.median_error_ms if total.hits else None,
                "clips": len(pairs),
                "events": total.truth,
                "steps": args.steps,
                "solver": args.solver,
                "guidance_scale": asked.choose_guidance(pipeline.preset),
                "seed": args.seed,
                "model": pipeline.description,
                "torch": torch.__version__,
                "seconds_per_clip": sum(seconds) / len(seconds),
            }
        )
    )


if __name__ == "__main__":
    main()

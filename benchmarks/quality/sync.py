"""How well generated sound follows the picture, for a folder of clips with known events.

    python -m benchmarks.quality.sync DIR [--steps 20] [--solver euler] [--guidance-scale 3] ...

DIR holds NAME.mp4 and NAME.json: {"events": [{"time": seconds}, ...], "prompt": "..."}, and where
there are moments at which an onset is to count neither way, "unscored" like "events". The last line
is one JSON object with f1, precision, recall and median_error_ms.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.quality.onsets import Match, merged, onsets
from foley.pipeline import FoleyPipeline
from foley.request import GenerationRequest, Solver


def labelled_clips(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The clips of a folder that have a description, in order of name."""
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
    """Onsets found against events, and the seconds that each clip took."""
    total, seconds = Match(), []
    for clip, description in pairs:
        start = time.perf_counter()
        sound = pipeline(clip, prompt=description.get("prompt", ""), **options)
        seconds.append(time.perf_counter() - start)
        duration = sound.duration_seconds
        truth = [event["time"] for event in description["events"] if event["time"] < duration]
        unscored = [moment["time"] for moment in description.get("unscored", ())]
        found, own = onsets(sound.waveforms[0, 0]), Match()
        for match in (own, total):
            match.add(found, merged(truth), unscored)
        print(
            f"{clip.name:30} f1 {own.f1:.3f}  precision {own.precision:.3f}  "
            f"recall {own.recall:.3f}  {own.median_error_ms:5.1f} ms  {seconds[-1]:.2f} s",
            flush=True,
        )
    return total, seconds


def add_options(parser: argparse.ArgumentParser, *, steps: int | None) -> None:
    """The model and how it generates.

    Args:
        parser: of the command.
        steps: where the command names none; None is the preset's own.
    """
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--solver", choices=get_args(Solver), default="euler")
    parser.add_argument("--guidance-scale", type=float, help="the preset's own without it")
    parser.add_argument("--negative-prompt", default="noisy, harsh")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--seed", type=int, default=0)


def load(args: argparse.Namespace) -> FoleyPipeline:
    """The model of the options."""
    return FoleyPipeline.from_preset(args.preset, args.device, args.weights)


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """How it generates, as a pipeline takes it."""
    return {
        "num_inference_steps": args.steps,
        "solver": args.solver,
        "guidance_scale": args.guidance_scale,
        "negative_prompt": args.negative_prompt,
        "seed": args.seed,
    }


def main() -> None:
    """Evaluate a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    add_options(parser, steps=20)
    args = parser.parse_args()
    pairs = labelled_clips(args.folder)
    asked = GenerationRequest(guidance_scale=args.guidance_scale)
    pipeline = load(args)
    total, seconds = evaluate(pipeline, pairs, **options_of(args))
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
                "seconds_a_clip": sum(seconds) / len(seconds),
            }
        )
    )


if __name__ == "__main__":
    main()

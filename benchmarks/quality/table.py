"""Measure quality against sampling steps for each solver.

    python -m benchmarks.quality.table [--device cuda] [--clips 32] [--record --hardware NAME]
    python -m benchmarks.quality.table --render RECORD [--write]

The first form measures the model on held-out clips of 5 s, as the service runs it, and prints a
record. The second form renders a record as the table of README.md; --write replaces the table
there. Later work on speed must not worsen these figures.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.held_out import HELD_OUT_SEED, HeldOutClip, generate_clips
from benchmarks.records import environment, finish
from foley.configs import PRESETS
from foley.denoise import Denoising
from foley.pipeline import FoleyPipeline
from foley.plans import QUALITIES, SOLVERS, SamplingPlan
from foley.request import GenerationRequest
from foley.sampling import count_guided_steps, draw_noise, make_sigmas
from foley.session import count_samples, fade_ends
from foley.types import Conditions, VideoFrames
from training.judge import (
    Match,
    band_levels,
    detect_onsets,
    frechet_distance,
    silence_db,
    spectrum_db,
)

README = Path(__file__).with_name("README.md")
MARKS = ("<!-- table -->\n", "<!-- end of table -->\n")
STEPS = (4, 8, 10, 16, 25, 50)
EVALUATIONS = {"euler": 1, "heun": 2, "midpoint": 2, "rk4": 4, "ab2": 1}  # of the model, per step
EXACT_STEPS = 50  # of rk4, which stands in for the exact path
SECONDS = 5.0
NEGATIVE = GenerationRequest().negative_prompt
FIGURES = ("F1", "error, ms", "silence, dB", "log-mel", "Frechet", "apart, dB")
NUM_LEVELS = 48  # the first columns of a sound's embedding are the mean levels of the bands


@torch.inference_mode()
def generate_sound(
    pipeline: FoleyPipeline,
    frames: VideoFrames,
    conditions: Conditions,
    plan: SamplingPlan,
    scale: float,
    seed: int,
) -> Tensor:
    """A sound [S] for a clip, generated as in the service.

    Args:
        pipeline: the model.
        frames: of the clip; they determine the length.
        conditions: of the clip, computed once for all rows of the table.
        plan: of the sampler.
        scale: of the guidance.
        seed: of the noise.
    """
    noise = draw_noise([seed], pipeline.preset.dit.latent_dim, conditions.num_latents)
    path = Denoising(
        pipeline.dit,
        conditions,
        noise.to(pipeline.device),
        make_sigmas(plan.num_inference_steps, plan.schedule_shift),
        solver=plan.solver,
        guidance_scale=scale,
        guidance_interval=plan.guidance_interval,
    )
    velocities = pipeline.make_velocity_model()
    while path.latents is None:
        path.advance(*velocities([path.prepare_part()]))
    sound = pipeline.decode(path.latents)[0, 0].cpu()
    count = count_samples(pipeline.preset, frames)
    if count is not None:
        sound = sound[:count].clone()
        fade_ends(sound)
    return sound


def measure_row(
    pipeline: FoleyPipeline,
    clips: list[HeldOutClip],
    conditions_of_clips: list[Conditions],
    plan: SamplingPlan,
    scale: float,
    first_seed: int = 0,
) -> tuple[dict[str, Any], list[Tensor]]:
    """The figures of one plan of the sampler, and the sounds.

    Args:
        pipeline: the model.
        clips: with known events.
        conditions_of_clips: one for each clip.
        plan: of the sampler.
        scale: of the guidance.
        first_seed: of the noise of the first clip; the others follow.
    """
    match = Match()
    levels: list[Tensor] = []
    depths: list[float] = []
    start = time.perf_counter()
    sounds = [
        generate_sound(pipeline, clip.frames, conditions, plan, scale, seed)
        for seed, (clip, conditions) in enumerate(
            zip(clips, conditions_of_clips, strict=True), first_seed
        )
    ]
    seconds = time.perf_counter() - start
    for clip, sound in zip(clips, sounds, strict=True):
        match.add(detect_onsets(sound), clip.events, clip.unscored)
        levels.append(band_levels(sound[None]))
        depths.append(silence_db(clip.sound[: len(sound)], sound[: len(clip.sound)]))
    real = torch.cat([band_levels(clip.sound[None]) for clip in clips])
    found = torch.cat(levels)
    known = [depth for depth in depths if not np.isnan(depth)]
    figures = {
        "solver": plan.solver,
        "steps": plan.num_inference_steps,
        "schedule_shift": plan.schedule_shift,
        "guidance_interval": plan.guidance_interval,
        "evaluations": count_evaluations(plan),
        "f1": match.f1,
        "precision": match.precision,
        "recall": match.recall,
        "median_error_ms": match.median_error_ms if match.hits else None,
        "silence_db_median": float(np.median(known)) if known else None,
        "log_mel_distance": float((real - found)[:, :NUM_LEVELS].abs().mean()),
        "frechet": frechet_distance(real, found),
        "seconds_per_clip": seconds / len(clips),  # of sampling and decoding
    }
    return figures, sounds


def count_evaluations(plan: SamplingPlan) -> float:
    """The evaluations of a guided request; one without the unconditional half counts half.

    Args:
        plan: of the sampler.
    """
    sigmas = make_sigmas(plan.num_inference_steps, plan.schedule_shift)
    guided = count_guided_steps(sigmas, plan.guidance_interval)
    return EVALUATIONS[plan.solver] * (guided + plan.num_inference_steps) / 2


def distance_db(first: list[Tensor], second: list[Tensor]) -> float:
    """The mean absolute difference of the sounds' spectra in dB, moment by moment.

    Args:
        first: sounds [S].
        second: as many sounds, each as long as its counterpart.
    """
    pairs = zip(first, second, strict=True)
    apart = [(spectrum_db(a) - spectrum_db(b)).abs().mean() for a, b in pairs]
    return float(torch.stack(apart).mean())


def measure_truth(clips: list[HeldOutClip]) -> dict[str, float]:
    """The figures of the exact sounds, which are the best that a model can reach."""
    match = Match()
    for clip in clips:
        match.add(detect_onsets(clip.sound), clip.events, clip.unscored)
    real = torch.cat([band_levels(clip.sound[None]) for clip in clips])
    half = len(real) // 2
    return {
        "f1": match.f1,
        "median_error_ms": match.median_error_ms,
        "frechet_two_halves": frechet_distance(real[:half], real[half:]),
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark and return its record."""
    pipeline = FoleyPipeline.from_preset(args.preset, args.device, args.weights)
    clips = list(generate_clips(pipeline.preset, args.clips, SECONDS, quiet=True))
    conditions = [pipeline.condition(clip.frames, clip.prompt, NEGATIVE) for clip in clips]
    asked = GenerationRequest(guidance_scale=args.guidance_scale)
    scale = asked.choose_guidance(pipeline.preset)
    plans = [SamplingPlan(steps, solver) for solver in args.solvers for steps in args.steps]
    plans += [QUALITIES[quality] for quality in args.qualities]
    rows, made = {}, {}
    for plan in dict.fromkeys(plans):
        rows[plan], made[plan] = measure_row(pipeline, clips, conditions, plan, scale)
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in rows[plan].items()})
    best = SamplingPlan(args.exact_steps, "rk4")
    exact = made.get(best) or measure_row(pipeline, clips, conditions, best, scale)[1]
    _, others = measure_row(pipeline, clips, conditions, best, scale, first_seed=len(clips))
    for plan, figures in rows.items():
        figures["distance_db"] = distance_db(made[plan], exact)
    return environment() | {
        "what": "quality",
        "preset": pipeline.preset.name,
        "weights": pipeline.source,
        "device": str(pipeline.device),
        "precision": pipeline.precision,
        "data_seed": HELD_OUT_SEED,
        "clips": len(clips),
        "clip_seconds": SECONDS,
        "events": sum(len(clip.events) for clip in clips),
        "guidance_scale": scale,
        "truth": measure_truth(clips),
        "distance_db_of_another_noise": distance_db(others, exact),
        "exact_steps_of_rk4": args.exact_steps,
        "rows": list(rows.values()),
    }


def render(record: dict[str, Any], link: str) -> str:
    """The table as Markdown.

    Args:
        record: of `measure`. Records before 8eed4bf have no distances.
        link: to the record, relative to the README.
    """
    best, apart = record["truth"], record.get("distance_db_of_another_noise")
    default = PRESETS[record["preset"]].default_plan
    where = record["gpu"] or record["cpu"]
    lines = [
        f"[Record]({link}), commit {record['commit']}, {where}: {record['clips']} held-out clips "
        f"of {record['clip_seconds']:g} s with {record['events']} events, guidance "
        f"{record['guidance_scale']:g}. The exact sounds: F1 {best['f1']:.3f}, "
        f"{best['median_error_ms']:.1f} ms, Frechet distance of two halves of them "
        f"{best['frechet_two_halves']:.1f}. Another noise: {_number(apart, 1)} dB. In bold: the "
        f"default of `{record['preset']}`.",
        "",
        f"| solver | steps | evaluations | {' | '.join(FIGURES)} |",
        "| --- " * (3 + len(FIGURES)) + "|",
    ]
    for line in record["rows"]:
        cells = [
            _describe_plan(line),
            str(line["steps"]),
            f"{line['evaluations']:g}",
            _number(line["f1"], 3),
            _number(line["median_error_ms"], 1),
            _number(line["silence_db_median"], 1),
            _number(line["log_mel_distance"], 3),
            _number(line["frechet"], 2),
            _number(line.get("distance_db"), 2),
        ]
        if _read_plan(line) == default:
            cells = [f"**{cell}**" for cell in cells]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _read_plan(line: dict[str, Any]) -> SamplingPlan:
    """The plan of a row; records before 5943aab have neither shift nor interval."""
    return SamplingPlan(
        line["steps"],
        line["solver"],
        line.get("schedule_shift", 1.0),
        line.get("guidance_interval", 0.0),
    )


def _describe_plan(line: dict[str, Any]) -> str:
    """The solver of a row, with the shift and the interval that are not 1 and 0."""
    parts = [line["solver"]]
    if (shift := line.get("schedule_shift", 1)) != 1:
        parts.append(f"shift {shift:g}")
    if interval := line.get("guidance_interval", 0):
        parts.append(f"guided to {interval:g}")
    return ", ".join(parts)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def write_into_readme(table: str) -> None:
    """Replace the table in README.md."""
    before, _, rest = README.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    README.write_text(before + MARKS[0] + table + MARKS[1] + after)


def main() -> None:
    """Measure, or render a record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--render", type=Path, metavar="RECORD")
    parser.add_argument("--write", action="store_true", help="the table into README.md")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--solvers", nargs="+", choices=SOLVERS, default=SOLVERS)
    parser.add_argument("--qualities", nargs="*", choices=QUALITIES, default=tuple(QUALITIES))
    parser.add_argument("--exact-steps", type=int, default=EXACT_STEPS, help="of rk4")
    parser.add_argument("--guidance-scale", type=float, help="by default the preset's")
    parser.add_argument("--hardware", default="cpu", help="short name for the record's file")
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    if args.render is None:
        finish(measure(args), hardware=args.hardware, write=args.record)
        return
    link = f"../records/{args.render.name}"
    table = render(json.loads(args.render.read_text()), link)
    print(table)
    if args.write:
        write_into_readme(table)


if __name__ == "__main__":
    main()

"""Teach `tiny` a material and an action that it has never met, and measure what came of it.

    python -m benchmarks.quality.adapter [--clips 30] [--optimizers adamw muon] [--record]

The clips are those of `benchmarks.quality.adapter_clips`, without their way through a file; what
is read of them and the training are those of `foley train`.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.quality import adapter_judge
from benchmarks.quality.adapter_clips import SECONDS, TRAINING_SEED, draw_clip
from benchmarks.quality.held_out import make_frames
from benchmarks.quality.sync import add_record_options
from benchmarks.records import environment, finish
from foley.configs import SAMPLE_RATE
from foley.pipeline import FoleyPipeline
from foley.tuning.clips import TrainingClip
from foley.tuning.prepare import Prepared, prepare
from foley.tuning.trainer import MakeOptimizer, Recipe, Trainer, make_adamw
from foley.types import VideoFrames
from foley.weights.adapters import write_adapter
from foley.weights.selection import choose_device, load_preset

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)
# Of the noise that sounds start from. Figures of what should not change vary from one to the next.
NOISE_SEEDS = (0, 1000, 2000, 3000, 4000)


def make_muon(parameters: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """Return Muon for all matrices, with updates of the size of AdamW's.

    Args:
        parameters: matrices.
        rate: largest learning rate.
    """
    return torch.optim.Muon(parameters, rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")


def make_prodigy(parameters: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """Return Prodigy, which finds its rate itself.

    Args:
        parameters: matrices.
        rate: a factor of what it finds, 1.
    """
    from prodigyopt import Prodigy  # type: ignore[import-not-found, unused-ignore]

    optimizer: torch.optim.Optimizer = Prodigy(
        parameters, rate, betas=(0.9, 0.99), weight_decay=0.01, safeguard_warmup=True
    )
    return optimizer


# The optimisers, and the rates with which each is tried.
OPTIMIZERS: dict[str, tuple[MakeOptimizer, tuple[float, ...]]] = {
    "adamw": (make_adamw, (1e-3,)),
    "adamw_rates": (make_adamw, (3e-4, 3e-3)),
    "muon": (make_muon, (1e-3,)),
    "muon_rates": (make_muon, (3e-4, 3e-3)),
    "prodigy": (make_prodigy, (1.0,)),
}


def read_clips(pipeline_device: torch.device, count: int) -> list[TrainingClip]:
    """Return the clips to learn from with their sounds.

    Args:
        pipeline_device: where the sounds are made.
        count: number of clips.
    """
    clips = []
    for index in range(count):
        batch = draw_clip(TRAINING_SEED, index)
        sound = batch.to(pipeline_device).waveform()[0].cpu()
        clips.append(
            TrainingClip(
                path=Path(f"{index}"),
                prompt=batch.prompts[0],
                digest=f"{TRAINING_SEED} {index}",
                waveform=sound.numpy(),
                loudness_lufs=estimate_loudness(sound),
            )
        )
    return clips


def watch(pipeline: FoleyPipeline, clip: TrainingClip) -> VideoFrames:
    """Return the frames of one of these clips.

    Args:
        pipeline: whose encoders determine the frames' sizes.
        clip: of `read_clips`.
    """
    batch = draw_clip(TRAINING_SEED, int(clip.path.name)).to(pipeline.device)
    return make_frames(batch.pictures()[0].cpu(), pipeline.preset)


def estimate_loudness(waveform: Tensor) -> float:
    """Return the loudness of a sound [S] in LUFS, without the weighting of frequencies.

    `foley train` has FFmpeg measure it, which the machine of this benchmark may not have. The gates
    are those of EBU R 128: blocks of 0.4 s, -70 LUFS, and 10 LU below the mean of the rest.
    """
    size = round(0.4 * SAMPLE_RATE)
    blocks = waveform.double().unfold(0, size, size // 4).square().mean(1)
    blocks = blocks[blocks > 10 ** (-70 / 10)]
    return float(10 * torch.log10(blocks[blocks > 0.1 * blocks.mean()].mean()))


def train(ready: Prepared, recipe: Recipe, make: MakeOptimizer, path: Path) -> dict[str, Any]:
    """Train an adapter and offer it in the pipeline; returns figures of the training.

    Args:
        ready: what the training reads.
        recipe: of the training.
        make: the optimiser.
        path: for the adapter, whose name is that of the file.
    """
    began, pipeline = time.perf_counter(), ready.pipeline
    with tempfile.TemporaryDirectory() as folder, pipeline.use_device():
        trainer = Trainer(
            pipeline.dit,
            "tiny",
            ready.examples,
            ready.validation,
            recipe,
            Path(folder),
            kept=ready.kept,
            make_optimizer=make,
            checkpointed=False,
        )
        layers = trainer.run(lambda progress: print(path.stem, progress, flush=True))
    seconds = time.perf_counter() - began
    write_adapter(path, layers, base="tiny", rank=recipe.rank, metadata={})
    pipeline.load_adapter(path)
    history = trainer.history
    return {
        "steps": history.training[-1][0],
        "seconds": round(seconds, 1),
        "best_step": history.best[0],
        "validation_loss_before": round(history.validation[0][1], 5),
        "validation_loss": round(history.best[1], 5),
        "validation": [[step, round(loss, 5)] for step, loss in history.validation],
        "training": [[step, round(loss, 5)] for step, loss in history.training],
    }


def judge_adapter(
    pipeline: FoleyPipeline, tests: "Tests", name: str | None, scales: Sequence[float]
) -> dict[str, Any]:
    """Return the figures of an adapter at these scales, or of the model itself.

    Args:
        pipeline: that offers it.
        tests: what is asked for.
        name: of the adapter; None for the model itself.
        scales: for what was taught; all else is measured with scale 1.
    """
    figures: dict[str, Any] = {}
    for scale in scales:
        figures[f"taught_at_{scale:g}"] = tests.measure(pipeline, "taught", name, scale)
    for kind in ("others", "usual"):
        made = [tests.measure(pipeline, kind, name, 1.0, seed) for seed in NOISE_SEEDS]
        figures[kind] = made[0]
        figures[f"{kind}_by_noise"] = {
            key: summarize([figure[key] for figure in made])
            for key in ("f1", "asked", "taught")
            if key in made[0]
        }
    return figures


def summarize(values: Sequence[float]) -> dict[str, Any]:
    """Return at least two values with their mean, and the standard error of the mean."""
    error = stdev(values) / len(values) ** 0.5
    return {"values": list(values), "mean": round(fmean(values), 4), "error": round(error, 4)}


class Tests:
    """The clips that all adapters are judged by.

    Args:
        pipeline: of the model.
        count: clips of each kind.
    """

    def __init__(self, pipeline: FoleyPipeline, count: int) -> None:
        self._materials = adapter_judge.train_judge(pipeline.device)
        self._clips = {
            "taught": adapter_judge.draw_taught(pipeline, count),
            "others": adapter_judge.draw_others(pipeline, count),
            "usual": adapter_judge.draw_usual(pipeline, count),
        }

    def measure(
        self, pipeline: FoleyPipeline, kind: str, name: str | None, scale: float, seed: int = 0
    ) -> dict[str, Any]:
        """Return the figures of one kind of clips.

        Args:
            pipeline: that offers the adapter.
            kind: taught, others or usual.
            name: of the adapter; None for the model itself.
            scale: of the adapter.
            seed: of the noise.
        """
        figures = adapter_judge.measure(
            pipeline, self._materials, self._clips[kind], adapter=name, scale=scale, seed=seed
        )
        print(kind, name, scale, figures, flush=True)
        return figures


def main() -> None:
    """Train and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for the adapters")
    parser.add_argument("--optimizers", nargs="+", choices=list(OPTIMIZERS), default=["adamw"])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--targets", default="all")
    parser.add_argument("--count", type=int, default=48, help="held-out clips of each kind")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clips", type=int, default=30, help="to learn from")
    parser.add_argument(
        "--limit", type=float, default=1e9, help="seconds after which no training begins"
    )
    add_record_options(parser)
    args = parser.parse_args()
    device, began = choose_device(args.device), time.perf_counter()
    clips = read_clips(device, args.clips)
    with tempfile.TemporaryDirectory() as cache:
        components = load_preset("tiny", None, device)
        ready = prepare(clips, Path(cache), components, device, print, watch=watch)
    pipeline, read_seconds = ready.pipeline, time.perf_counter() - began
    out = args.out or Path(tempfile.mkdtemp())
    out.mkdir(parents=True, exist_ok=True)
    tests = Tests(pipeline, args.count)
    figures: dict[str, Any] = {"base": judge_adapter(pipeline, tests, None, (0.0,))}
    for chosen in args.optimizers:
        make, rates = OPTIMIZERS[chosen]
        for rate in rates:
            if time.perf_counter() - began > args.limit:
                break
            name = f"{chosen.removesuffix('_rates')}-{rate:g}"
            recipe = Recipe(
                rank=args.rank,
                targets=args.targets,
                steps=args.steps,
                batch_clips=args.batch,
                rate=rate,
                patience=100,
            )
            trained = train(ready, recipe, make, out / f"{name}.safetensors")
            scales = SCALES if not figures.keys() - {"base"} else (1.0,)
            figures[name] = {
                "training": trained,
                **judge_adapter(pipeline, tests, name, scales),
            }
            (out / "figures.json").write_text(json.dumps(figures, indent=1))  # if it is cut off
    record = environment() | {
        "what": "adapter_tiny",
        "weights": pipeline.source,
        "seconds": SECONDS,
        "training_seed": TRAINING_SEED,
        "num_clips": args.clips,
        "read_seconds": round(read_seconds, 1),
        "rank": args.rank,
        "batch": args.batch,
        "count": args.count,
        "figures": figures,
    }
    finish(record, hardware=args.hardware, write=args.record)


if __name__ == "__main__":
    main()

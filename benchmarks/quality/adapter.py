"""Teach `tiny` a material and an action that it has never met, and measure what came of it.

    python -m benchmarks.quality.adapter [--clips 30] [--variants default muon] [--record]

The clips are those of `benchmarks.quality.adapter_clips`, without their way through a file; what
is read of them and the training are those of `foley train`. Several processes with the same
`--cache` and other variants share what the first of them reads; `--merge` makes one record of their
figures.
"""

import argparse
import fcntl
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
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
from training import judge

SCALES = (1.0, 0.9, 0.75, 0.5, 0.25)
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


@dataclass(frozen=True)
class Variant:
    """A way to train.

    Attributes:
        changes: fields of the recipe that differ.
        make: the optimiser.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    make: MakeOptimizer = make_adamw


BASE = "base"  # the model itself
VARIANTS = {
    "default": Variant(),
    "share-0.45": Variant({"kept_share": 0.45}),
    "share-0.7": Variant({"kept_share": 0.7}),
    "rank-8": Variant({"rank": 8}),
    "steps-300": Variant({"steps": 300}),
    "steps-1000": Variant({"steps": 1000}),
    "share-0.7-steps-1000": Variant({"kept_share": 0.7, "steps": 1000}),
    "rate-0.0005": Variant({"rate": 5e-4}),
    "rate-0.003": Variant({"rate": 3e-3}),
    "muon": Variant(make=make_muon),
    "prodigy": Variant({"rate": 1.0}, make_prodigy),
}
DEFAULTS = (BASE, "default")


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


def summarize(values: Sequence[float]) -> dict[str, Any]:
    """Return values with their mean, and the standard error of the mean (0 for one value)."""
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return {"values": list(values), "mean": round(fmean(values), 4), "error": round(error, 4)}


class Tests:
    """The clips that all adapters are judged by.

    Args:
        pipeline: of the model.
        materials: of `adapter_judge.train_judge`.
        count: clips of each kind.
    """

    def __init__(self, pipeline: FoleyPipeline, materials: judge.MaterialJudge, count: int) -> None:
        self._pipeline, self._materials = pipeline, materials
        self._clips = {
            "taught": adapter_judge.draw_taught(pipeline, count),
            "others": adapter_judge.draw_others(pipeline, count),
            "usual": adapter_judge.draw_usual(pipeline, count),
        }

    def judge_adapter(self, name: str | None, scales: Sequence[float]) -> Iterator[dict[str, Any]]:
        """Yield the figures of an adapter each time that there are more, the main ones first.

        Args:
            name: of the adapter; None for the model itself.
            scales: of the adapter. At the first one, and at 0.9, all kinds are measured, at the
                others what was taught.
        """
        figures: dict[str, Any] = {"taught": {}, "others": {}, "usual": {}}
        for scale in scales:
            figures["taught"][f"{scale:g}"] = self._measure("taught", name, scale, 0)
            yield figures
            for kind in ("others", "usual") if scale in (scales[0], 0.9) else ():
                made = []
                for seed in NOISE_SEEDS:
                    made.append(self._measure(kind, name, scale, seed))
                    figures[kind][f"{scale:g}"] = made[0] | {
                        key: summarize([figure[key] for figure in made])
                        for key in ("f1", "asked", "taught")
                        if key in made[0]
                    }
                    yield figures

    def _measure(self, kind: str, name: str | None, scale: float, seed: int) -> dict[str, Any]:
        """Return the figures of one kind of clips with one noise."""
        figures = adapter_judge.measure(
            self._pipeline,
            self._materials,
            self._clips[kind],
            adapter=name,
            scale=scale,
            seed=seed,
        )
        print(kind, name, scale, seed, figures, flush=True)
        return figures


@contextmanager
def read_first(cache: Path) -> Iterator[None]:
    """Let the first process do what is inside alone, and the others do it once it is done.

    Args:
        cache: folder that they share.
    """
    cache.mkdir(parents=True, exist_ok=True)
    done = cache / "done"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            yield
            done.touch()
            return
    yield


def merge(paths: Sequence[Path]) -> dict[str, Any]:
    """Return one record of those of several processes.

    Args:
        paths: of the records.
    """
    records = [json.loads(path.read_text()) for path in paths]
    figures = {name: figure for record in records for name, figure in record["figures"].items()}
    return {**records[0], "processes": len(records), "figures": figures}


def main() -> None:
    """Train and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for the adapters and the figures")
    parser.add_argument("--variants", nargs="+", choices=[BASE, *VARIANTS], default=[*DEFAULTS])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--targets", default="all")
    parser.add_argument("--count", type=int, default=48, help="held-out clips of each kind")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clips", type=int, default=30, help="to learn from")
    parser.add_argument("--cache", type=Path, help="folder of what is read")
    parser.add_argument(
        "--limit", type=float, default=1e9, help="seconds after which nothing is begun"
    )
    parser.add_argument("--merge", nargs="+", type=Path, help="records of several processes")
    add_record_options(parser)
    args = parser.parse_args()
    if args.merge:
        finish(merge(args.merge), hardware=args.hardware, write=args.record)
        return
    began = time.perf_counter()
    out = args.out or Path(tempfile.mkdtemp())
    out.mkdir(parents=True, exist_ok=True)
    device = choose_device(args.device)
    with tempfile.TemporaryDirectory() as temporary:
        cache = args.cache or Path(temporary)
        with read_first(cache):
            clips = read_clips(device, args.clips)
            components = load_preset("tiny", None, device)
            ready = prepare(clips, cache, components, device, print, watch=watch)
            read_seconds = time.perf_counter() - began
            materials = adapter_judge.load_judge(cache / "judge.pt", device)
    tests = Tests(ready.pipeline, materials, args.count)
    record = environment() | {
        "what": "adapter_tiny",
        "weights": ready.pipeline.source,
        "seconds": SECONDS,
        "training_seed": TRAINING_SEED,
        "num_clips": args.clips,
        "read_seconds": round(read_seconds, 1),
        "steps": args.steps,
        "batch": args.batch,
        "count": args.count,
        "figures": {},
    }

    def is_late() -> bool:
        return bool(time.perf_counter() - began > args.limit)

    def judge_all(name: str, adapter: str | None, scales: Sequence[float], **known: Any) -> None:
        for figures in tests.judge_adapter(adapter, scales):
            record["figures"][name] = known | figures
            path = out / f"{'_'.join(args.variants)}.json"
            path.write_text(json.dumps(record, indent=1))  # if it is cut off
            if is_late():
                break

    for name in args.variants:
        if is_late():
            break
        if name == BASE:
            judge_all(name, None, (0.0,))
            continue
        variant = VARIANTS[name]
        recipe = replace(
            Recipe(
                targets=args.targets, steps=args.steps, batch_clips=args.batch, patience=args.steps
            ),
            **variant.changes,
        )
        path = out / f"{name}.safetensors"
        trained = train(ready, recipe, variant.make, path)
        judge_all(name, path.stem, SCALES, recipe=asdict(recipe), training=trained)
    finish(record, hardware=args.hardware, write=args.record)


if __name__ == "__main__":
    main()

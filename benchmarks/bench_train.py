"""Steps of `foley train` by one process and by several, beside each other.

    accelerate launch --multi_gpu --num_processes 2 -m benchmarks.bench_train --preset xxl
    torchrun --nproc-per-node 2 -m benchmarks.bench_train --device cpu

The first process takes the steps alone, and then all take them together. The losses are compared.
The examples are random numbers, and so are the weights of all presets but `tiny`.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.model import NUM_TEXT, random_module
from benchmarks.quality.sync import add_record_options
from benchmarks.records import environment, finish
from foley.configs import LATENT_RATE, PRESETS, SYNC_FPS, TINY, VISUAL_FPS, Preset
from foley.models.dit import FoleyDiT
from foley.models.synchformer import count_segments
from foley.tuning.examples import Example
from foley.tuning.team import Team, join_team
from foley.tuning.trainer import Recipe, Trainer
from foley.types import Conditions
from foley.weights.selection import choose_device, load_preset

_CLIPS = 16
_WARM_UP_STEPS = 5
_GIB = 2**30


def draw_example(preset: Preset, seconds: float, seed: int, device: torch.device) -> Example:
    """Return a clip of random numbers.

    Args:
        preset: of the model.
        seconds: length of the clip.
        seed: of the numbers.
        device: of the tensors.
    """
    config, generator = preset.dit, torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    frames = round(seconds * LATENT_RATE)
    conditions = Conditions(
        visual_tokens=draw(max(1, round(seconds * VISUAL_FPS)), config.visual_dim),
        sync_tokens=draw(8 * count_segments(round(seconds * SYNC_FPS)), config.sync_dim),
        text_tokens=draw(2, NUM_TEXT, config.text_dim),
        num_latents=frames,
    )
    return Example(conditions, draw(config.latent_dim, frames))


def load_dit(preset: Preset, device: torch.device, dtype: torch.dtype) -> FoleyDiT:
    """Return the transformer of a preset on a device."""
    if preset.name != TINY.name:
        module = random_module("dit", preset, device, dtype)
        assert isinstance(module, FoleyDiT)
        drawn: FoleyDiT = module
        return drawn
    components = load_preset(preset.name, None, device)
    nn.Module.to(components.dit, device=device, dtype=dtype)
    return components.dit


def take_steps(options: Any, team: Team, device: torch.device) -> dict[str, Any]:
    """Return the losses, the adapter, and the time and memory that the steps took.

    Args:
        options: of the command.
        team: the processes that take the steps together.
        device: of this process.
    """
    preset, on_gpu = PRESETS[options.preset], device.type == "cuda"
    dit = load_dit(preset, device, getattr(torch, options.dtype))
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    examples = [draw_example(preset, options.seconds, i, device) for i in range(2 * _CLIPS)]
    recipe = Recipe(rank=options.rank, steps=options.steps, batch_clips=options.batch)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            dit,
            preset.name,
            examples[:_CLIPS],
            examples[:1],
            recipe,
            Path(folder),
            kept=examples[_CLIPS:],
            team=team,
            checkpointed=on_gpu,
        )
    losses, seconds = [], []
    for step in range(options.steps):
        began = time.perf_counter()
        losses.append(float(trainer.train_step(step)))  # which waits for the GPU
        seconds.append(time.perf_counter() - began)
        print(f"{team.size} processes, step {step}: {losses[-1]:.5f}, {seconds[-1]:.2f} s")
    return {
        "figures": {
            "processes": team.size,
            "losses": losses,
            "step_seconds": [round(value, 4) for value in seconds],
            "steps_a_second": 1 / median(seconds[_WARM_UP_STEPS:]),
            "peak_gib": torch.cuda.max_memory_allocated(device) / _GIB if on_gpu else None,
        },
        "adapter": {key: tensor.cpu() for key, tensor in trainer.adapter.state_dict().items()},
    }


def compare(one: dict[str, Any], many: dict[str, Any]) -> dict[str, float]:
    """Return how far the losses and the adapters of two trainings are apart.

    The largest difference of a step's loss is a share of the mean loss: a step whose clips are all
    to be kept has hardly any.

    Args:
        one: of `take_steps`.
        many: of `take_steps`, with the same steps.
    """
    losses = one["figures"]["losses"]
    apart = [abs(a - b) for a, b in zip(losses, many["figures"]["losses"], strict=True)]
    first, second = (
        torch.cat([made["adapter"][key].flatten().double() for key in sorted(one["adapter"])])
        for made in (one, many)
    )
    return {
        "largest_loss_difference": max(apart) / fmean(losses),
        "adapter_difference": float((first - second).norm() / first.norm()),
    }


def main() -> None:
    """Print the figures, and the record."""
    parser = argparse.ArgumentParser(description="foley train by one process and by several")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8, help="clips of a step")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a clip")
    parser.add_argument("--steps", type=int, default=30)
    add_record_options(parser)
    options = parser.parse_args()
    with join_team(choose_device(options.device)) as (team, device):
        one: dict[str, Any] = {}
        with team.leader_first():
            if team.leads:
                alone = Team()
                alone.rank, alone.size = 0, 1
                one = take_steps(options, alone, device)
        many = take_steps(options, team, device)
    if not team.leads:
        return
    names = ("preset", "dtype", "rank", "batch", "seconds", "steps")
    record = environment() | {
        "what": "train",
        **{name: getattr(options, name) for name in names},
        "one": one["figures"],
        "together": many["figures"],
        **compare(one, many),
    }
    for side in ("one", "together"):
        print(
            f"{record[side]['processes']} processes: {record[side]['steps_a_second']:.3f} steps/s"
        )
    finish(record, hardware=options.hardware, write=options.record)


if __name__ == "__main__":
    main()

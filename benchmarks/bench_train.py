"""Steps of `foley train` by one process and by several, beside each other.

    python -m benchmarks.bench_train [--preset xxl] [--processes 2] [--record]

Both take the same steps, and their losses are compared. The examples are random numbers, and so are
the weights of all presets but `tiny`. Several processes are started by `accelerate launch`, one for
each GPU, and on a CPU, where that starts one alone, by `torchrun`.
"""

import argparse
import subprocess
import sys
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
from foley.tuning.team import join_team
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


def work(options: Any) -> None:
    """Take the steps, as one of the processes; the first one writes what came of them."""
    preset = PRESETS[options.preset]
    with join_team(choose_device(options.device)) as (team, device):
        on_gpu = device.type == "cuda"
        dtype = getattr(torch, options.dtype)
        dit = load_dit(preset, device, dtype)
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
        if not team.leads:
            return
        figures = {
            "processes": team.size,
            "backend": torch.distributed.get_backend() if team.size > 1 else None,
            "losses": losses,
            "steps_a_second": 1 / median(seconds[_WARM_UP_STEPS:]),
            "peak_gib": torch.cuda.max_memory_allocated(device) / _GIB if on_gpu else None,
        }
        state = {key: tensor.cpu() for key, tensor in trainer.adapter.state_dict().items()}
        torch.save({"figures": figures, "adapter": state}, options.worker)


def run_processes(arguments: list[str], count: int, is_cpu: bool) -> dict[str, Any]:
    """Return what so many processes wrote."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.pt"
        if is_cpu:
            launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(count)]
        else:
            launch = ["-m", "accelerate.commands.launch", "--multi_gpu"]
            launch += ["--num_processes", str(count), "--num_machines", "1"]
            launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
        module = ["-m", "benchmarks.bench_train", *arguments, "--worker", str(path)]
        command = [sys.executable, *(launch if count > 1 else []), *module]
        subprocess.run(command, check=True)
        made: dict[str, Any] = torch.load(path, weights_only=True)
        assert made["figures"]["processes"] == count
        return made


def compare(one: dict[str, Any], many: dict[str, Any]) -> dict[str, float]:
    """Return how far the losses and the adapters of two trainings are apart.

    The largest difference of a step's loss is a share of the mean loss: a step whose clips are all
    to be kept has hardly any.

    Args:
        one: of `run_processes`.
        many: of `run_processes`, with the same steps.
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
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8, help="clips of a step")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a clip")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    add_record_options(parser)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    is_cpu = choose_device(options.device).type == "cpu"
    one, many = (run_processes(sys.argv[1:], count, is_cpu) for count in (1, options.processes))
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

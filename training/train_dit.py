"""Trains the transformer and the text encoder by flow matching; the other parts are frozen.

    python -m training.train_dit --state FOLDER --out FOLDER [--minutes 8] [--resume FOLDER]
    torchrun --nproc-per-node 4 -m training.train_dit ...     the same on several GPUs

`--state` holds what train_vae and train_encoders wrote, and the tokenizer.
"""

# B clips, A latent frames

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from foley.models.encoders import build_vision_encoder
from foley.models.synchformer import build_synchformer
from training import clips, text
from training.analysis import ACTIVE, Analysis
from training.features import Cache, Encoders, Words
from training.flow import FlowModel, loss_of
from training.optimizers import MuonAndAdamW, PlainAdamW
from training.scene import FPS
from training.settings import (
    TRAINED,
    Average,
    Budget,
    load_compiled,
    load_state,
    record,
    save_compiled,
    save_state,
    set_up,
)
from training.team import Team

DATA_SEED = 303
LENGTHS = (  # frames; half of all batches last 3 to 8 s
    *(40, 45, 50, 56, 62, 68),
    *(76, 84, 92, 100, 110, 120, 125, 133, 142, 152, 164, 176, 188, 200),
    *(220, 244, 270, 300, 330, 352, 375),
)
OPTIMIZERS = {"muon": MuonAndAdamW, "adamw": PlainAdamW}
WARM_UP = 200  # steps
_PACE = 8  # steps between two looks at the clock and at the share of drawing


class FewLengths:
    """A schedule of batches of these lengths, about `total_seconds` each."""

    def __init__(self, total_seconds: float) -> None:
        self.total_seconds = total_seconds

    def __call__(self, rng: np.random.Generator) -> tuple[float, int]:
        """A length in seconds and how many clips of it."""
        usual = [n for n in LENGTHS if 75 <= n <= 200]
        frames = int(rng.choice(usual if rng.random() < 0.5 else LENGTHS))
        seconds = frames / FPS
        return seconds, min(60, max(1, round(self.total_seconds / seconds)))


def load_frozen(
    state: Path, device: torch.device, *, fast: bool
) -> tuple[Analysis, Encoders, Words]:
    """The parts that earlier runs trained."""
    analysis = Analysis().to(device)
    analysis.load_state_dict(load_state(state / "analysis.safetensors"))
    weights = load_state(state / "encoders.safetensors", device)
    sync = build_synchformer(TRAINED.synchformer).to(device).eval().requires_grad_(False)
    vision = build_vision_encoder(TRAINED.vision).to(device).eval().requires_grad_(False)
    for prefix, module in (("sync.", sync), ("vision.", vision)):
        own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        module.load_state_dict(own)
    return analysis, Encoders(sync, vision, fast=fast), Words(state / "tokenizer")


def rate_at(progress: float, step: int, peak: float, decay_from: float) -> float:
    """A warm-up, a plateau, and a straight line to a fiftieth of the peak."""
    left = min(1.0, (1 - progress) / (1 - decay_from))
    return peak * min(1.0, (step + 1) / WARM_UP) * (0.02 + 0.98 * left)


def main() -> None:
    """Run the training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--data-seed", type=int, default=DATA_SEED, help="another where resumed")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="muon")
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--decay-from", type=float, default=0.5, help="of the time")
    parser.add_argument("--latents", type=int, default=40_000, help="latent frames in a batch")
    parser.add_argument("--fill", type=float, default=20.0, help="seconds of drawing before")
    parser.add_argument("--share", type=float, default=0.3, help="of the time, drawing later")
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--eager", action="store_true", help="compile no blocks")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    team = Team.join()
    device = set_up(3)  # the same initial weights everywhere
    on_gpu = device.type == "cuda"
    args.out.mkdir(parents=True, exist_ok=True)
    budget = Budget(args.minutes, max_steps=2 if args.smoke else None)
    analysis, encoders, words = load_frozen(args.state, device, fast=on_gpu)
    model = FlowModel().to(device)
    if args.resume:
        model.load_state_dict(load_state(args.resume / "dit.safetensors"))
    torch.manual_seed(3 + args.data_seed + team.rank)
    load_compiled(args.state)
    if on_gpu and not args.eager:
        for block in (*model.dit.joint_blocks, *model.dit.audio_blocks):
            block.forward = torch.compile(block.forward, dynamic=True)
    optimizer = OPTIMIZERS[args.optimizer](model, args.rate)
    average = Average(model, 0.998)
    negative = words.ids([*(p for p in text.NEGATIVE if p), ""]).to(device)
    cache = Cache(analysis, encoders, words, device, 40.0 if args.smoke else 4000.0)
    schedule = clips.FixedSize(2.0, 2) if args.smoke else FewLengths(96.0)
    seed = args.data_seed + 1000 * team.rank
    stream = clips.stream(seed, schedule, 0 if args.smoke else args.workers)

    def draw() -> float:
        """A new batch in the cache; the seconds that it took."""
        start = budget.elapsed
        cache.add(next(stream))
        if on_gpu:
            torch.cuda.synchronize()
        return budget.elapsed - start

    draw()  # compiles the drawing and the encoders
    filled = budget.elapsed + args.fill
    while budget.elapsed < filled and not (args.smoke and cache.clips >= 4):
        draw()
    print(f"{budget.elapsed:.0f} s: {cache.clips} clips, {cache.seen_seconds:.0f} s", flush=True)
    begun, drawing = budget.elapsed, 0.0
    step, shown, log = 0, time.monotonic(), []
    total = 400 if args.smoke else args.latents
    progress = team.mean(budget.progress(step))
    while progress < 1.0:
        _, entry = cache.draw(total)
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            losses = loss_of(model, entry, negative)
        losses.total.backward()
        team.average(optimizer.gradients())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(rate_at(progress, step, args.rate, args.decay_from))
        average.update()
        step += 1
        if step % _PACE == 0 or args.smoke:
            progress = team.mean(budget.progress(step))
            if team.mean(drawing) < args.share * team.mean(budget.elapsed - begun):
                drawing += draw()
        if team.leads and (time.monotonic() - shown > 15 or args.smoke):
            shown = time.monotonic()
            log.append([step, round(budget.elapsed), *losses.numbers()])
            print(
                f"step {step} {budget.elapsed:.0f} s flow, onset, place, aligned {log[-1][2:]} "
                f"clips {cache.clips}",
                flush=True,
            )
    seen_clips, seen_seconds = team.mean(cache.clips), team.mean(cache.seen_seconds)
    if team.leads:
        average.swap()
        with torch.no_grad():  # noise channels pass unchanged
            model.dit.velocity_out.weight[ACTIVE:] = 0
            model.dit.velocity_out.bias[ACTIVE:] = 0
        save_state(args.out / "dit.safetensors", model.state_dict(), half=True)
        if on_gpu:
            save_compiled(args.out / "dit.compiled")
        record(
            args.out / "dit.json",
            what="dit",
            data_seed=args.data_seed,
            gpus=team.size,
            optimizer=args.optimizer,
            rate=args.rate,
            decay_from=args.decay_from,
            steps=step,
            latents_a_batch=total * team.size,
            clips=round(seen_clips * team.size),
            seconds_of_clips=round(seen_seconds * team.size),
            seconds=round(budget.elapsed, 1),
            resumed=bool(args.resume),
            losses=log,
        )
    team.leave()


if __name__ == "__main__":
    main()

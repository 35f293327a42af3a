"""Trains the transformer and the text encoder by flow matching; the other parts are frozen.

    python -m training.train_dit --state FOLDER --out FOLDER [--minutes 8] [--resume FOLDER]

`--state` holds what train_vae and train_encoders wrote, and the tokenizer.
"""

# B clips, A latent frames, L latent channels, T text tokens

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foley.models.dit import FoleyDiT, build_dit
from foley.models.encoders import build_text_encoder, build_vision_encoder
from foley.models.synchformer import build_synchformer
from training import clips, text
from training.analysis import ACTIVE, LATENT_DIM, Analysis
from training.features import PAD, Cache, Encoders, Words
from training.scene import FPS
from training.settings import (
    TRAINED,
    Average,
    Budget,
    learning_rate,
    load_compiled,
    load_state,
    record,
    save_compiled,
    save_state,
    set_up,
)

DATA_SEED = 303
LENGTHS = (  # frames; half of all batches last 3 to 8 s
    *(40, 45, 50, 56, 62, 68),
    *(76, 84, 92, 100, 110, 120, 125, 133, 142, 152, 164, 176, 188, 200),
    *(220, 244, 270, 300, 330, 352, 375),
)
DROP_ALL, DROP_PICTURE, DROP_TEXT = 0.1, 0.05, 0.05
ONSET_WEIGHT, PLACE_WEIGHT = 0.5, 0.3


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


class FlowModel(nn.Module):
    """What is trained together: the transformer, the text encoder, and two heads for training.

    Sync tokens are laid beside their moment by an amount that follows from the place in the clip.
    One head tells that place from the audio tokens after the joint blocks, the other the onsets
    from those in the middle of the audio blocks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dit = build_dit(TRAINED.dit)
        self.text = build_text_encoder(TRAINED.text)
        self.place = nn.Linear(TRAINED.dit.hidden_dim, 1)
        self.onset = nn.Linear(TRAINED.dit.hidden_dim, 1)
        start_as_identity(self.dit)
        # Audio tokens of the last call.
        self.after_joint = self.in_the_middle = torch.empty(0)
        self.dit.joint_blocks[-1].register_forward_hook(self._keep_joint)
        self.dit.audio_blocks[1].register_forward_hook(self._keep_middle)

    def _keep_joint(self, block: nn.Module, inputs: object, outputs: tuple[Tensor, Tensor]) -> None:
        self.after_joint = outputs[0]

    def _keep_middle(self, block: nn.Module, inputs: object, output: Tensor) -> None:
        self.in_the_middle = output


def start_as_identity(dit: FoleyDiT) -> None:
    """Closed gates: at first every block passes its input on, and the velocity is zero."""
    for projection in dit.time_projections:
        for stream in (projection.audio, projection.visual):
            nn.init.zeros_(stream.weight)
            nn.init.zeros_(stream.bias)
    for block in dit.audio_blocks:
        nn.init.zeros_(block.modulation.weight)
        nn.init.zeros_(block.modulation.bias)
    nn.init.zeros_(dit.velocity_out.weight)
    nn.init.zeros_(dit.velocity_out.bias)
    nn.init.normal_(dit.clip_in.sync_position, std=0.02)


def dropped(
    model: FlowModel, entry: dict[str, Tensor], negative: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Visual, sync and text ids of a batch, some of them emptied for guidance.

    Args:
        model: holds the empty features.
        entry: of the cache.
        negative: int64 [N, T], ids of negative prompts; the last one is the empty prompt.
    """
    count, device = len(entry["latents"]), entry["latents"].device
    chance = torch.rand(count, device=device)
    blind = (chance < DROP_ALL + DROP_PICTURE)[:, None, None]
    visual = torch.where(blind, model.dit.clip_in.empty_visual, entry["visual"].float())
    sync = torch.where(blind, model.dit.clip_in.empty_sync, entry["sync"].float())
    longest = int(entry["lengths"].max())
    length = max(longest, negative.shape[1]) + int(torch.randint(0, 3, ()))
    ids = F.pad(entry["tokens"], (0, 40), value=PAD)[:, :length]
    other = F.pad(negative, (0, length - negative.shape[1]), value=PAD)
    drawn = other[torch.randint(len(other), (count,), device=device)]
    # Half of the emptied ones hear the usual negative prompt, the first.
    drawn = torch.where(torch.rand(count, 1, device=device) < 0.5, other[0], drawn)
    ids = torch.where((chance < DROP_ALL)[:, None], drawn, ids)
    silent = (chance > 1 - DROP_TEXT)[:, None]
    return visual, sync, torch.where(silent, other[-1], ids)


def loss_of(
    model: FlowModel, entry: dict[str, Tensor], negative: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Flow-matching loss over the active channels, and the losses of both heads."""
    clean = entry["latents"].float()
    device = clean.device
    noise = torch.randn(len(clean), LATENT_DIM, clean.shape[-1], device=device)
    spread = torch.sigmoid(torch.randn(len(clean), device=device) * 1.1)
    even = torch.rand(len(clean), device=device)
    sigma = torch.where(torch.rand(len(clean), device=device) < 0.5, spread, even)
    mix = sigma[:, None, None]
    active = (1 - mix) * clean + mix * noise[:, :ACTIVE]
    latents = torch.cat((active, noise[:, ACTIVE:]), dim=1)
    visual, sync, ids = dropped(model, entry, negative)
    words = model.text(input_ids=ids, attention_mask=(ids != PAD).long()).last_hidden_state
    context = model.dit.context(visual, sync, words, clean.shape[-1])
    velocity = model.dit(latents, model.dit.time_modulation(sigma), context)
    flow = (velocity[:, :ACTIVE] - (noise[:, :ACTIVE] - clean)).square().mean()
    curve = entry["curve"].float()
    onset = model.onset(model.in_the_middle.float())[..., 0]
    place = model.place(model.after_joint.float())[..., 0]
    # Where there is little noise the latents themselves tell.
    weight = (1 + 4 * (curve > 0)) * 2 * sigma[:, None]
    auxiliary = F.binary_cross_entropy_with_logits(onset, curve, weight=weight)
    target = torch.linspace(-1, 1, clean.shape[-1], device=device).expand_as(place)
    return flow, auxiliary, F.mse_loss(place, target)


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


def main() -> None:
    """Run the training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--data-seed", type=int, default=DATA_SEED, help="another where resumed")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--rate", type=float, default=1.2e-3)
    parser.add_argument("--latents", type=int, default=50_000, help="latent frames in a batch")
    parser.add_argument("--fill", type=float, default=25.0, help="seconds of drawing before")
    parser.add_argument("--share", type=float, default=0.3, help="of the time, drawing later")
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--eager", action="store_true", help="compile no blocks")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    device = set_up(3)
    on_gpu = device.type == "cuda"
    args.out.mkdir(parents=True, exist_ok=True)
    budget = Budget(args.minutes, max_steps=2 if args.smoke else None)
    analysis, encoders, words = load_frozen(args.state, device, fast=on_gpu)
    model = FlowModel().to(device)
    if args.resume:
        model.load_state_dict(load_state(args.resume / "dit.safetensors"))
    load_compiled(args.state)
    if on_gpu and not args.eager:
        for block in (*model.dit.joint_blocks, *model.dit.audio_blocks):
            block.forward = torch.compile(block.forward, dynamic=True)
    optimizer = torch.optim.AdamW(
        model.parameters(), args.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=on_gpu
    )
    average = Average(model, 0.998)
    negative = words.ids([*(p for p in text.NEGATIVE if p), ""]).to(device)
    cache = Cache(analysis, encoders, words, device, 40.0 if args.smoke else 4000.0)
    schedule = clips.FixedSize(2.0, 2) if args.smoke else FewLengths(96.0)
    stream = clips.stream(args.data_seed, schedule, 0 if args.smoke else args.workers)
    cache.add(next(stream))  # compiles the drawing and the encoders
    filled = budget.elapsed + args.fill
    while budget.elapsed < filled and not (args.smoke and cache.clips >= 4):
        cache.add(next(stream))
        if on_gpu:
            torch.cuda.synchronize()
    print(f"{budget.elapsed:.0f} s: {cache.clips} clips, {cache.seen_seconds:.0f} s", flush=True)
    begun, drawing = budget.elapsed, 0.0
    step, shown, log = 0, time.monotonic(), []
    total = 400 if args.smoke else args.latents
    while (progress := budget.progress(step)) < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress, args.rate, step, 200)
        _, entry = cache.draw(total)
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            flow, onset, place = loss_of(model, entry, negative)
        optimizer.zero_grad(set_to_none=True)
        (flow + ONSET_WEIGHT * onset + PLACE_WEIGHT * place).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update()
        step += 1
        if step % 8 == 0 and drawing < args.share * (budget.elapsed - begun):
            if on_gpu:
                torch.cuda.synchronize()
            start = budget.elapsed
            cache.add(next(stream))
            if on_gpu:
                torch.cuda.synchronize()
            drawing += budget.elapsed - start
        if time.monotonic() - shown > 15 or args.smoke:
            shown = time.monotonic()
            losses = [round(loss.item(), 4) for loss in (flow, onset, place)]
            log.append([step, round(budget.elapsed), *losses])
            print(
                f"step {step} {budget.elapsed:.0f} s flow, onset, place {losses} "
                f"clips {cache.clips}",
                flush=True,
            )
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
        steps=step,
        latents_a_batch=total,
        clips=cache.clips,
        seconds_of_clips=round(cache.seen_seconds),
        seconds=round(budget.elapsed, 1),
        resumed=bool(args.resume),
        losses=log,
    )


if __name__ == "__main__":
    main()

"""Train the visual encoders to predict the events in the pictures.

    python -m training.train_encoders --out FOLDER [--minutes 7] [--resume FOLDER]
    torchrun --nproc-per-node 4 -m training.train_encoders ...     the same on several GPUs

The heads are used only here. The tokens of the encoders then contain the time, place and force of
contacts.
"""

# B clips, n frames, G segments of all clips, P patches, C width

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foley.gpu.placement import to_device
from foley.models.encoders import build_vision_encoder
from foley.models.synchformer import Synchformer, build_synchformer
from training import clips, judge, labels
from training.distributed import ProcessGroup
from training.film import film
from training.optimizers import OPTIMIZERS
from training.scene import FPS, LAYERS, UNSEEN
from training.settings import (
    TRAINED,
    TrainingBudget,
    WeightAverage,
    learning_rate,
    load_compile_cache,
    load_state,
    save_compile_cache,
    save_state,
    set_up,
    write_record,
)

DATA_SEED = 202
HELD_OUT_SEED = 909
FRAMES = 32  # of a crop, which has three segments
SCENE_SECONDS = 4.0
THRESHOLDS = (0.2, 0.3, 0.4, 0.5)
_PROCESSES = 12  # that render held-out clips
_CLOCK_STEPS = 8  # steps between two readings of the clock
RENDERED_POOL = 440  # number of rendered batches that are kept, 164 MB each
RENDERED_FRAMES = 136  # of a rendered clip, long enough for the transformer's training
FILMED_SHARE = 0.5  # of the drawn batches
POOL, USES = 96, 3  # number of drawn batches, 231 MB each, and how often each one is used


class SyncHeads(nn.Module):
    """Heads on a sync token: onset and force in four bins, continuous levels, material, size."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        outputs = 2 * labels.BINS + len(LAYERS) + labels.NUM_KINDS + 1
        self.token = nn.Sequential(nn.Linear(dim, 256), nn.GELU(), nn.Linear(256, outputs))
        self.patch = nn.Linear(dim, 4)


class VisionHeads(nn.Module):
    """Heads on an image: continuous levels, materials, and a coarse map of objects that sound."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.outputs = nn.Linear(dim, len(LAYERS) + labels.NUM_KINDS + 49)


def normalise(pictures: Tensor) -> Tensor:
    """uint8 pictures as float32 in -1 to 1."""
    return pictures.float().div(255).sub(0.5).div(0.5)


def compute_segment_tokens(sync: Synchformer, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """The sync tokens [G, 8, C] and the patch tokens [G, 8, P, C] of clips.

    Args:
        sync: the encoder.
        pictures: float [B, n, 3, H, W] in -1 to 1.
    """
    batch = len(pictures)
    patches = sync.embed_patches(pictures.flatten(0, 1)).unflatten(0, (batch, -1))
    x = labels.group_by_tubelet(patches)  # [G, 8, P, C]
    x = x + sync.position[:, 1:] + sync.time_position.unsqueeze(2)
    first = (sync.cls_token + sync.position[:, :1]).expand(len(x), -1, -1)
    x = torch.cat((first, x.flatten(1, 2)), dim=1)
    for block in sync.blocks:
        x = block(x, sync.num_tubelets)
    patches = sync.norm(x[:, 1:]).unflatten(1, (sync.num_tubelets, -1))
    tokens = sync.aggregation(patches.flatten(0, 1)).unflatten(0, (len(x), -1))
    return tokens, patches


class CropPool:
    """A pool of drawn crops. Each is used several times, because drawing is slow.

    Half of the batches are filmed: seen through another lens, with cuts, noise and compression.

    Args:
        stream: of batches.
        size: number of batches in the pool.
        device: of the crops.
        seed: of the takes.
    """

    def __init__(
        self, stream: Iterator[clips.Batch], size: int, device: torch.device, seed: int
    ) -> None:
        self.stream, self.size, self.device = stream, size, device
        self.rng = np.random.default_rng(seed)
        self.kept: list[tuple[clips.Batch, Tensor]] = []
        self.turn = 0

    def draw(self) -> tuple[clips.Batch, Tensor]:
        """A batch of the pool and its pictures, uint8 [B, n, 3, H, W]."""
        if self.turn % USES == 0 or not self.kept:
            scenes = next(self.stream).to(self.device)
            first = int(torch.randint(int(SCENE_SECONDS * FPS) - FRAMES + 1, (1,)))
            batch = labels.crop(scenes, first, FRAMES)
            pictures = batch.pictures(fast=self.device.type == "cuda")
            if self.rng.random() < FILMED_SHARE:
                taken = film(replace(batch, drawn=pictures), self.rng)
                assert taken.drawn is not None
                batch, pictures = replace(taken, drawn=None), taken.drawn  # kept once
            drawn = batch, pictures
            place = self.turn // USES % self.size
            self.kept[place : place + 1] = [drawn]
        else:
            drawn = self.kept[int(torch.randint(len(self.kept), ()))]
        self.turn += 1
        return drawn


def sync_loss(heads: SyncHeads, tokens: Tensor, patches: Tensor, batch: clips.Batch) -> Tensor:
    """The loss of the heads on the sync encoder.

    Args:
        heads: on the tokens.
        tokens: [G, 8, C].
        patches: [G, 8, P, C].
        batch: with the labels.
    """
    half = FRAMES // 2
    curve = labels.onset_curve(batch, 0.02, half * labels.BINS, 0.03)
    curve = curve.unflatten(2, (half, labels.BINS)).permute(0, 2, 1, 3)  # [B, n / 2, 2, 4]
    target = labels.group_by_tubelet(curve)  # [G, 8, 2, 4]
    levels = labels.group_by_tubelet(labels.layer_levels(batch, half).transpose(1, 2))
    kinds = labels.material_share(batch).repeat_interleave(len(tokens) // len(batch), 0)
    out = heads.token(tokens).float()
    onset, force, level, kind, size = out.split(
        (labels.BINS, labels.BINS, len(LAYERS), labels.NUM_KINDS, 1), -1
    )
    weight = 1 + 4 * (target[:, :, 0] > 0)
    loss = (
        weight * F.binary_cross_entropy_with_logits(onset, target[:, :, 0], reduction="none")
    ).mean()
    struck = (target[:, :, 0] > 0.3).float()
    loss = loss + 2 * (struck * (force - target[:, :, 1]).square()).sum() / struck.sum().clamp_min(
        1
    )
    loss = loss + (level - levels).square().mean() * 2
    loss = loss + 0.05 * F.binary_cross_entropy_with_logits(kind, kinds[:, None].expand_as(kind))
    sizes = torch.zeros(len(batch), device=tokens.device)
    sizes.scatter_reduce_(0, batch.owner, batch.hits["size"], "mean", include_self=False)
    sizes = sizes.repeat_interleave(len(tokens) // len(batch))[:, None]
    here = struck.amax(-1)
    loss = loss + 0.3 * (here * (size[..., 0] - sizes).square()).sum() / here.sum().clamp_min(1)

    dense = labels.group_by_tubelet(labels.dense_maps(batch))  # [G, 8, P, 4]
    found = heads.patch(patches).float()
    where = F.binary_cross_entropy_with_logits(found[..., :2], dense[..., :2], reduction="none")
    where = (where * (1 + 4 * dense[..., :2])).mean((0, 1, 2))
    moving = 0.1 + dense[..., 1:2]
    speed = (moving * (found[..., 2:] - dense[..., 2:]).square()).mean()
    return loss + 4 * where[0] + where[1] + speed


def vision_loss(heads: VisionHeads, pooled: Tensor, batch: clips.Batch, frames: Tensor) -> Tensor:
    """The loss of the heads on the vision encoder.

    Args:
        heads: on the images.
        pooled: [B * m, C], the encoder's output.
        batch: with the labels.
        frames: int64 [B, m], the indices of the images.
    """
    out = heads.outputs(pooled).float()
    level, kind, place = out.split((len(LAYERS), labels.NUM_KINDS, 49), -1)
    rows = torch.arange(len(batch), device=pooled.device)[:, None]
    levels = labels.layer_levels(batch, FRAMES).transpose(1, 2)[rows, frames].flatten(0, 1)
    kinds = labels.material_share(batch)[rows.expand_as(frames)].flatten(0, 1)
    presence = labels.dense_maps(batch)[..., 1][rows, frames // 2]  # [B, m, P]
    coarse = F.max_pool2d(presence.flatten(0, 1).unflatten(-1, (14, 14))[:, None], 2).flatten(1)
    return (
        4 * (level - levels).square().mean()
        + F.binary_cross_entropy_with_logits(kind, kinds)
        + 2 * F.binary_cross_entropy_with_logits(place, coarse)
    )


@torch.no_grad()
def score_onsets(
    sync: Synchformer, heads: SyncHeads, batches: list[clips.Batch], threshold: float = 0.4
) -> judge.Match:
    """The match of the onsets that the head predicts with the events of held-out crops.

    Args:
        sync: the encoder.
        heads: on its tokens.
        batches: of crops.
        threshold: least probability of an onset.
    """
    match = judge.Match()
    device = batches[0].reverb.device
    for batch in batches:
        pictures = normalise(batch.pictures(fast=device.type == "cuda"))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            tokens, _ = compute_segment_tokens(sync, pictures)
            onset = heads.token(tokens)[..., : labels.BINS].float().sigmoid()
        count = FRAMES // 2 * labels.BINS
        onset = onset.flatten(1, 2).unflatten(0, (len(batch), -1))  # [B, 3, 32]
        curve = torch.zeros(len(batch), count, device=device)
        views = torch.zeros(count, device=device)
        for segment in range(onset.shape[1]):
            start = segment * 16
            curve[:, start : start + 32] += onset[:, segment]
            views[start : start + 32] += 1
        curve = curve / views
        highest = F.max_pool1d(curve[:, None], 5, 1, 2)[:, 0]
        peaks = (curve == highest) & (curve > threshold)
        for clip in range(len(batch)):
            found = [(i + 0.5) * 0.02 for i in peaks[clip].nonzero().flatten().tolist()]
            truth = batch.hits["seconds"][batch.owner == clip].tolist()
            match.add(found, judge.merge_close_events(truth))
    return match


def _score_at_best_threshold(
    sync: Synchformer, heads: SyncHeads, crops: list[clips.Batch]
) -> dict[str, float]:
    """Return the figures of `score_onsets` at the threshold with the highest F1."""
    tried = {t: score_onsets(sync, heads, crops, t) for t in THRESHOLDS}
    threshold, scores = max(tried.items(), key=lambda item: item[1].f1)
    return {
        "threshold": threshold,
        "onset_f1": scores.f1,
        "precision": scores.precision,
        "recall": scores.recall,
        "median_error_ms": scores.median_error_ms,
    }


def measure_onsets(
    sync: Synchformer, heads: SyncHeads, count: int, batches: int
) -> dict[str, dict[str, float]]:
    """The figures of `score_onsets` on drawn held-out crops, at the best threshold.

    Args:
        sync: the encoder.
        heads: on its tokens.
        count: crops of a batch.
        batches: number of batches.
    """
    device = sync.position.device
    figures = {}
    for name, style in (("held_out", None), ("unseen_style", UNSEEN)):
        options = {"style": style} if style else {}
        crops = []
        for i in range(batches):
            scenes = clips.make_batch(HELD_OUT_SEED, i * count, count, SCENE_SECONDS, **options)
            crops.append(labels.crop(scenes.to(device), 10 * (i % 6), FRAMES))
        figures[name] = _score_at_best_threshold(sync, heads, crops)
    return figures


def measure_rendered_onsets(
    sync: Synchformer, heads: SyncHeads, count: int, batches: int
) -> dict[str, dict[str, float]]:
    """The figures of `score_onsets` on rendered held-out clips of 4 s, by seen and unseen looks.

    Args:
        sync: the encoder.
        heads: on its tokens.
        count: crops of a batch.
        batches: number of batches.
    """
    from training.rendered.evaluate import make_clips
    from training.rendered.stream import collate

    figures = {}
    for name, unseen in (("rendered", False), ("rendered_unseen", True)):
        made = make_clips(count * batches, SCENE_SECONDS, unseen=unseen, processes=_PROCESSES)
        crops = []
        for index in range(batches):
            whole = collate(made[index * count : (index + 1) * count])
            crops.append(labels.crop(whole.to(sync.position.device), 20 * (index % 4), FRAMES))
        figures[name] = _score_at_best_threshold(sync, heads, crops)
    return figures


def main() -> None:
    """Run the training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path)
    parser.add_argument(
        "--data-seed", type=int, default=DATA_SEED, help="use another one when resuming"
    )
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="muon")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--workers", type=int, default=5)
    parser.add_argument("--rendered", type=float, default=0.0, help="share of rendered batches")
    parser.add_argument("--render-workers", type=int, default=10)
    parser.add_argument(
        "--keep-rendered", type=Path, help="a folder for all rendered clips, 20 MB each"
    )
    parser.add_argument(
        "--kept", type=Path, help="a folder of clips that another training rendered and kept"
    )
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    group = ProcessGroup.join()
    device = set_up(2)  # the same initial weights in all processes
    args.out.mkdir(parents=True, exist_ok=True)
    budget = TrainingBudget(args.minutes, max_steps=2 if args.smoke else None)
    on_gpu = device.type == "cuda"
    sync = to_device(build_synchformer(TRAINED.synchformer), device).train()
    vision = to_device(build_vision_encoder(TRAINED.vision), device).train()
    for parameter in (
        sync.position,
        sync.time_position,
        sync.cls_token,
        sync.aggregation.cls_token,
    ):
        nn.init.normal_(parameter, std=0.02)
    sync_heads = SyncHeads(TRAINED.synchformer.hidden_dim).to(device)
    vision_heads = VisionHeads(TRAINED.vision.hidden_dim).to(device)
    model = nn.ModuleDict(
        {"sync": sync, "vision": vision, "sync_heads": sync_heads, "vision_heads": vision_heads}
    )
    if args.resume:
        model.load_state_dict(load_state(args.resume / "encoders.safetensors"))
        load_compile_cache(args.resume)
    seed = args.data_seed + 1000 * group.rank
    torch.manual_seed(2 + seed)
    optimizer = OPTIMIZERS[args.optimizer](model, args.rate)
    average = WeightAverage(model, 0.999)
    tokens_of = torch.compile(compute_segment_tokens) if on_gpu else compute_segment_tokens
    count = 2 if args.smoke else args.batch
    size = clips.FixedSize(SCENE_SECONDS, count)
    stream = clips.stream(seed, size, 0 if args.smoke else args.workers)
    pool = CropPool(stream, POOL, device, seed)
    rendered = None
    if args.rendered:
        from training.rendered.stream import Lengths, RenderedPool, RenderedStream

        recipe = Lengths((FRAMES,), 2) if args.smoke else Lengths((RENDERED_FRAMES,), 8)
        keep = args.keep_rendered
        renderer = RenderedStream(seed + 1, recipe, args.render_workers, keep=keep)
        rendered = RenderedPool(renderer, RENDERED_POOL, device, seed, args.kept)
    step, shown, log = 0, time.monotonic(), []
    # All processes take the same kind of batch, since the others wait for one that has to draw.
    kinds = torch.Generator().manual_seed(args.data_seed)
    progress = group.mean(budget.progress(step))
    while progress < 1.0:
        drawn = None
        if rendered is not None:
            rendered.refresh()
            if torch.rand((), generator=kinds) < args.rendered:
                drawn = rendered.draw_crops(FRAMES, count)
        batch, pictures = pool.draw() if drawn is None else (drawn, drawn.pictures())
        pictures = normalise(pictures)
        picked = torch.randint(FRAMES, (len(batch), 3), device=device)
        images = pictures[torch.arange(len(batch), device=device)[:, None], picked].flatten(0, 1)
        images = F.avg_pool2d(images, 2)
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            tokens, patches = tokens_of(sync, pictures)
            seen = sync_loss(sync_heads, tokens, patches, batch)
            pooled = vision(pixel_values=images).pooler_output
            looked = vision_loss(vision_heads, pooled, batch, picked)
        model.zero_grad(set_to_none=True)
        (seen + looked).backward()
        group.average(optimizer.gradients())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(learning_rate(progress, args.rate, step, 200))
        average.update()
        step += 1
        if step % _CLOCK_STEPS == 0 or args.smoke:
            progress = group.mean(budget.progress(step))
        if group.is_main and (time.monotonic() - shown > 20 or args.smoke):
            shown = time.monotonic()
            log.append(
                [step, round(budget.elapsed), round(seen.item(), 4), round(looked.item(), 4)]
            )
            print(
                f"step {step} {budget.elapsed:.0f} s sync {seen:.4f} vision {looked:.4f}",
                flush=True,
            )
    if rendered is not None:
        renderer.stop()
    if group.is_main:
        average.swap()
        model.eval()
        save_state(args.out / "encoders.safetensors", model.state_dict())
        if on_gpu:
            save_compile_cache(args.out / "encoders.compiled")
        figures = measure_onsets(sync, sync_heads, count, 1 if args.smoke else 8)
        if rendered is not None:
            few = (2, 1) if args.smoke else (16, 4)
            figures |= measure_rendered_onsets(sync, sync_heads, *few)
        write_record(
            args.out / "encoders.json",
            what="encoders",
            data_seed=args.data_seed,
            gpus=group.size,
            optimizer=args.optimizer,
            rate=args.rate,
            steps=step,
            batch=args.batch * group.size,
            seconds=round(budget.elapsed, 1),
            resumed=bool(args.resume),
            rendered=args.rendered,
            rendered_batches=renderer.batches if rendered is not None else 0,
            losses=log,
            onset_head=figures,
        )
    group.leave()


if __name__ == "__main__":
    main()

"""Train the transformer and the text encoder by flow matching; the other parts are frozen.

    python -m training.train_dit --state FOLDER --out FOLDER [--minutes 8] [--resume FOLDER]
    torchrun --nproc-per-node 4 -m training.train_dit ...     the same on several GPUs

`--state` is a folder with the results of train_vae and train_encoders, and the tokenizer.
"""

# B clips, A latent frames

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from foley.gpu.placement import to_device
from foley.media.clock import num_latents
from foley.models.analysis import ACTIVE, Analysis
from foley.models.encoders import build_vision_encoder
from foley.models.synchformer import build_synchformer, count_segments
from training import clips, text
from training.distributed import ProcessGroup
from training.fast import RecordedSteps, use_fast_kernels
from training.features import (
    MAX_TOKENS,
    CacheFiller,
    ClipCache,
    FrozenEncoders,
    PromptTokenizer,
    visual_frame_indices,
)
from training.flow import FlowModel, Losses, compute_losses
from training.optimizers import OPTIMIZERS
from training.scene import FPS
from training.settings import (
    TRAINED,
    TrainingBudget,
    WeightAverage,
    load_compile_cache,
    load_state,
    save_compile_cache,
    save_state,
    set_up,
    write_record,
)

DATA_SEED = 303
LENGTHS = tuple(range(40, 377, 8))  # frames; half of all batches last 3 to 8 s
RENDERED_LENGTHS = (56, 72, 88, 104, 120, 136, 152, 168, 184, 200, 248)
# Tokens of the text with padding, used in turn for the lengths. A pair of prompts has 5 or more.
TEXT_TOKENS = (5, 18, 7, 12, 9)
WARM_UP = 200  # steps
_CLOCK_STEPS = 8  # steps between two readings of the clock
_MAX_WAIT_SECONDS = 600
_RENDERED_POOL = 480  # number of rendered batches that are kept for other takes


class FewLengths:
    """A schedule of batches of `LENGTHS`.

    Args:
        total_seconds: of all clips of a batch, approximately.
    """

    def __init__(self, total_seconds: float) -> None:
        self.total_seconds = total_seconds

    def __call__(self, rng: np.random.Generator) -> tuple[float, int]:
        """A random length in seconds, and the number of clips."""
        usual = [n for n in LENGTHS if 75 <= n <= 200]
        frames = int(rng.choice(usual if rng.random() < 0.5 else LENGTHS))
        seconds = frames / FPS
        return seconds, min(60, max(1, round(self.total_seconds / seconds)))


def load_frozen(
    state: Path, device: torch.device
) -> tuple[Analysis, FrozenEncoders, PromptTokenizer]:
    """Load the analysis, the visual encoders and the tokenizer from a state folder."""
    return (
        load_analysis(state, device),
        load_encoders(state, device),
        PromptTokenizer(state / "tokenizer"),
    )


def load_analysis(state: Path, device: torch.device) -> Analysis:
    """Load the analysis from a state folder."""
    analysis = Analysis().to(device)
    analysis.load_state_dict(load_state(state / "analysis.safetensors"))
    return analysis


def load_encoders(state: Path, device: torch.device) -> FrozenEncoders:
    """Load the visual encoders from a state folder."""
    weights = load_state(state / "encoders.safetensors", device)
    sync = to_device(build_synchformer(TRAINED.synchformer), device).eval().requires_grad_(False)
    vision = to_device(build_vision_encoder(TRAINED.vision), device).eval().requires_grad_(False)
    for prefix, module in (("sync.", sync), ("vision.", vision)):
        own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        module.load_state_dict(own)
    return FrozenEncoders(sync, vision)


class LateEncoders:
    """Visual encoders that another process still trains; their first use waits for them.

    Args:
        folder: in which encoders.safetensors appears.
        device: of the encoders.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._folder, self._device = folder, device
        self._encoders: FrozenEncoders | None = None

    def __call__(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """The visual tokens and the sync tokens, as `FrozenEncoders`.

        Raises:
            TimeoutError: there are no encoders after ten minutes.
        """
        if self._encoders is None:
            until = time.monotonic() + _MAX_WAIT_SECONDS
            while not (self._folder / "encoders.safetensors").exists():
                if time.monotonic() > until:
                    raise TimeoutError(f"no encoders in {self._folder}")
                time.sleep(0.2)
            self._encoders = load_encoders(self._folder, self._device)
        return self._encoders(pictures)


def compute_rate(progress: float, step: int, peak: float, decay_from: float) -> float:
    """The learning rate: a warm-up, a plateau, and a linear decay to a fiftieth of the peak.

    Args:
        progress: share of the run, 0 to 1.
        step: number of this step, from 0.
        peak: largest rate.
        decay_from: share of the run at which the decay begins.
    """
    left = min(1.0, (1 - progress) / (1 - decay_from))
    return peak * min(1.0, (step + 1) / WARM_UP) * (0.02 + 0.98 * left)


class StepRunner:
    """Computes losses and gradients of batches, each of one length.

    On a GPU, recorded steps are replayed.

    Args:
        model: to train.
        cache: of clips.
        negative: ids of the negative prompts.
        total: latent frames of a batch.
    """

    def __init__(self, model: FlowModel, cache: ClipCache, negative: Tensor, total: int) -> None:
        self.model, self.cache, self.negative, self.total = model, cache, negative, total
        self.recorded = RecordedSteps(model, negative) if cache.device.type == "cuda" else None

    def size(self, num_frames: int) -> int:
        """The number of clips in a batch of this length."""
        return max(2, self.total // num_latents(num_frames))

    def num_tokens(self, num_frames: int) -> int:
        """The number of text tokens, with padding, in a batch of this length."""
        return TEXT_TOKENS[LENGTHS.index(num_frames) % len(TEXT_TOKENS)]

    def record(self, num_frames: int) -> None:
        """Record the step for a length."""
        assert self.recorded is not None
        batch, device = self.size(num_frames), self.cache.device
        count, num_sync = num_latents(num_frames), 8 * count_segments(num_frames)
        num_visual = len(visual_frame_indices(num_frames, device))
        config = TRAINED.dit

        def normal(*shape: int) -> Tensor:
            return torch.randn(batch, *shape, device=device).half()

        example = {
            "latents": normal(ACTIVE, count),
            "visual": normal(num_visual, config.visual_dim),
            "sync": normal(num_sync, config.sync_dim),
            "curve": torch.rand(batch, count, device=device).half(),
            "tokens": torch.randint(3, TRAINED.text.vocab_size, (batch, MAX_TOKENS), device=device),
        }
        self.recorded.record(num_frames, example, self.num_tokens(num_frames))

    def __call__(self) -> Losses:
        """Compute the gradients for a batch; returns its losses."""
        num_frames, buffer = self.cache.choose()
        if self.recorded is not None:
            rows = buffer.rows(self.size(num_frames), self.num_tokens(num_frames))
            return self.recorded(num_frames, rows, buffer.store)
        rows = buffer.rows(max(2, self.total // buffer.num_latents), TEXT_TOKENS[0])
        entry = {name: value[rows] for name, value in buffer.store.items()}
        self.model.zero_grad(set_to_none=True)
        losses = compute_losses(self.model, entry, self.negative, TEXT_TOKENS[0])
        losses.total.backward()
        return losses


def main() -> None:
    """Run the training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path)
    parser.add_argument(
        "--data-seed", type=int, default=DATA_SEED, help="use another one when resuming"
    )
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="muon")
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--decay-from", type=float, default=0.5, help="share of the time")
    parser.add_argument("--latents", type=int, default=40_000, help="latent frames in a batch")
    parser.add_argument(
        "--fill", type=int, default=40, help="batches to draw before the first step"
    )
    parser.add_argument(
        "--share", type=float, default=0.35, help="of the time, for drawing and encoding"
    )
    parser.add_argument("--workers", type=int, default=10)
    parser.add_argument("--rendered", type=float, default=0.0, help="share of rendered batches")
    parser.add_argument("--render-workers", type=int, default=10)
    parser.add_argument(
        "--kept", type=Path, help="a folder of clips that another training rendered and kept"
    )
    parser.add_argument(
        "--keep-rendered", type=Path, help="a folder for all rendered clips, 20 MB each"
    )
    parser.add_argument(
        "--encoders", type=Path, help="a folder in which train_encoders will write them"
    )
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    group = ProcessGroup.join()
    device = set_up(3)  # the same initial weights in all processes
    on_gpu = device.type == "cuda"
    args.out.mkdir(parents=True, exist_ok=True)
    budget = TrainingBudget(args.minutes, max_steps=2 if args.smoke else None)
    analysis, words = load_analysis(args.state, device), PromptTokenizer(args.state / "tokenizer")
    encoders = (
        LateEncoders(args.encoders, device) if args.encoders else load_encoders(args.state, device)
    )
    cache = ClipCache(analysis, encoders, words, device, 40.0 if args.smoke else 4000.0)
    schedule = clips.FixedSize(2.0, 2) if args.smoke else FewLengths(96.0)
    seed = args.data_seed + 1000 * group.rank
    stream = clips.stream(seed, schedule, 0 if args.smoke else args.workers)
    model = FlowModel().to(device)
    if args.resume:
        model.load_state_dict(load_state(args.resume / "dit.safetensors"))
    torch.manual_seed(3 + seed)
    negative = words.encode([*(p for p in text.NEGATIVE if p), ""]).to(device)
    steps = StepRunner(model, cache, negative, 400 if args.smoke else args.latents)
    renderer = pool = None
    lengths = (48,) if args.smoke else RENDERED_LENGTHS
    if args.rendered:
        from training.rendered.stream import Lengths, RenderedPool, RenderedStream

        cache.rendered_share = args.rendered
        recipe = Lengths(lengths, 2 if args.smoke else 6)
        keep = args.keep_rendered
        renderer = RenderedStream(seed + 1, recipe, args.render_workers, keep=keep)
        pool = RenderedPool(renderer, _RENDERED_POOL, device, seed, args.kept)
    filler = CacheFiller(cache, stream, args.share, pool, lengths)
    if on_gpu:
        use_fast_kernels(model)
        load_compile_cache(args.state)  # the drawing
        for num_frames in LENGTHS:
            steps.record(num_frames)
        print(f"{budget.elapsed:.0f} s: steps recorded", flush=True)
        while filler.batches < args.fill or len(cache.buffers) < len(LENGTHS) // 2:
            filler.fill()
    else:
        if renderer is not None:
            cache.put(*cache.encode_batch(renderer.wait(300)), rendered=True)
        while not cache.buffers:
            filler.fill()
    optimizer = OPTIMIZERS[args.optimizer](model, args.rate)
    average = WeightAverage(model, 0.998)
    print(f"{budget.elapsed:.0f} s: {cache.clips} clips, {cache.seen_seconds:.0f} s", flush=True)
    step, shown, log = 0, time.monotonic(), []
    progress = group.mean(budget.progress(step))
    while progress < 1.0:
        filler.keep_up()
        losses = steps()
        group.average(optimizer.gradients())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(compute_rate(progress, step, args.rate, args.decay_from))
        average.update()
        step += 1
        if step % _CLOCK_STEPS == 0 or args.smoke:
            if on_gpu:
                torch.cuda.synchronize()  # so that the clock includes the work of the GPU
            progress = group.mean(budget.progress(step))
        if group.is_main and (time.monotonic() - shown > 15 or args.smoke):
            shown = time.monotonic()
            log.append([step, round(budget.elapsed), *losses.to_list()])
            print(
                f"step {step} {budget.elapsed:.0f} s flow, onset, place, aligned {log[-1][2:]} "
                f"clips {cache.clips}",
                flush=True,
            )
    if renderer is not None:
        renderer.stop()
    seen_clips, seen_seconds = group.mean(cache.clips), group.mean(cache.seen_seconds)
    if group.is_main:
        average.swap()
        with torch.no_grad():  # the velocity of the noise channels is zero
            model.dit.velocity_out.weight[ACTIVE:] = 0
            model.dit.velocity_out.bias[ACTIVE:] = 0
        save_state(args.out / "dit.safetensors", model.state_dict(), half=True)
        if on_gpu:
            save_compile_cache(args.out / "drawing.compiled")
        write_record(
            args.out / "dit.json",
            what="dit",
            data_seed=args.data_seed,
            gpus=group.size,
            optimizer=args.optimizer,
            rate=args.rate,
            decay_from=args.decay_from,
            steps=step,
            latents_a_batch=steps.total * group.size,
            clips=round(seen_clips * group.size),
            seconds_of_clips=round(seen_seconds * group.size),
            seconds=round(budget.elapsed, 1),
            resumed=bool(args.resume),
            rendered=args.rendered,
            rendered_batches=renderer.batches if renderer is not None else 0,
            losses=log,
        )
    group.leave()


if __name__ == "__main__":
    main()

"""Training data of the transformer: latents, tokens and prompts of clips, kept on the device."""

# B clips, n frames, G segments, S = 8 G sync tokens, V visual tokens, A latent frames

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from foley.configs import SYNC_SEGMENT_FRAMES, SYNC_SEGMENT_STRIDE
from foley.media.clock import num_latents
from foley.models.analysis import ACTIVE, Analysis
from foley.models.synchformer import Synchformer, count_segments
from training import labels
from training.clips import Batch
from training.revoice import DRAWN, revoice
from training.scene import FPS, SEEN_AFTER
from training.train_encoders import normalise

if TYPE_CHECKING:  # it needs MuJoCo, which a training on drawn clips alone does not
    from training.rendered.stream import RenderedPool

MAX_TOKENS = 40
PAD = 1
_SEGMENTS_AT_ONCE = 128


def visual_frame_indices(num_frames: int, device: torch.device) -> Tensor:
    """The indices [V] of the 25 fps frames nearest to each eighth of a second."""
    count = 8 * (num_frames - 1) // 25 + 1
    return torch.ceil(torch.arange(count, device=device) * 3.125 - 0.5).long()


class FrozenEncoders:
    """The visual encoders of a trained state, without gradients."""

    def __init__(self, sync: Synchformer, vision: nn.Module) -> None:
        self.sync, self.vision = sync, vision

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """The visual tokens [B, V, C] and sync tokens [B, S, C'] of clips.

        Args:
            pictures: uint8 [B, n, 3, 224, 224] at 25 fps.
        """
        batch, num_frames = pictures.shape[:2]
        device = pictures.device
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            seen = pictures[:, visual_frame_indices(num_frames, device)].flatten(0, 1)
            pooled = [
                self.vision(pixel_values=F.avg_pool2d(normalise(part), 2)).pooler_output
                for part in seen.split(256)
            ]
            visual = torch.cat(pooled).float().unflatten(0, (batch, -1))
            segments = count_segments(num_frames)
            used = (segments - 1) * SYNC_SEGMENT_STRIDE + SYNC_SEGMENT_FRAMES
            patches = [self.sync.embed_patches(normalise(clip[:used]))[None] for clip in pictures]
            windows = torch.cat([labels.group_by_tubelet(p) for p in patches])  # [B * G, 8, P, C]
            parts = windows.split(_SEGMENTS_AT_ONCE)
            tokens = [self.sync.encode_segments(part).float() for part in parts]
            sync = torch.cat(tokens).flatten(0, 1).unflatten(0, (batch, -1))
        return visual, sync


class PromptTokenizer:
    """The prompts' tokenizer, without the library transformers.

    Args:
        folder: with tokenizer.json.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def encode(self, prompts: list[str], length: int | None = None) -> Tensor:
        """The ids of prompts, int64 [B, T], padded to the longest one or to `length`."""
        rows = [self._tokenizer.encode(prompt).ids[:MAX_TOKENS] for prompt in prompts]
        length = length or max(map(len, rows))
        return torch.tensor([row[:length] + [PAD] * (length - len(row)) for row in rows])


class ClipBuffer:
    """A ring buffer of clips of one length.

    Args:
        num_frames: of each clip, at 25 fps.
        capacity: number of clips.
        device: of the tensors.
    """

    def __init__(self, num_frames: int, capacity: int, device: torch.device) -> None:
        self.capacity, self.count, self.next = capacity, 0, 0
        self.num_latents = num_latents(num_frames)
        self.store: dict[str, Tensor] = {}
        self.device = device

    def put(self, entry: dict[str, Tensor]) -> None:
        """Add the clips of an entry; they replace the oldest ones."""
        size = len(entry["latents"])
        for name, value in entry.items():
            if name not in self.store:
                shape = (self.capacity, *value.shape[1:])
                self.store[name] = torch.zeros(shape, dtype=value.dtype, device=self.device)
            rows = (self.next + torch.arange(size, device=self.device)) % self.capacity
            self.store[name][rows] = value
        self.next = (self.next + size) % self.capacity
        self.count = min(self.capacity, self.count + size)

    def rows(self, count: int, num_tokens: int) -> Tensor:
        """Draw clips by chance, with repeats; returns their indices [count].

        Args:
            count: number of indices.
            num_tokens: clips with a longer text are nearly never drawn.
        """
        short = (self.store["lengths"][: self.count] <= num_tokens).float() + 1e-6
        return torch.multinomial(short, count, replacement=True)


class ClipCache:
    """Encoded clips of all lengths.

    Args:
        analysis: encodes the sound.
        encoders: encode the pictures, as `FrozenEncoders`.
        words: encodes the prompts.
        device: of the tensors.
        seconds_per_length: capacity for each length of clip.
    """

    def __init__(
        self,
        analysis: Analysis,
        encoders: Callable[[Tensor], tuple[Tensor, Tensor]],
        words: PromptTokenizer,
        device: torch.device,
        seconds_per_length: float,
    ) -> None:
        self.analysis, self.encoders, self.words = analysis, encoders, words
        self.device, self.seconds_per_length = device, seconds_per_length
        self.buffers: dict[int, ClipBuffer] = {}  # of drawn clips
        self.rendered: dict[int, ClipBuffer] = {}  # of rendered ones
        self.rendered_share = 0.0  # of the batches, once there are such clips
        self.seen_seconds = 0.0
        self.clips = 0

    @torch.no_grad()
    def encode_batch(self, batch: Batch) -> tuple[int, dict[str, Tensor]]:
        """Draw, synthesise and encode a batch of clips.

        Args:
            batch: of clips of one length, on any device.

        Returns:
            The number of frames of each clip, and an entry for `put`.
        """
        batch = batch.to(self.device)
        pictures = batch.pictures(fast=self.device.type == "cuda")
        # In serving, a clip is filled up to whole segments with its last frame. This must not look
        # like an impact, and hits that cannot be seen there must not sound. Otherwise the model
        # would learn to invent sounds at the end of clips.
        frozen = int(torch.randint(SYNC_SEGMENT_STRIDE, ()))
        pictures[:, -frozen or pictures.shape[1] :] = pictures[:, -frozen - 1 : -frozen or None]
        batch = labels.drop_late_hits(batch, (pictures.shape[1] - frozen - SEEN_AFTER) / FPS)
        visual, sync = self.encoders(pictures)
        num_frames = batch.frames["light"].shape[1]
        count = num_latents(num_frames)
        latents = self.analysis(batch.waveform())[..., :count]
        assert latents.shape[1] == ACTIVE
        tokens = self.words.encode(batch.prompts, MAX_TOKENS).to(self.device)
        return num_frames, {
            "latents": latents.half(),
            "visual": visual.half(),
            "sync": sync.half(),
            "curve": labels.onset_curve(batch, 0.02, count, 0.03)[:, 0].half(),
            "tokens": tokens,
            "lengths": (tokens != PAD).sum(1),
        }

    def put(self, num_frames: int, entry: dict[str, Tensor], rendered: bool = False) -> None:
        """Add an entry of `encode_batch`.

        Args:
            num_frames: of each clip.
            entry: of the clips.
            rendered: whether they are rendered clips, which are kept apart from drawn ones.
        """
        seconds = num_frames / FPS
        buffers = self.rendered if rendered else self.buffers
        if num_frames not in buffers:
            capacity = max(8, round(self.seconds_per_length / seconds))
            buffers[num_frames] = ClipBuffer(num_frames, capacity, self.device)
        buffers[num_frames].put(entry)
        self.seen_seconds += seconds * len(entry["latents"])
        self.clips += len(entry["latents"])

    def choose(self) -> tuple[int, ClipBuffer]:
        """A random length in frames, and the clips of that length; half of them have 3 to 8 s."""
        if self.rendered and torch.rand(()) < self.rendered_share:
            # Each clip is used as often as the others, whatever its length.
            kept = list(self.rendered.items())
            weights = torch.tensor([float(buffer.count * buffer.num_latents) for _, buffer in kept])
            return kept[int(torch.multinomial(weights, 1))]
        lengths = list(self.buffers)
        usual = [n for n in lengths if 75 <= n <= 200] or lengths
        pool = usual if torch.rand(()) < 0.5 else lengths
        chosen = pool[int(torch.randint(len(pool), ()))]
        return chosen, self.buffers[chosen]


class CacheFiller:
    """Fills a cache between the steps of a training.

    It runs on the training's own CUDA stream: in a thread beside recorded steps, the encoders once
    ended in an illegal memory access.

    Args:
        cache: to fill.
        stream: of batches.
        share: of the time that filling may take.
        rendered: of the cache's `rendered_share` of the batches: new ones, or other takes where
            none is ready.
        lengths: of the takes, in frames, rising.
    """

    def __init__(
        self,
        cache: ClipCache,
        stream: Iterator[Batch],
        share: float,
        rendered: "RenderedPool | None" = None,
        lengths: Sequence[int] = (),
    ) -> None:
        self._cache, self._stream, self._share = cache, stream, share
        self._rendered, self._lengths = rendered, lengths
        self._begun: float | None = None
        self._spent = 0.0
        self._rng = np.random.default_rng(int(torch.randint(2**31, ())))
        self.batches = 0

    def fill(self) -> None:
        """Encode one batch and add it to the cache."""
        batch = self._find_rendered()
        rendered = batch is not None
        if batch is None:
            batch = revoice(next(self._stream), self._rng, DRAWN)
        self._cache.put(*self._cache.encode_batch(batch), rendered)
        self.batches += 1

    def _find_rendered(self) -> Batch | None:
        if self._rendered is None:
            return None
        if torch.rand(()) >= self._cache.rendered_share:
            return None
        fresh = self._rendered.refresh()
        if fresh is not None and round(fresh.seconds * FPS) in self._lengths:
            return fresh
        return self._rendered.draw(self._lengths)

    def keep_up(self) -> None:
        """Encode a batch, unless filling took its share of the time since the first call."""
        now = time.monotonic()
        if self._begun is None:
            self._begun = now
        if self._spent > self._share * (now - self._begun):
            return
        if self._cache.device.type == "cuda":
            torch.cuda.synchronize()  # so that the clock counts this batch and no earlier step
        begun = time.monotonic()
        self.fill()
        if self._cache.device.type == "cuda":
            torch.cuda.synchronize()
        self._spent += time.monotonic() - begun

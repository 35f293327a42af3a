"""What the transformer is trained on: latents, tokens and prompts, kept on the device."""

# B clips, n frames, G segments, S = 8 G sync tokens, V visual tokens, A latent frames

from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from foley.configs import SYNC_SEGMENT_FRAMES, SYNC_SEGMENT_STRIDE
from foley.media.clock import num_latents
from foley.models.synchformer import Synchformer
from training import labels
from training.analysis import ACTIVE, Analysis
from training.clips import Batch
from training.train_encoders import normalised

MAX_TOKENS = 40
PAD = 1
_SEGMENTS_AT_ONCE = 128


def visual_frames(num_frames: int, device: torch.device) -> Tensor:
    """Indices of the 25 fps frames that are at or after each eighth of a second, [V]."""
    count = 8 * (num_frames - 1) // 25 + 1
    return torch.ceil(torch.arange(count, device=device) * 3.125 - 1e-6).long()


class Encoders:
    """The frozen visual encoders."""

    def __init__(self, sync: Synchformer, vision: nn.Module, *, fast: bool) -> None:
        self.sync, self.vision, self.fast = sync, vision, fast
        self._segments = torch.compile(sync.encode_segments) if fast else sync.encode_segments

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Visual tokens [B, V, C] and sync tokens [B, S, C'] of uint8 [B, n, 3, 224, 224]."""
        batch, num_frames = pictures.shape[:2]
        device = pictures.device
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            seen = pictures[:, visual_frames(num_frames, device)].flatten(0, 1)
            pooled = [
                self.vision(pixel_values=F.avg_pool2d(normalised(part), 2)).pooler_output
                for part in seen.split(256)
            ]
            visual = torch.cat(pooled).float().unflatten(0, (batch, -1))
            segments = labels.num_segments(num_frames)
            used = (segments - 1) * SYNC_SEGMENT_STRIDE + SYNC_SEGMENT_FRAMES
            patches = [self.sync.embed_patches(normalised(clip[:used]))[None] for clip in pictures]
            windows = torch.cat([labels.by_tubelet(p) for p in patches])  # [B * G, 8, P, C]
            tokens = []
            for part in windows.split(_SEGMENTS_AT_ONCE):
                missing = _SEGMENTS_AT_ONCE - len(part) if self.fast else 0
                padded = torch.cat((part, part[:1].expand(missing, *part.shape[1:])))
                tokens.append(self._segments(padded)[: len(part)].float())
            sync = torch.cat(tokens).flatten(0, 1).unflatten(0, (batch, -1))
        return visual, sync


class Words:
    """The tokenizer, without transformers."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def ids(self, prompts: list[str], length: int | None = None) -> Tensor:
        """int64 [B, T], padded to the longest or to `length`."""
        rows = [self._tokenizer.encode(prompt).ids[:MAX_TOKENS] for prompt in prompts]
        length = length or max(map(len, rows))
        return torch.tensor([row[:length] + [PAD] * (length - len(row)) for row in rows])


class Shelf:
    """The clips of one length."""

    def __init__(self, num_frames: int, capacity: int, device: torch.device) -> None:
        self.capacity, self.count, self.next = capacity, 0, 0
        self.num_latents = num_latents(num_frames)
        self.store: dict[str, Tensor] = {}
        self.device = device

    def put(self, entry: dict[str, Tensor]) -> None:
        """Add clips; the oldest make room."""
        size = len(entry["latents"])
        for name, value in entry.items():
            if name not in self.store:
                shape = (self.capacity, *value.shape[1:])
                self.store[name] = torch.zeros(shape, dtype=value.dtype, device=self.device)
            rows = (self.next + torch.arange(size, device=self.device)) % self.capacity
            self.store[name][rows] = value
        self.next = (self.next + size) % self.capacity
        self.count = min(self.capacity, self.count + size)

    def draw(self, count: int) -> dict[str, Tensor]:
        """Some of the clips, with repeats if there are few."""
        rows = torch.randint(self.count, (count,), device=self.device)
        return {name: value[rows] for name, value in self.store.items()}


class Cache:
    """All lengths. `add` renders and encodes a batch; `draw` gives one for training."""

    def __init__(
        self,
        analysis: Analysis,
        encoders: Encoders,
        words: Words,
        device: torch.device,
        seconds_a_length: float,
    ) -> None:
        self.analysis, self.encoders, self.words = analysis, encoders, words
        self.device, self.seconds_a_length = device, seconds_a_length
        self.shelves: dict[int, Shelf] = {}
        self.seen_seconds = 0.0
        self.clips = 0

    @torch.no_grad()
    def add(self, batch: Batch) -> None:
        """Render, sound and encode a batch."""
        batch = batch.to(self.device)
        fast = self.device.type == "cuda"
        visual, sync = self.encoders(batch.pictures(fast=fast))
        num_frames = batch.frames["light"].shape[1]
        if num_frames not in self.shelves:
            capacity = max(8, round(self.seconds_a_length / batch.seconds))
            self.shelves[num_frames] = Shelf(num_frames, capacity, self.device)
        shelf = self.shelves[num_frames]
        count = shelf.num_latents
        latents = self.analysis(batch.waveform())[..., :count]
        assert latents.shape[1] == ACTIVE
        tokens = self.words.ids(batch.prompts, MAX_TOKENS).to(self.device)
        shelf.put(
            {
                "latents": latents.half(),
                "visual": visual.half(),
                "sync": sync.half(),
                "curve": labels.onset_curve(batch, 0.02, count, 0.03)[:, 0].half(),
                "tokens": tokens,
                "lengths": (tokens != PAD).sum(1),
            }
        )
        self.seen_seconds += batch.seconds * len(batch)
        self.clips += len(batch)

    def draw(self, total_latents: int) -> tuple[Shelf, dict[str, Tensor]]:
        """A batch of clips of one length, about `total_latents` frames in all."""
        lengths = list(self.shelves)
        usual = [n for n in lengths if 75 <= n <= 200] or lengths
        pool = usual if torch.rand(()) < 0.5 else lengths
        shelf = self.shelves[pool[int(torch.randint(len(pool), ()))]]
        return shelf, shelf.draw(max(2, total_latents // shelf.num_latents))

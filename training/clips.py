"""Batches of clips. Worker processes draw scenes; pictures and sound are computed on the device."""

# B clips, n frames at 25 fps, E hits of the whole batch, A latent frames, S samples

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from training import render, sound
from training.scene import FPS, PLAIN, TRAINING, Scene, Style, draw_scene

SAMPLES_PER_FRAME = sound.SAMPLE_RATE // FPS


@dataclass
class Batch:
    """Scenes of one length as tensors on one device.

    Attributes:
        frames, still, layers, reverb: as `Scene`, with a leading B.
        hits: as `Scene`, all hits of the batch one after another, [E, ...].
        owner: int64 [E], the clip of each hit.
        prompts: B texts.
        seconds: length of each clip.
        drawn: the frames, uint8 [B, n, 3, 224, 224], if another renderer has drawn them.
    """

    frames: dict[str, Tensor]
    still: dict[str, Tensor]
    hits: dict[str, Tensor]
    owner: Tensor
    layers: dict[str, Tensor]
    reverb: Tensor
    prompts: list[str]
    seconds: float
    drawn: Tensor | None = None

    def __len__(self) -> int:
        return len(self.reverb)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device."""

        def move(values: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: value.to(device, non_blocking=True) for name, value in values.items()}

        return Batch(
            move(self.frames),
            move(self.still),
            move(self.hits),
            self.owner.to(device),
            move(self.layers),
            self.reverb.to(device),
            self.prompts,
            self.seconds,
            None if self.drawn is None else self.drawn.to(device, non_blocking=True),
        )

    def waveform(self) -> Tensor:
        """The exact sound [B, S]."""
        length = round(self.seconds * FPS) * SAMPLES_PER_FRAME
        return sound.synthesise(self.hits, self.owner, self.layers, self.reverb, length)

    def pictures(self, *, fast: bool = False) -> Tensor:
        """The frames, uint8 [B, n, 3, 224, 224]."""
        if self.drawn is not None:
            return self.drawn.clone()
        return render.draw(self.frames, self.still, fast)


def collate(scenes: list[Scene]) -> Batch:
    """The batch of several scenes of one length."""

    def stack(parts: list[dict[str, np.ndarray]]) -> dict[str, Tensor]:
        return {name: torch.from_numpy(np.stack([p[name] for p in parts])) for name in parts[0]}

    names = scenes[0].hits
    counts = [len(scene.hits["seconds"]) for scene in scenes]
    return Batch(
        frames=stack([scene.frames for scene in scenes]),
        still=stack([scene.still for scene in scenes]),
        hits={
            name: torch.from_numpy(np.concatenate([scene.hits[name] for scene in scenes]))
            for name in names
        },
        owner=torch.arange(len(scenes)).repeat_interleave(torch.tensor(counts)),
        layers=stack([scene.layers for scene in scenes]),
        reverb=torch.from_numpy(np.stack([scene.reverb for scene in scenes])),
        prompts=[scene.prompt for scene in scenes],
        seconds=scenes[0].seconds,
    )


def concatenate(batches: list[Batch]) -> Batch:
    """The clips of several batches of one length as one batch, in order.

    Args:
        batches: at least one; either all have `drawn` or none has.
    """

    def join(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    firsts = np.cumsum([0, *(len(batch) for batch in batches)])
    pictures = [batch.drawn for batch in batches if batch.drawn is not None]
    return Batch(
        frames=join([batch.frames for batch in batches]),
        still=join([batch.still for batch in batches]),
        hits=join([batch.hits for batch in batches]),
        owner=torch.cat([b.owner + int(f) for b, f in zip(batches, firsts[:-1], strict=True)]),
        layers=join([batch.layers for batch in batches]),
        reverb=torch.cat([batch.reverb for batch in batches]),
        prompts=[prompt for batch in batches for prompt in batch.prompts],
        seconds=batches[0].seconds,
        drawn=torch.cat(pictures) if pictures else None,
    )


def take_first(batch: Batch, count: int) -> Batch:
    """The first `count` clips of a batch."""
    kept = batch.owner < count
    return replace(
        batch,
        frames={name: value[:count] for name, value in batch.frames.items()},
        still={name: value[:count] for name, value in batch.still.items()},
        hits={name: value[kept] for name, value in batch.hits.items()},
        owner=batch.owner[kept],
        layers={name: value[:count] for name, value in batch.layers.items()},
        reverb=batch.reverb[:count],
        prompts=batch.prompts[:count],
        drawn=None if batch.drawn is None else batch.drawn[:count],
    )


def make_batch(
    seed: int, first: int, count: int, seconds: float, style: Style = PLAIN, **options: Any
) -> Batch:
    """The clips number `first` to `first + count` of a data seed.

    Args:
        seed: of the data.
        first: number of the first clip.
        count: number of clips.
        seconds: length of each, a multiple of 1 / 25.
        style: of drawing.
        options: of `draw_scene`: action, quiet.
    """
    indices = range(first, first + count)
    return collate([draw_scene((seed, index), seconds, style, **options) for index in indices])


# Draws the length in seconds and the number of clips of a batch.
Schedule = Callable[[np.random.Generator], tuple[float, int]]


class _Stream(IterableDataset[bytes]):
    def __init__(self, seed: int, schedule: Schedule) -> None:
        self.seed = seed
        self.schedule = schedule

    def __iter__(self) -> Iterator[bytes]:
        worker = get_worker_info()
        index = worker.id if worker else 0
        torch.set_num_threads(1)
        rng = np.random.default_rng((self.seed, index))
        first = index * 10_000_000
        while True:
            seconds, count = self.schedule(rng)
            # As bytes, because tensors would be sent by file descriptors, whose number is limited.
            yield pickle.dumps(make_batch(self.seed, first, count, seconds, TRAINING))
            first += count


def stream(seed: int, schedule: Schedule, num_workers: int) -> Iterator[Batch]:
    """Yield batches without end; they depend only on the seed and the number of workers.

    Args:
        seed: of the data.
        schedule: draws the size of each batch.
        num_workers: processes that draw scenes; 0 for none besides this one.
    """
    loader = DataLoader(
        _Stream(seed, schedule),
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=4 if num_workers else None,
    )
    return map(pickle.loads, loader)


@dataclass(frozen=True)
class FixedSize:
    """A schedule of batches of one size."""

    seconds: float
    count: int

    def __call__(self, rng: np.random.Generator) -> tuple[float, int]:
        """The length in seconds and the number of clips, which do not depend on `rng`."""
        return self.seconds, self.count

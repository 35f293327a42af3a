"""Batches of rendered clips, made by worker processes beside a training."""

# B clips, n frames at 25 fps

import os
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import multiprocessing as mp

from training import clips, labels
from training.clips import Batch
from training.film import film, take_again
from training.rendered.clip import KINDS, MEASURED, RenderedClip, make_clip
from training.scene import FPS

SUFFIX = ".clips"  # of files of batches
# What training sees more or less often than once in so many kinds: kinds that a model gets wrong
# more often, and kinds that it has long learned. What no held-out clip shows comes half as often.
_WEIGHTS = {kind: 1.0 if kind in MEASURED else 0.5 for kind in KINDS}
_WEIGHTS |= {"tower": 2.5, "walk": 2.5, "pins": 2.0, "dominoes": 2.0, "slide": 2.0, "stairs": 2.0}
_WEIGHTS |= {"wall_ball": 2.0, "bounce": 2.0, "drop": 1.2, "cradle": 1.2}
_WEIGHTS |= {"steps": 0.75}
_WEIGHTS |= {"drum": 0.7, "pendulum": 0.6, "clap": 0.5}
_TOTAL = sum(_WEIGHTS.values())
TRAINING_SHARES = {kind: weight / _TOTAL for kind, weight in _WEIGHTS.items()}
KEPT_CROPS = 12  # batches of filmed crops, 231 MB each
CROP_USES = 3  # how often one is used, on average; to film it takes as long as several steps
MAX_RESTARTS = 100  # a fault in a scene ends one process in a while, a broken renderer all
# What a worker makes of its clips: given the worker's random numbers and a function that makes
# `count` clips of some seconds.
Draw = Callable[[float, int], Batch]
Recipe = Callable[[np.random.Generator, Draw], Batch]


def collate(made: Sequence[RenderedClip]) -> Batch:
    """Return one batch of drawn clips of one length, with their pictures."""
    batch = clips.collate([clip.scene for clip in made])
    pictures = np.stack([clip.pictures for clip in made if clip.pictures is not None])
    drawn = torch.from_numpy(pictures).permute(0, 1, 4, 2, 3).contiguous()
    return replace(batch, drawn=drawn)


def make_batch(
    seed: tuple[int, ...],
    count: int,
    seconds: float,
    *,
    shares: Mapping[str, float] | None = None,
    unseen: bool = False,
    varied: bool = False,
) -> Batch:
    """Return the clips `(*seed, 0)` to `(*seed, count - 1)` of one length, drawn.

    Args:
        seed: of the batch.
        count: clips.
        seconds: length of each, a multiple of 1 / 25.
        shares: how often each kind is tried, as for `make_clip`.
        unseen: whether shapes and textures are those that training never uses.
        varied: whether pictures vary as those of training do.
    """
    make = partial(make_clip, seconds=seconds, shares=shares, unseen=unseen, varied=varied)
    return collate([make((*seed, index)) for index in range(count)])


@dataclass(frozen=True)
class Lengths:
    """A recipe of batches of `count` clips, each batch of one of these numbers of frames."""

    frames: tuple[int, ...]
    count: int

    def __call__(self, rng: np.random.Generator, draw: Draw) -> Batch:
        """Return a batch; `draw` makes clips of a length in seconds."""
        return draw(int(rng.choice(self.frames)) / FPS, self.count)


def _work(index: int, seed: int, recipe: Recipe, folder: str, made: "mp.Queue[object]") -> None:
    """Make batches for ever, in a process of its own."""
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    torch.set_num_threads(1)
    os.nice(5)  # the training's own processes go first
    rng, serial = np.random.default_rng((seed, index)), 0

    def draw(seconds: float, count: int) -> Batch:
        nonlocal serial
        serial += 1
        numbers = (seed, index, serial)
        return make_batch(numbers, count, seconds, shares=TRAINING_SHARES, varied=True)

    while True:
        batch = recipe(rng, draw)
        assert batch.drawn is not None
        # Pictures go through a file in memory: a pipe would keep the training's thread busy.
        path = Path(folder) / f"{index}-{serial}.npy"
        np.save(path, batch.drawn.numpy())
        made.put((path, replace(batch, drawn=None)))


def _end_with_parent(folder: str) -> None:
    """End this process when the training is killed, and free the memory of the batches."""
    parent = mp.parent_process()
    assert parent is not None
    parent.join()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


class RenderedStream(threading.Thread):
    """Renders in worker processes; `take` never waits.

    Args:
        seed: of all clips.
        recipe: what each worker makes.
        num_workers: processes.
        ahead: batches that wait to be taken; they fill while the first steps are compiled.
        keep: a folder to which each batch is written, for another training.
    """

    def __init__(
        self,
        seed: int,
        recipe: Recipe,
        num_workers: int,
        ahead: int = 60,
        keep: Path | None = None,
    ) -> None:
        super().__init__(daemon=True)
        self._keep = keep
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
        memory = Path("/dev/shm")
        self._folder = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
        context = mp.get_context("spawn")  # a fork of a process that uses CUDA cannot draw
        self._made = context.Queue(num_workers)
        # A library that aborts takes one process with it, not the training: it is started again
        # with other clips.
        self._start: Callable[[int], SpawnProcess] = lambda index: context.Process(
            target=_work,
            args=(index, seed, recipe, self._folder.name, self._made),
            daemon=True,
        )
        self._workers = {index: self._start(index) for index in range(num_workers)}
        self.restarts = 0
        self._ready: queue.Queue[Batch] = queue.Queue(ahead)
        self._stopped = threading.Event()
        self._seed = seed
        self.batches = 0
        for worker in self._workers.values():
            worker.start()
        self.start()

    def run(self) -> None:
        """Read what the workers made."""
        while not self._stopped.is_set():
            self._replace_dead()
            try:
                path, batch = self._made.get(timeout=0.5)
            except queue.Empty:
                continue
            # The batch stays on the host. The thread that takes it copies it on its CUDA stream.
            batch = replace(batch, drawn=torch.from_numpy(np.load(path)))
            path.unlink()
            if self._keep is not None:
                part = self._keep / f"{self._seed}-{path.stem}"
                torch.save(batch, part)
                part.rename(part.with_suffix(SUFFIX))  # a reader finds the whole of it
            while not self._stopped.is_set():
                try:
                    self._ready.put(batch, timeout=0.5)
                    self.batches += 1
                    break
                except queue.Full:
                    continue

    def _replace_dead(self) -> None:
        for index, worker in list(self._workers.items()):
            if worker.exitcode is None or self._stopped.is_set():
                continue
            self.restarts += 1
            print(f"a rendering process ended with status {worker.exitcode}", flush=True)
            del self._workers[index]
            fresh = index + 1000  # other clips than those that ended it
            self._workers[fresh] = self._start(fresh)
            self._workers[fresh].start()

    def take(self) -> Batch | None:
        """Return a batch, or None where none is ready.

        Raises:
            RuntimeError: many rendering processes have ended.
        """
        if self.restarts > MAX_RESTARTS:
            raise RuntimeError(f"{self.restarts} rendering processes have ended")
        try:
            return self._ready.get_nowait()
        except queue.Empty:
            return None

    def wait(self, seconds: float) -> Batch:
        """Return a batch, waiting for it.

        Raises:
            TimeoutError: none came within these seconds.
        """
        until = time.monotonic() + seconds
        while (batch := self.take()) is None:
            if time.monotonic() > until:
                raise TimeoutError(f"no rendered batch within {seconds:g} s")
            time.sleep(0.02)
        return batch

    def stop(self) -> None:
        """End the processes and remove their files."""
        self._stopped.set()
        self.join(10)
        for worker in self._workers.values():
            worker.terminate()
        for worker in self._workers.values():
            worker.join(10)
        self._folder.cleanup()


class Source(Protocol):
    """What new batches come from, as `RenderedStream`."""

    def take(self) -> Batch | None:
        """Return a batch, or None where none is ready."""


class RenderedPool:
    """Rendered clips, each used several times as other takes; new ones replace the oldest.

    Args:
        stream: of new batches.
        size: batches that are kept.
        device: of the batches.
        seed: of the takes.
        kept: a folder with batches that `stream` of another training wrote, used as new ones.
    """

    def __init__(
        self,
        stream: Source,
        size: int,
        device: torch.device,
        seed: int,
        kept: Path | None = None,
    ) -> None:
        self._stream, self._size, self._device = stream, size, device
        self._clips: list[Batch] = []
        self._next = 0
        self._rng = np.random.default_rng(seed)
        self._kept = kept
        self._read: set[Path] = set()
        self._crops: list[Batch] = []
        self._turn = 0

    def refresh(self) -> Batch | None:
        """Add one batch, if one is ready, and return it."""
        batch = self._stream.take()
        if batch is None:
            batch = self._read_kept()
        if batch is None:
            return None
        batch = batch.to(self._device)
        self._clips[self._next : self._next + 1] = [batch]
        self._next = (self._next + 1) % self._size
        return batch

    def _read_kept(self) -> Batch | None:
        unread = set(self._kept.glob(f"*{SUFFIX}")) - self._read if self._kept else set()
        if not unread:
            return None
        path = sorted(unread)[int(self._rng.integers(len(unread)))]
        self._read.add(path)
        batch: Batch = torch.load(path, weights_only=False)  # this project has written it
        return batch

    def draw(self, frames: Sequence[int]) -> Batch | None:
        """Return a take of clips that are known; None while there is none.

        Args:
            frames: lengths of which one is chosen, and no longer than the clips.
        """
        if not self._clips:
            return None
        batch = self._clips[int(self._rng.integers(len(self._clips)))]
        count = round(batch.seconds * FPS)
        # Short takes of long clips are many; long takes of them are seldom drawn otherwise.
        fitting = [length for length in frames if length <= count]
        if not fitting:
            return None
        longest = fitting[-1] if self._rng.random() < 0.5 else int(self._rng.choice(fitting))
        return take_again(batch, longest, self._rng)

    def draw_crops(self, frames: int, count: int) -> Batch | None:
        """Return `count` crops of `frames` frames from several batches; None while there is none.

        They are filmed anew in one of `CROP_USES` calls.

        Args:
            frames: length of a crop, at 25 fps, no longer than the clips.
            count: clips.
        """
        if not self._clips:
            return None
        self._turn += 1
        if self._turn % CROP_USES and len(self._crops) == KEPT_CROPS:
            return self._crops[int(self._rng.integers(KEPT_CROPS))]
        crops = self._film_crops(frames, count)
        # The oldest ones make room.
        self._crops = [*self._crops, crops][-KEPT_CROPS:]
        return crops

    def _film_crops(self, frames: int, count: int) -> Batch:
        parts: list[Batch] = []
        while sum(map(len, parts)) < count:
            batch = self._clips[int(self._rng.integers(len(self._clips)))]
            first = int(self._rng.integers(round(batch.seconds * FPS) - frames + 1))
            parts.append(labels.crop(batch, first, frames))
        return film(clips.take_first(clips.concatenate(parts), count), self._rng)

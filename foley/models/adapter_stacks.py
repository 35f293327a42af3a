"""The stacks of a batch's adapters: which set has which place, and memory that is used again."""

# N tokens of all clips with adapters together

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from foley.models.adapters import (
    STEP_KINDS,
    AdapterBatch,
    AdapterSet,
    Groups,
    Kind,
    SetKey,
    allocate_stacks,
    find_kind,
    list_layers,
    round_rank,
)
from foley.models.transfer import upload


class Member(NamedTuple):
    """One request's share of a batch.

    Attributes:
        adapters: of the request; None where it has none.
        clip_lengths: audio tokens of each of its clips.
        num_visual: visual tokens of its clips together.
        num_rows: sync rows of its clips together.
    """

    adapters: AdapterSet | None
    clip_lengths: tuple[int, ...]
    num_visual: int
    num_rows: int


class AdapterStacks:
    """Makes the `AdapterBatch` of each batch, and uses its memory again where that fits.

    Args:
        dit: a `FoleyDiT` on its device.
    """

    _MOST = 4  # kinds of batches whose stacks are kept

    def __init__(self, dit: nn.Module) -> None:
        self._dit = dit
        self._shapes: dict[str, tuple[int, int, int]] = {}
        self._places: list[SetKey] = []
        self._kept: dict[object, AdapterBatch] = {}

    def order(self, sets: Sequence[AdapterSet | None]) -> list[int]:
        """Return the place of each request's set: -1 without one, and sets keep their places.

        Args:
            sets: of the requests of the next batch.
        """
        wanted = list(dict.fromkeys(s.key for s in sets if s is not None))
        new = [key for key in wanted if key not in self._places]
        places: list[SetKey | None] = []
        for key in self._places:  # a hole is filled by a new set
            places.append(key if key in wanted else (new.pop(0) if new else None))
        places += new
        while None in places:  # or by the last one
            last = places.pop()
            if last is not None:
                places[places.index(None)] = last
        self._places = [key for key in places if key is not None]
        return [-1 if s is None else self._places.index(s.key) for s in sets]

    def make(self, members: Sequence[Member], like: Tensor) -> AdapterBatch | None:
        """Return the adapters of a batch; None if no member has any.

        Args:
            members: in the order of the batch: those without adapters first, then those of a set
                after one another.
            like: a tensor on the device and in the dtype of the layers.
        """
        sets: list[AdapterSet] = []
        groups: dict[Kind, list[int]] = {kind: [] for kind in STEP_KINDS}
        starts = dict.fromkeys(STEP_KINDS, 0)
        clips: list[int] = []
        for key, run in itertools.groupby(members, lambda m: m.adapters and m.adapters.key):
            group = list(run)
            counts: dict[Kind, int] = {
                "audio": sum(sum(m.clip_lengths) for m in group),
                "visual": sum(m.num_visual for m in group),
                "rows": sum(m.num_rows for m in group),
            }
            if key is None:
                starts.update(counts)
                continue
            assert group[0].adapters is not None
            sets.append(group[0].adapters)
            clips += itertools.chain.from_iterable(m.clip_lengths for m in group)
            for kind in STEP_KINDS:
                groups[kind].append(counts[kind])
        names = sorted({n for s in sets for n in s.list_layers() if find_kind(n) in STEP_KINDS})
        if not names:
            return None
        rank = round_rank(max(s.rank for s in sets))
        signature = (
            tuple(names),
            rank,
            tuple(starts.items()),
            tuple((kind, tuple(lengths)) for kind, lengths in groups.items()),
            tuple(clips),
        )
        batch = self._kept.pop(signature, None)
        if batch is None:
            self._shapes = self._shapes or list_layers(self._dit)
            stops = {kind: _find_stops(groups[kind], like) for kind in STEP_KINDS}
            batch = AdapterBatch(
                allocate_stacks(sets, {name: self._shapes[name] for name in names}, like),
                {k: Groups(starts[k], tuple(groups[k]), stops[k]) for k in STEP_KINDS},
                find_borders(clips, like.device),
            )
        batch.fill(sets)
        self._kept[signature] = batch  # the last one used is the last one
        if len(self._kept) > self._MOST:
            del self._kept[next(iter(self._kept))]
        return batch

    def forget(self) -> None:
        """Free the stacks."""
        self._kept.clear()


def _find_stops(lengths: Sequence[int], like: Tensor) -> Tensor:
    stops = torch.tensor(list(itertools.accumulate(lengths)), dtype=torch.int32)
    return upload(stops, like.device)


def find_borders(clip_lengths: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return whether each token is the first, and the last, of its clip, bool [N, 1] each.

    Args:
        clip_lengths: audio tokens of each clip, in order.
        device: of the result.
    """
    stops = torch.tensor(list(itertools.accumulate(clip_lengths)))
    first, last = (torch.zeros(int(stops[-1]), 1, dtype=torch.bool) for _ in range(2))
    first[stops - torch.tensor(clip_lengths)], last[stops - 1] = True, True
    return upload(first, device), upload(last, device)

"""Clips of different lengths on one row of tokens: where each clip's tokens lie.

Nothing is padded. Layers that work token by token do not see the clips. Attention gets the clips'
segments, and convolutions get their borders.
"""

# K clips; A, V, T audio, visual and text tokens of all clips together; N tokens of one kind

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from foley.models.transfer import upload

# Kernels use the longest segment only to size their grid. It is rounded up to a multiple of this,
# so that what is compiled for one mixture of lengths serves nearly all mixtures.
_LONGEST_STEP = 512


# So many audio tokens on each side of the border between two regions that are apart attend to both
# regions, or half of a shorter region. Two textures then blend into each other over 0.2 s. With a
# picture borders are sharp, since hits near a soft one are heard as what is beyond it.
SOFT_TOKENS = 5


class Lengths(NamedTuple):
    """Numbers of tokens of one clip."""

    audio: int
    visual: int
    text: int


class Regions(NamedTuple):
    """The parts of a clip that hear texts of their own; a clip without cues is a single one.

    Attributes:
        parts: lengths of each region, in order.
        are_apart: whether tokens of different regions do not attend to each other in the joint
            sequence either. So it is without a picture, where there is nothing to be in time with.
    """

    parts: tuple[Lengths, ...]
    are_apart: bool = False


def sum_offsets(lengths: Sequence[int]) -> list[int]:
    """Return where each segment begins, and where the last one ends: one value more than lengths.

    Args:
        lengths: tokens of each segment, in order.
    """
    return list(itertools.accumulate(lengths, initial=0))


@dataclass(frozen=True)
class SoftBorders:
    """Queries near a border of regions, which attend to the keys of both regions.

    Each attention is computed in a row of its own, and then a share of each is taken.

    Attributes:
        queries: int64 [R], the query of each row: those of a segment, among them those that lie
            near it in its neighbours.
        own: int64 [N], the row in which each query attends to its own region.
        other: int64 [N], the row in which it attends to a neighbour; its own where it is near none.
        share: float32 [N, 1, 1], of the neighbour, below 0.5.
    """

    queries: Tensor
    own: Tensor
    other: Tensor
    share: Tensor

    def blend(self, rows: Tensor) -> Tensor:
        """Return the attention of each query [1, N, H, D] of that of each row [1, R, H, D]."""
        return torch.lerp(rows[:, self.own], rows[:, self.other], self.share.to(rows.dtype))


@dataclass(frozen=True)
class Segments:
    """Which queries attend to which keys: those of the same clip, or of the same region of one.

    Attributes:
        query_lengths: queries of each clip, in order; with soft borders, rows of each region.
        key_lengths: keys of each clip, in order.
        query_offsets: int32 [K + 1], where each clip's queries begin.
        key_offsets: int32 [K + 1], where each clip's keys begin.
        longest_query: at least the longest of the query lengths.
        longest_key: at least the longest of the key lengths.
        soft: the queries that attend to two regions; None where there are none.
    """

    query_lengths: tuple[int, ...]
    key_lengths: tuple[int, ...]
    query_offsets: Tensor
    key_offsets: Tensor
    longest_query: int
    longest_key: int
    soft: SoftBorders | None = None

    @classmethod
    def of(
        cls, queries: Sequence[int], keys: Sequence[int], device: torch.device | None = None
    ) -> Self:
        """Return the segments of clips with these lengths.

        Args:
            queries: of each clip, in order.
            keys: of each clip, in order; as many clips as in `queries`.
            device: of the offsets; None for the CPU.
        """

        def begins(lengths: Sequence[int]) -> Tensor:
            return upload(torch.tensor(sum_offsets(lengths), dtype=torch.int32), device)

        def longest(lengths: Sequence[int]) -> int:
            return -(-max(lengths) // _LONGEST_STEP) * _LONGEST_STEP

        return cls(
            tuple(queries),
            tuple(keys),
            begins(queries),
            begins(keys),
            longest(queries),
            longest(keys),
        )

    def soften(self, neighbours: Sequence["_Neighbour"], places: Tensor) -> Self:
        """Return these segments with queries that attend to two of them.

        Args:
            neighbours: audio tokens near a border; none leaves the segments as they are.
            places: int64 [A], which query each audio token is.
        """
        if not neighbours:
            return self
        owners = _repeat_owners(self.query_lengths)
        near = places[torch.tensor([n.token for n in neighbours])]
        numbers = torch.cat([torch.arange(len(owners)), near])  # of the queries
        heard = torch.cat([owners, torch.tensor([n.segment for n in neighbours])])
        order = heard.argsort(stable=True)
        rows = order.argsort()
        own = rows[: len(owners)]
        other, share = own.clone(), torch.zeros(len(owners))
        other[near] = rows[len(owners) :]
        share[near] = torch.tensor([n.share for n in neighbours])
        device = self.query_offsets.device
        soft = SoftBorders(
            *(upload(x, device) for x in (numbers[order], own, other, share[:, None, None]))
        )
        counts = heard.bincount(minlength=len(self.query_lengths)).tolist()
        return replace(self.of(counts, self.key_lengths, device), soft=soft)

    def runs(self) -> list[tuple[int, int, int]]:
        """Return each run of consecutive clips of equal lengths: clips, queries and keys of one."""
        pairs = zip(self.query_lengths, self.key_lengths, strict=True)
        return [(len(list(group)), *pair) for pair, group in itertools.groupby(pairs)]


class _Neighbour(NamedTuple):
    """An audio token that also attends to the region on the other side of a border.

    Attributes:
        token: among the audio tokens of all clips.
        segment: of the other region, among those of all clips.
        share: of the other region, 0 to 0.5.
    """

    token: int
    segment: int
    share: float


@dataclass(frozen=True)
class Borders:
    """Where the segments of a row end, for convolutions of three taps.

    Attributes:
        spaced: int64 [N + K - 1], the tokens with a gap between clips; a gap has the index N.
        kept: int64 [N], where the tokens are in `spaced`.
        first: bool [N, 1], whether a token is its clip's first.
        last: bool [N, 1], whether a token is its clip's last.
        equal_clips: how many clips there are, where they have one length; else 0.
    """

    spaced: Tensor
    kept: Tensor
    first: Tensor
    last: Tensor
    equal_clips: int = 0

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | None = None) -> Self:
        """Return the borders of segments with these lengths.

        Args:
            lengths: tokens of each clip, in order.
            device: of the tensors; None for the CPU.
        """
        total, begins = sum(lengths), torch.tensor(sum_offsets(lengths))
        owner = _repeat_owners(lengths)
        kept = torch.arange(total) + owner
        spaced = torch.full((total + len(lengths) - 1,), total)
        spaced[kept] = torch.arange(total)
        first, last = (torch.zeros(total, 1, dtype=torch.bool) for _ in range(2))
        first[begins[:-1]], last[begins[1:] - 1] = True, True
        spaced, kept, first, last = (upload(x, device) for x in (spaced, kept, first, last))
        return cls(spaced, kept, first, last, len(lengths) if len(set(lengths)) == 1 else 0)


@dataclass(frozen=True)
class Packing:
    """Clips one after another: all audio tokens on one row, all visual tokens on another.

    The joint sequence is ordered clip by clip, and within a clip region by region, each with its
    visual tokens before its audio tokens. A clip without cues is one region. Tokens of all regions
    of a clip attend to each other in the joint sequence, unless the regions are apart. Regions
    differ in what they hear: each attends to a text of its own, and its audio tokens to one
    another. Near the borders of regions that are apart, audio tokens hear both regions.

    Attributes:
        audio_owner: int64 [A], the clip of each audio token.
        visual_owner: int64 [V], the clip of each visual token.
        joint: int64 [V + A], for each place of the joint sequence the index of its token among
            all visual tokens, followed by all audio tokens.
        visual_place: int64 [V], the place of each visual token in the joint sequence.
        audio_place: int64 [A], the place of each audio token in the joint sequence.
        borders: of the audio tokens.
        joint_self: the joint sequence attends to itself.
        audio_joint: audio tokens alone attend to the joint sequence.
        joint_text: the joint sequence attends to the text.
        audio_text: audio tokens alone attend to the text.
        audio_self: audio tokens attend to audio tokens.
    """

    audio_owner: Tensor
    visual_owner: Tensor
    joint: Tensor
    visual_place: Tensor
    audio_place: Tensor
    borders: Borders
    joint_self: Segments
    audio_joint: Segments
    joint_text: Segments
    audio_text: Segments
    audio_self: Segments

    @classmethod
    def of(
        cls,
        lengths: Sequence[Lengths],
        device: torch.device | None = None,
        regions: Sequence[Regions] = (),
    ) -> Self:
        """Return the packing of clips with these lengths.

        Args:
            lengths: of each clip, in order.
            device: of the tensors; None for the CPU.
            regions: of each clip, with its lengths as their sums; empty where each clip is one.
        """
        audio, visual, _ = (list(column) for column in zip(*lengths, strict=True))
        both = [a + v for a, v in zip(audio, visual, strict=True)]
        audio_owner, visual_owner = _repeat_owners(audio), _repeat_owners(visual)
        regions = regions or [Regions((clip,)) for clip in lengths]
        parts = [part for clip in regions for part in clip.parts]
        part_audio, part_visual, part_text = (list(column) for column in zip(*parts, strict=True))
        part_both = [a + v for a, v in zip(part_audio, part_visual, strict=True)]
        # Before a visual token come the audio tokens of the regions before its own. Before an audio
        # token come the visual tokens of its own region, too.
        visual_region, audio_region = _repeat_owners(part_visual), _repeat_owners(part_audio)
        visual_place = (
            torch.arange(sum(visual)) + torch.tensor(sum_offsets(part_audio))[visual_region]
        )
        audio_place = (
            torch.arange(sum(audio)) + torch.tensor(sum_offsets(part_visual))[audio_region + 1]
        )
        joint = torch.empty(sum(both), dtype=torch.long)
        joint[visual_place] = torch.arange(sum(visual))
        joint[audio_place] = sum(visual) + torch.arange(sum(audio))
        neighbours = _find_neighbours(regions)
        audio_itself = torch.arange(sum(audio))
        # Only regions that are apart are segments of the joint sequence.
        joined = [
            clip if clip.are_apart else Regions((whole,))
            for clip, whole in zip(regions, lengths, strict=True)
        ]
        joined_audio, joined_visual, _ = zip(
            *(p for clip in joined for p in clip.parts), strict=True
        )
        joined_both = [a + v for a, v in zip(joined_audio, joined_visual, strict=True)]
        apart = _find_neighbours(joined)
        return cls(
            audio_owner=upload(audio_owner, device),
            visual_owner=upload(visual_owner, device),
            joint=upload(joint, device),
            visual_place=upload(visual_place, device),
            audio_place=upload(audio_place, device),
            borders=Borders.of(audio, device),
            joint_self=Segments.of(joined_both, joined_both, device).soften(apart, audio_place),
            audio_joint=Segments.of(joined_audio, joined_both, device).soften(apart, audio_itself),
            joint_text=Segments.of(part_both, part_text, device).soften(neighbours, audio_place),
            audio_text=Segments.of(part_audio, part_text, device).soften(neighbours, audio_itself),
            audio_self=Segments.of(part_audio, part_audio, device).soften(neighbours, audio_itself),
        )


def _find_neighbours(regions: Sequence[Regions]) -> list[_Neighbour]:
    """Return the audio tokens near a border of regions that are apart, once each."""
    neighbours: list[_Neighbour] = []
    border = segment = 0
    for clip in regions:
        border, segment = border + clip.parts[0].audio, segment + 1
        for before, after in itertools.pairwise(clip.parts):
            if not clip.are_apart:
                border, segment = border + after.audio, segment + 1
                continue
            # The last tokens of one region, backwards, and the first ones of the next.
            for first, step, length, other in (
                (border - 1, -1, before.audio, segment),
                (border, 1, after.audio, segment - 1),
            ):
                count = min(SOFT_TOKENS, length // 2)
                neighbours += [
                    _Neighbour(first + step * i, other, (1 - (i + 0.5) / count) / 2)
                    for i in range(count)
                ]
            border, segment = border + after.audio, segment + 1
    return neighbours


def _repeat_owners(lengths: Sequence[int]) -> Tensor:
    """Return int64 [sum of lengths], the segment of each token."""
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))

"""Clips of different lengths on one row of tokens: where each clip's tokens lie.

Nothing is padded. Layers that work token by token do not see the clips. Attention gets the clips'
segments, and convolutions get their borders.
"""

# K clips; A, V, T audio, visual and text tokens of all clips together; N tokens of one kind

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from foley.models.transfer import upload

# Kernels use the longest segment only to size their grid. It is rounded up to a multiple of this,
# so that what is compiled for one mixture of lengths serves nearly all mixtures.
_LONGEST_STEP = 512


class Lengths(NamedTuple):
    """Numbers of tokens of one clip."""

    audio: int
    visual: int
    text: int


def sum_offsets(lengths: Sequence[int]) -> list[int]:
    """Return where each segment begins, and where the last one ends: one value more than lengths.

    Args:
        lengths: tokens of each segment, in order.
    """
    return list(itertools.accumulate(lengths, initial=0))


@dataclass(frozen=True)
class Segments:
    """Which queries attend to which keys: those of the same clip, or of the same region of one.

    Attributes:
        query_lengths: queries of each clip, in order.
        key_lengths: keys of each clip, in order.
        query_offsets: int32 [K + 1], where each clip's queries begin.
        key_offsets: int32 [K + 1], where each clip's keys begin.
        longest_query: at least the longest of the query lengths.
        longest_key: at least the longest of the key lengths.
    """

    query_lengths: tuple[int, ...]
    key_lengths: tuple[int, ...]
    query_offsets: Tensor
    key_offsets: Tensor
    longest_query: int
    longest_key: int

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

    def runs(self) -> list[tuple[int, int, int]]:
        """Return each run of consecutive clips of equal lengths: clips, queries and keys of one."""
        pairs = zip(self.query_lengths, self.key_lengths, strict=True)
        return [(len(list(group)), *pair) for pair, group in itertools.groupby(pairs)]


@dataclass(frozen=True)
class Borders:
    """Where the segments of a row end, for convolutions of three taps.

    Attributes:
        spaced: int64 [N + K - 1], the tokens with a gap between clips; a gap has the index N.
        kept: int64 [N], where the tokens are in `spaced`.
        first: bool [N, 1], whether a token is its clip's first.
        last: bool [N, 1], whether a token is its clip's last.
    """

    spaced: Tensor
    kept: Tensor
    first: Tensor
    last: Tensor

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
        return cls(*(upload(x, device) for x in (spaced, kept, first, last)))


@dataclass(frozen=True)
class Packing:
    """Clips one after another: all audio tokens on one row, all visual tokens on another.

    The joint sequence is ordered clip by clip, and within a clip region by region, each with its
    visual tokens before its audio tokens. A clip without cues is one region. Tokens of all regions
    of a clip attend to each other in the joint sequence. Regions differ in what they hear: each
    attends to a text of its own, and its audio tokens to one another.

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
        regions: Sequence[Sequence[Lengths]] = (),
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
        parts = list(itertools.chain.from_iterable(regions)) if regions else list(lengths)
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
        return cls(
            audio_owner=upload(audio_owner, device),
            visual_owner=upload(visual_owner, device),
            joint=upload(joint, device),
            visual_place=upload(visual_place, device),
            audio_place=upload(audio_place, device),
            borders=Borders.of(audio, device),
            joint_self=Segments.of(both, both, device),
            audio_joint=Segments.of(audio, both, device),
            joint_text=Segments.of(part_both, part_text, device),
            audio_text=Segments.of(part_audio, part_text, device),
            audio_self=Segments.of(part_audio, part_audio, device),
        )


def _repeat_owners(lengths: Sequence[int]) -> Tensor:
    """Return int64 [sum of lengths], the segment of each token."""
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))

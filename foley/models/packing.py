"""Clips of different lengths on one row of tokens: where each clip's tokens lie.

Nothing is padded. Whatever works token by token does not see the clips; attention is told where the
segments are, convolutions where they end.
"""

# K clips (batch elements), A, V, T audio, visual and text tokens of all of them together

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from foley.models.transfer import uploaded

# Kernels are told the longest segment only to size their grid. In steps, so that what is compiled
# for one mixture of lengths serves nearly all.
_LONGEST_STEP = 512


class Lengths(NamedTuple):
    """Tokens of one clip."""

    audio: int
    visual: int
    text: int


def offsets(lengths: Sequence[int]) -> list[int]:
    """Where each segment begins, and where the last one ends."""
    return list(itertools.accumulate(lengths, initial=0))


@dataclass(frozen=True)
class Segments:
    """Which queries attend to which keys: those of the same clip.

    Attributes:
        query_lengths: of each clip, in order.
        key_lengths: likewise.
        query_offsets: int32 [K + 1], where each clip's queries begin.
        key_offsets: likewise.
        longest_query: at least the longest of the query lengths.
        longest_key: likewise.
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
        """Segments of these lengths."""

        def begins(lengths: Sequence[int]) -> Tensor:
            return uploaded(torch.tensor(offsets(lengths), dtype=torch.int32), device)

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
        """Neighbours of equal lengths: how many, and their numbers of queries and of keys."""
        pairs = zip(self.query_lengths, self.key_lengths, strict=True)
        return [(len(list(group)), *pair) for pair, group in itertools.groupby(pairs)]


@dataclass(frozen=True)
class Borders:
    """Where the segments of a row end, for convolutions of three taps.

    Attributes:
        spaced: int64 [N + K - 1], the tokens with a gap between clips; a gap is the index N.
        kept: int64 [N], where the tokens stand among those.
        first: bool [N, 1], whether a token is its clip's first.
        last: likewise.
    """

    spaced: Tensor
    kept: Tensor
    first: Tensor
    last: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | None = None) -> Self:
        """The borders of segments of these lengths."""
        total, begins = sum(lengths), torch.tensor(offsets(lengths))
        owner = _owners(lengths)
        kept = torch.arange(total) + owner
        spaced = torch.full((total + len(lengths) - 1,), total)
        spaced[kept] = torch.arange(total)
        first, last = (torch.zeros(total, 1, dtype=torch.bool) for _ in range(2))
        first[begins[:-1]], last[begins[1:] - 1] = True, True
        return cls(*(uploaded(x, device) for x in (spaced, kept, first, last)))


@dataclass(frozen=True)
class Packing:
    """Clips one after another: all audio tokens on one row, all visual ones on another.

    The joint sequence is ordered clip by clip, each with its visual tokens before its audio tokens.

    Attributes:
        audio_owner: int64 [A], the clip of each audio token.
        visual_owner: int64 [V].
        joint: int64 [V + A], for each place of the joint sequence the index of its token among
            all visual tokens, followed by all audio tokens.
        visual_place: int64 [V], the place of each visual token in the joint sequence.
        audio_place: int64 [A].
        borders: of the audio tokens.
        joint_self: the joint sequence to itself.
        audio_joint: audio tokens alone to the joint sequence.
        joint_text: the joint sequence to the text.
        audio_text: audio tokens alone to the text.
        audio_self: audio tokens to themselves.
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
    def of(cls, lengths: Sequence[Lengths], device: torch.device | None = None) -> Self:
        """The packing of clips of these lengths, in order."""
        audio, visual, text = (list(column) for column in zip(*lengths, strict=True))
        both = [a + v for a, v in zip(audio, visual, strict=True)]
        audio_owner, visual_owner = _owners(audio), _owners(visual)
        # A visual token is preceded by the audio tokens of the clips before its own; an audio token
        # also by the visual ones of its own.
        visual_place = torch.arange(sum(visual)) + torch.tensor(offsets(audio))[visual_owner]
        audio_place = torch.arange(sum(audio)) + torch.tensor(offsets(visual))[audio_owner + 1]
        joint = torch.empty(sum(both), dtype=torch.long)
        joint[visual_place] = torch.arange(sum(visual))
        joint[audio_place] = sum(visual) + torch.arange(sum(audio))
        return cls(
            audio_owner=uploaded(audio_owner, device),
            visual_owner=uploaded(visual_owner, device),
            joint=uploaded(joint, device),
            visual_place=uploaded(visual_place, device),
            audio_place=uploaded(audio_place, device),
            borders=Borders.of(audio, device),
            joint_self=Segments.of(both, both, device),
            audio_joint=Segments.of(audio, both, device),
            joint_text=Segments.of(both, text, device),
            audio_text=Segments.of(audio, text, device),
            audio_self=Segments.of(audio, audio, device),
        )


def _owners(lengths: Sequence[int]) -> Tensor:
    """int64 [sum of lengths], the segment of each token."""
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))

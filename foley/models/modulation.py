"""Modulations: what the transformer's blocks take from the time, and from sync.

A block computes shift, scale and gate of its sub-blocks in one product. Here that product is split
into views with names.
"""

# N noise levels, K clips of a batch, M tokens of all clips, L joint blocks, C width

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn


class Modulation(NamedTuple):
    """The modulation of one sub-block.

    Attributes:
        shift: [..., C], added to the normed input.
        scale: [..., C], the normed input is multiplied by 1 + scale.
        gate: [..., C], the result is multiplied by it before it is added to the residual stream.
    """

    shift: Tensor
    scale: Tensor
    gate: Tensor


class JointModulation(NamedTuple):
    """The modulation of one stream in a joint block, by sub-block."""

    attention: Modulation
    cross: Modulation
    mlp: Modulation

    @classmethod
    def of(cls, rows: Tensor) -> Self:
        """Return views of a product [..., 9C].

        Source: docs/internals/model-specification.md, section 2.4.
        """
        return cls(*_split(rows, 3))


class AudioModulation(NamedTuple):
    """The modulation of an audio block, by sub-block."""

    attention: Modulation
    mlp: Modulation

    @classmethod
    def of(cls, rows: Tensor) -> Self:
        """Return views of a product [..., 6C].

        Source: docs/internals/model-specification.md, section 2.5.
        """
        return cls(*_split(rows, 2))


def _split(rows: Tensor, count: int) -> list[Modulation]:
    parts = rows.chunk(3 * count, dim=-1)
    return [Modulation(*parts[i : i + 3]) for i in range(0, 3 * count, 3)]


def expand_rows(rows: Tensor, owner: Tensor | None) -> Tensor:
    """Return a clip's row of numbers for each of its tokens, by broadcasting or by copies.

    Args:
        rows: [K, ...], one for each clip.
        owner: int64 [M], the clip of each token on the only row of the batch; None where each clip
            has a row of the batch.

    Returns:
        [K, 1, ...] without an owner, else [1, M, ...].
    """
    return rows[:, None] if owner is None else rows[owner][None]


class TimeProjection(nn.Module):
    """The modulation of one joint block, from the time.

    It is computed once for a whole schedule, apart from its block, because it depends on nothing
    else.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.audio = nn.Linear(dim, 9 * dim)
        self.visual = nn.Linear(dim, 9 * dim)

    def forward(self, active: Tensor) -> tuple[Tensor, Tensor]:
        """Return [N, 9C] for each stream, see `JointModulation`.

        Args:
            active: [N, C], SiLU of the time embedding.
        """
        return self.audio(active), self.visual(active)


@dataclass(frozen=True)
class TimeModulation:
    """What the blocks take from the time: a row for each noise level, or for each clip of a batch.

    Attributes:
        embedding: [K, C], for the audio blocks.
        audio: [L, K, 9C], the audio streams of the joint blocks, see `JointModulation`.
        visual: [L, K, 9C], their visual streams.
    """

    embedding: Tensor
    audio: Tensor
    visual: Tensor

    def __getitem__(self, rows: Tensor | slice) -> "TimeModulation":
        """Return some of the rows.

        Args:
            rows: int64 indices, for copies; or a slice, for views.
        """
        return TimeModulation(self.embedding[rows], self.audio[:, rows], self.visual[:, rows])

    @classmethod
    def concatenate(cls, times: Sequence["TimeModulation"]) -> "TimeModulation":
        """Return the rows of several, in order.

        Args:
            times: at least one.
        """
        if len(times) == 1:
            return times[0]
        return cls(
            torch.cat([t.embedding for t in times]),
            torch.cat([t.audio for t in times], dim=1),
            torch.cat([t.visual for t in times], dim=1),
        )

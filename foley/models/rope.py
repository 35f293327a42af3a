"""Rotary positions, and the index rule that stretches one token sequence over another."""

# B batch, N tokens, A audio tokens, V visual tokens, H heads, D head size

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from foley.models.packing import sum_offsets


@dataclass(frozen=True)
class RotaryTable:
    """Cosines and sines of the angles at some positions.

    Attributes:
        cos: float32 [N, D / 2].
        sin: float32 [N, D / 2].
    """

    cos: Tensor
    sin: Tensor

    @classmethod
    def at(cls, positions: Tensor, head_dim: int) -> Self:
        """Return the table for some positions, on their device.

        The angle of pair i at position p is p * 10000^(-2i / head_dim), in float32.

        Args:
            positions: int64 [N], at least 0.
            head_dim: D, even.

        Source: docs/internals/model-specification.md, section 2.2.
        """
        exponents = torch.arange(0, head_dim, 2, device=positions.device).float() / head_dim
        angles = torch.outer(positions.float(), 1.0 / 10000.0**exponents)  # [N, D / 2]
        return cls(angles.cos(), angles.sin())

    @classmethod
    def concatenate(cls, tables: Sequence["RotaryTable"]) -> Self:
        """Return the positions of several tables, in order.

        Args:
            tables: at least one, of the same head size.
        """
        return cls(torch.cat([t.cos for t in tables]), torch.cat([t.sin for t in tables]))


def rotate(tokens: Tensor, table: RotaryTable) -> Tensor:
    """Return queries or keys turned by their positions, computed in float32, in their own dtype.

    Pairs are adjacent channels: (a, b) becomes (a cos - b sin, b cos + a sin).

    Args:
        tokens: [B, N, H, D].
        table: of the N positions.

    Source: docs/internals/model-specification.md, section 2.2.
    """
    even, odd = tokens.float().unflatten(-1, (-1, 2)).unbind(-1)  # [B, N, H, D / 2] each
    cos, sin = table.cos[:, None], table.sin[:, None]
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return turned.flatten(-2).to(tokens.dtype)


def stretch_index(source: int, target: int, device: torch.device | None = None) -> Tensor:
    """Return for each of `target` positions the index of the source token that it repeats.

    The rule is nearest-exact resampling in float32, as PyTorch's CPU kernel computes it. Exact
    arithmetic gives another index at some ties, for example 24 tokens stretched to 74.

    Args:
        source: tokens that there are, at least 1.
        target: tokens that are wanted, at least 1.
        device: of the result; None for the CPU.

    Returns:
        int64 [target], from 0 to source - 1.

    Source: docs/internals/model-specification.md, section 2.2.
    """
    ratio = torch.tensor(source / target, dtype=torch.float32).item()
    centres = (torch.arange(target, dtype=torch.float32, device=device) + 0.5) * ratio
    return centres.floor().long().clamp_(max=source - 1)


@dataclass(frozen=True)
class InterleavedPositions:
    """Positions of audio and visual tokens on one time line.

    Attributes:
        audio: int64 [A], 0, 2, 4, ...
        visual: int64 [V], the odd slot after the audio token at the visual token's time.
        visual_source: int64 [V], the visual token whose query and key take that slot. Each token
            takes its own slot, unless there are more visual than audio tokens, which real clips do
            not have.
    """

    audio: Tensor
    visual: Tensor
    visual_source: Tensor

    @classmethod
    def of(cls, num_audio: int, num_visual: int, device: torch.device | None = None) -> Self:
        """Return the positions for two lengths.

        Args:
            num_audio: A, at least 1.
            num_visual: V, at least 1.
            device: of the positions; None for the CPU.

        Source: docs/internals/model-specification.md, section 2.4, the closed form.
        """
        shown_at = stretch_index(num_audio, num_visual, device)
        source = stretch_index(num_visual, num_audio, device)[shown_at]
        return cls(2 * torch.arange(num_audio, device=device), 2 * shown_at + 1, source)


class JointRotary(NamedTuple):
    """Rotary tables of a clip's two streams, or of packed clips, one after another.

    Attributes:
        joint_audio: for A tokens, interleaved positions, for the joint self-attention.
        joint_visual: for V tokens, interleaved positions.
        plain_audio: for A tokens, each token's own index in its clip.
        plain_visual: for V tokens, each token's own index in its clip.
        visual_source: int64 [V], see `InterleavedPositions`; None where it is each token's own.
    """

    joint_audio: RotaryTable
    joint_visual: RotaryTable
    plain_audio: RotaryTable
    plain_visual: RotaryTable
    visual_source: Tensor | None

    @classmethod
    def of(
        cls, num_audio: int, num_visual: int, head_dim: int, device: torch.device | None = None
    ) -> Self:
        """Return the tables of one clip.

        Args:
            num_audio: A, at least 1.
            num_visual: V, at least 1.
            head_dim: D.
            device: of the tables; None for the CPU.
        """
        joint = InterleavedPositions.of(num_audio, num_visual, device)
        return cls(
            joint_audio=RotaryTable.at(joint.audio, head_dim),
            joint_visual=RotaryTable.at(joint.visual, head_dim),
            plain_audio=RotaryTable.at(torch.arange(num_audio, device=device), head_dim),
            plain_visual=RotaryTable.at(torch.arange(num_visual, device=device), head_dim),
            visual_source=joint.visual_source if num_visual > num_audio else None,
        )

    @classmethod
    def concatenate(cls, tables: Sequence["JointRotary"]) -> Self:
        """Return the tables of clips that lie one after another.

        Args:
            tables: at least one, of the same head size.
        """
        sources = None
        if any(t.visual_source is not None for t in tables):
            begins = sum_offsets([len(t.joint_visual.cos) for t in tables])
            sources = torch.cat(
                [t.visual_sources() + n for t, n in zip(tables, begins, strict=False)]
            )
        joint_audio, joint_visual, plain_audio, plain_visual = (
            RotaryTable.concatenate(column) for column in zip(*(t[:4] for t in tables), strict=True)
        )
        return cls(joint_audio, joint_visual, plain_audio, plain_visual, sources)

    def visual_sources(self) -> Tensor:
        """Return `visual_source`, or each visual token's own index where that is None."""
        if self.visual_source is not None:
            return self.visual_source
        cos = self.joint_visual.cos
        return torch.arange(len(cos), device=cos.device)

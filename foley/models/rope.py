"""Rotary positions, and the index rule that stretches one token sequence over another."""

# B batch, N tokens, A audio tokens, V visual tokens, H heads, D head size

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class RotaryTable:
    """Cosines and sines of the angles at given positions, float32 [N, D / 2] each."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def at(cls, positions: Tensor, head_dim: int) -> Self:
        """The table for integer `positions` [N], on their device.

        Source: specification, section 2.2. Angle of pair i at position p:
        p * 10000^(-2i / head_dim), in float32.
        """
        exponents = torch.arange(0, head_dim, 2, device=positions.device).float() / head_dim
        angles = torch.outer(positions.float(), 1.0 / 10000.0**exponents)  # [N, D / 2]
        return cls(angles.cos(), angles.sin())

    @classmethod
    def concatenate(cls, tables: Sequence["RotaryTable"]) -> Self:
        """The positions of several tables, in order."""
        return cls(torch.cat([t.cos for t in tables]), torch.cat([t.sin for t in tables]))


def rotate(tokens: Tensor, table: RotaryTable) -> Tensor:
    """Queries or keys [B, N, H, D] turned by their positions; computed in float32, dtype kept.

    Pairs are adjacent channels: (a, b) -> (a cos - b sin, b cos + a sin).
    """
    even, odd = tokens.float().unflatten(-1, (-1, 2)).unbind(-1)  # [B, N, H, D / 2] each
    cos, sin = table.cos[:, None], table.sin[:, None]
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return turned.flatten(-2).to(tokens.dtype)


def stretch_index(source: int, target: int, device: torch.device | None = None) -> Tensor:
    """For each of `target` positions the index of the source token that it shows, int64 [target].

    The rule is nearest-exact resampling in float32, as PyTorch's kernel computes it: exact
    arithmetic gives another index at some ties (24 -> 74, for one).
    Source: specification, section 2.2.
    """
    ratio = torch.tensor(source / target, dtype=torch.float32).item()
    centres = (torch.arange(target, dtype=torch.float32, device=device) + 0.5) * ratio
    return centres.floor().long().clamp_(max=source - 1)


@dataclass(frozen=True)
class InterleavedPositions:
    """Where audio and visual tokens stand when both are laid on one time line.

    Attributes:
        audio: int64 [A], 0, 2, 4, ...
        visual: int64 [V], the odd slot of the audio token that shows the visual token.
        visual_source: int64 [V], the visual token whose query and key stand at that slot. Each is
            its own, unless there are more visual than audio tokens (not reached by real clips).
    """

    audio: Tensor
    visual: Tensor
    visual_source: Tensor

    @classmethod
    def of(cls, num_audio: int, num_visual: int, device: torch.device | None = None) -> Self:
        """Positions for the two lengths. Source: specification, section 2.4, the closed form."""
        shown_at = stretch_index(num_audio, num_visual, device)
        source = stretch_index(num_visual, num_audio, device)[shown_at]
        return cls(2 * torch.arange(num_audio, device=device), 2 * shown_at + 1, source)

"""FoleyDiT: (latents, time, what is known of the clip) -> velocity."""

# B batch, A audio tokens (latent frames, 50 a second), V visual tokens (8 a second),
# S sync tokens (8 a segment), T text tokens, C width, H heads, D head size,
# R distinct sync rows, L joint blocks

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, cast

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from foley.configs import DiTConfig
from foley.models.layers import (
    JOINT_EPS,
    AudioBlock,
    GatedMLP,
    JointBlock,
    JointRotary,
)
from foley.models.rope import InterleavedPositions, RotaryTable, stretch_index

TIME_EMBEDDING_DIM = 256
SYNC_POSITIONS = 8  # sync tokens of one segment


@dataclass(frozen=True)
class DiTContext:
    """All that does not change over a clip's steps, for each batch element.

    Attributes:
        visual: projected visual tokens [B, V, C].
        text_keys: for each joint block [B, T, H, D], normed and rotated.
        text_values: likewise.
        sync_rows: the distinct projected sync tokens of the whole batch [R, C].
        row_owner: int64 [R], the batch element that each row belongs to.
        row_index: int64 [B, A], the row that each audio token shows.
        rotary: tables of these lengths.
    """

    visual: Tensor
    text_keys: tuple[Tensor, ...]
    text_values: tuple[Tensor, ...]
    sync_rows: Tensor
    row_owner: Tensor
    row_index: Tensor
    rotary: JointRotary

    @classmethod
    def concatenate(cls, contexts: Sequence[Self]) -> Self:
        """One batch of several, in order. All must have the same A, V and T."""
        owners = itertools.accumulate((len(c.visual) for c in contexts), initial=0)
        rows = itertools.accumulate((len(c.sync_rows) for c in contexts), initial=0)
        return cls(
            visual=torch.cat([c.visual for c in contexts]),
            text_keys=tuple(map(torch.cat, zip(*(c.text_keys for c in contexts), strict=True))),
            text_values=tuple(map(torch.cat, zip(*(c.text_values for c in contexts), strict=True))),
            sync_rows=torch.cat([c.sync_rows for c in contexts]),
            row_owner=torch.cat([c.row_owner + n for c, n in zip(contexts, owners, strict=False)]),
            row_index=torch.cat([c.row_index + n for c, n in zip(contexts, rows, strict=False)]),
            rotary=contexts[0].rotary,
        )


@dataclass(frozen=True)
class TimeModulation:
    """What the blocks are told about time: one row for each time, or for each batch element.

    Attributes:
        embedding: [B, C].
        audio: [L, B, 9C].
        visual: [L, B, 9C].
    """

    embedding: Tensor
    audio: Tensor
    visual: Tensor

    def __getitem__(self, rows: Tensor) -> "TimeModulation":
        """The rows with these int64 indices, repeated as they are."""
        return TimeModulation(self.embedding[rows], self.audio[:, rows], self.visual[:, rows])


def embed_time(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding, cosines first, float32 [B, dim].

    Source: specification, section 2.3, step 1.
    """
    half = dim // 2
    # Multiplied before divided: at t = 1000 another rounding of the frequency shows in the cosine.
    exponents = -math.log(10000.0) * torch.arange(half, device=timesteps.device).float() / half
    frequencies = torch.exp(exponents)
    angles = torch.outer(timesteps.float(), frequencies)
    embedding = torch.cat((angles.cos(), angles.sin()), dim=-1)
    return F.pad(embedding, (0, dim % 2))


class FoleyDiT(ModelMixin, ConfigMixin):
    """The flow-matching transformer. Source: specification, section 2.

    A clip's `context` and a schedule's `time_modulation` are computed once; `forward` then sees
    only what changes from step to step.
    """

    _supports_gradient_checkpointing = False
    _supports_group_offloading = True
    _no_split_modules = ["JointBlock", "AudioBlock"]
    _skip_layerwise_casting_patterns = ["norm"]

    @register_to_config
    def __init__(
        self,
        *,
        latent_dim: int,
        hidden_dim: int,
        num_heads: int,
        num_joint_blocks: int,
        num_audio_blocks: int,
        visual_dim: int,
        sync_dim: int,
        text_dim: int,
    ) -> None:
        super().__init__()
        config = DiTConfig(
            latent_dim=latent_dim,
            hidden_dim=hidden_dim,
            num_heads=num_heads,
            num_joint_blocks=num_joint_blocks,
            num_audio_blocks=num_audio_blocks,
            visual_dim=visual_dim,
            sync_dim=sync_dim,
            text_dim=text_dim,
        )
        dim = hidden_dim
        self.head_dim = config.head_dim
        self.audio_in = nn.Linear(latent_dim, dim)
        self.visual_in = GatedMLP(visual_dim, dim, dim, 1, bias=False)
        self.text_in = nn.Sequential(nn.Linear(text_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_in = nn.Sequential(
            nn.Linear(TIME_EMBEDDING_DIM, dim), nn.SiLU(), nn.Linear(dim, dim)
        )
        self.sync_in = nn.Sequential(
            nn.Linear(sync_dim, dim),
            nn.SiLU(),
            GatedMLP(dim, config.conv_mlp_dim, dim, 1, bias=False),
        )
        self.sync_position = nn.Parameter(torch.zeros(SYNC_POSITIONS, sync_dim))
        self.empty_visual = nn.Parameter(torch.zeros(1, visual_dim))
        self.empty_sync = nn.Parameter(torch.zeros(1, sync_dim))
        self.joint_blocks = nn.ModuleList(
            JointBlock(dim, num_heads, config.mlp_dim) for _ in range(num_joint_blocks)
        )
        self.audio_blocks = nn.ModuleList(
            AudioBlock(dim, num_heads, config.conv_mlp_dim) for _ in range(num_audio_blocks)
        )
        self.velocity_out = nn.Linear(dim, latent_dim)

    def _joint(self) -> list[JointBlock]:
        return cast("list[JointBlock]", list(self.joint_blocks))

    def context(
        self, visual_tokens: Tensor, sync_tokens: Tensor, text_tokens: Tensor, num_latents: int
    ) -> DiTContext:
        """The context of clips with these tokens.

        Args:
            visual_tokens: [B, V, visual_dim].
            sync_tokens: [B, S, sync_dim], S a multiple of 8.
            text_tokens: [B, T, text_dim].
            num_latents: A.
        """
        batch, num_sync, _ = sync_tokens.shape
        positions = self.sync_position.repeat(num_sync // SYNC_POSITIONS, 1)
        index = stretch_index(num_sync, num_latents, sync_tokens.device)
        first_row = num_sync * torch.arange(batch, device=sync_tokens.device)
        return self._context(
            visual_tokens,
            text_tokens,
            sync_inputs=(sync_tokens + positions).flatten(0, 1),
            row_owner=torch.arange(batch, device=sync_tokens.device).repeat_interleave(num_sync),
            row_index=first_row[:, None] + index,
        )

    def empty_context(
        self, num_visual: int, num_sync: int, text_tokens: Tensor, num_latents: int
    ) -> DiTContext:
        """The context of the unconditional half: learned features in place of the clip's.

        The empty sync feature differs only by its position in the segment, so there are 8 rows
        whatever S is. Source: specification, section 2.8 and 15.

        Args:
            num_visual: V.
            num_sync: S.
            text_tokens: [B, T, text_dim], the negative prompt's.
            num_latents: A.
        """
        batch, device = len(text_tokens), text_tokens.device
        index = stretch_index(num_sync, num_latents, device) % SYNC_POSITIONS
        first_row = SYNC_POSITIONS * torch.arange(batch, device=device)
        return self._context(
            self.empty_visual.expand(batch, num_visual, -1),
            text_tokens,
            sync_inputs=(self.empty_sync + self.sync_position).repeat(batch, 1),
            row_owner=torch.arange(batch, device=device).repeat_interleave(SYNC_POSITIONS),
            row_index=first_row[:, None] + index,
        )

    def _context(
        self,
        visual_tokens: Tensor,
        text_tokens: Tensor,
        *,
        sync_inputs: Tensor,
        row_owner: Tensor,
        row_index: Tensor,
    ) -> DiTContext:
        dtype, device = self.dtype, text_tokens.device
        num_audio, num_visual = row_index.shape[1], visual_tokens.shape[1]

        def plain(length: int) -> RotaryTable:
            return RotaryTable.at(torch.arange(length, device=device), self.head_dim)

        text = self.text_in(text_tokens.to(dtype))  # [B, T, C]
        text_table = plain(text.shape[1])
        keys_values = [block.text_keys_values(text, text_table) for block in self._joint()]
        joint = InterleavedPositions.of(num_audio, num_visual, device)
        rotary = JointRotary(
            joint_audio=RotaryTable.at(joint.audio, self.head_dim),
            joint_visual=RotaryTable.at(joint.visual, self.head_dim),
            plain_audio=plain(num_audio),
            plain_visual=plain(num_visual),
            visual_source=joint.visual_source if num_visual > num_audio else None,
        )
        return DiTContext(
            visual=self.visual_in(visual_tokens.to(dtype)),
            text_keys=tuple(key for key, _ in keys_values),
            text_values=tuple(value for _, value in keys_values),
            sync_rows=self.sync_in(sync_inputs.to(dtype)),
            row_owner=row_owner,
            row_index=row_index,
            rotary=rotary,
        )

    def time_modulation(self, sigmas: Tensor) -> TimeModulation:
        """What the blocks are told about the noise levels `sigmas` [N], all in one product a block.

        The model's own time is 1000 * sigma (specification, section 4).
        """
        embedding = embed_time(1000.0 * sigmas, TIME_EMBEDDING_DIM).to(self.dtype)
        embedding = self.time_in(embedding)  # [N, C]
        active = F.silu(embedding)
        return TimeModulation(
            embedding,
            torch.stack([block.audio.modulation(active) for block in self._joint()]),
            torch.stack([block.visual.modulation(active) for block in self._joint()]),
        )

    def forward(self, latents: Tensor, time: TimeModulation, context: DiTContext) -> Tensor:
        """The velocity, d(latents) / d(sigma), float32 [B, latent_dim, A].

        Args:
            latents: [B, latent_dim, A].
            time: one row for each batch element.
            context: of the same B and A.
        """
        audio = self.audio_in(latents.transpose(1, 2).to(context.visual.dtype))  # [B, A, C]
        audio = audio.float() + context.sync_rows[context.row_index]
        visual = context.visual
        for i, block in enumerate(self.joint_blocks):
            audio, visual = block(
                audio,
                visual,
                time.audio[i],
                time.visual[i],
                context.text_keys[i],
                context.text_values[i],
                context.rotary,
                update_visual=i + 1 < len(self.joint_blocks),
            )
        conditions = context.sync_rows.float() + time.embedding[context.row_owner]
        conditions = F.silu(conditions).to(context.sync_rows.dtype)  # [R, C]
        for block in self.audio_blocks:
            audio = block(audio, conditions, context.row_index, context.rotary.plain_audio)
        # The checkpoint's final modulation is left out on purpose: it has no effect
        # (specification, section 2.6).
        normed = F.layer_norm(audio, audio.shape[-1:], eps=JOINT_EPS).to(context.visual.dtype)
        return self.velocity_out(normed).float().transpose(1, 2)  # [B, latent_dim, A]


def build_dit(config: DiTConfig) -> FoleyDiT:
    """A FoleyDiT of this architecture, with PyTorch's initial weights."""
    return FoleyDiT(
        latent_dim=config.latent_dim,
        hidden_dim=config.hidden_dim,
        num_heads=config.num_heads,
        num_joint_blocks=config.num_joint_blocks,
        num_audio_blocks=config.num_audio_blocks,
        visual_dim=config.visual_dim,
        sync_dim=config.sync_dim,
        text_dim=config.text_dim,
    )

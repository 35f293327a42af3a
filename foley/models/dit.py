"""FoleyDiT: (latents, time, what is known of the clip) -> velocity."""

# B batch, A audio tokens (latent frames, 50 a second), V visual tokens (8 a second),
# S sync tokens (8 a segment), T text tokens, C width, H heads, D head size,
# R distinct sync rows, L joint blocks, K clips of a batch

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
    TextProjection,
    TimeProjection,
)
from foley.models.packing import Lengths, Packing, offsets
from foley.models.rope import InterleavedPositions, RotaryTable, rotate, stretch_index

TIME_EMBEDDING_DIM = 256
SYNC_POSITIONS = 8  # sync tokens of one segment


@dataclass(frozen=True)
class DiTContext:
    """All that does not change over the steps of K clips (the halves of guidance count as two).

    Clips of one length have a row of the batch each: B = K. Packed clips, of any lengths, lie one
    after another on a single row: B = 1, and A, V and T are those of all of them together.

    Attributes:
        visual: projected visual tokens [B, V, C].
        text_keys: for each joint block, normed and rotated [L, B, T, H, D].
        text_values: likewise.
        sync_rows: the distinct projected sync tokens of all clips [R, C].
        row_owner: int64 [R], the clip that each row belongs to.
        row_index: int64 [B, A], the row that each audio token shows.
        rotary: tables of these lengths.
        lengths: of each clip, in order.
        packing: None where each clip has a row of the batch.
    """

    visual: Tensor
    text_keys: Tensor
    text_values: Tensor
    sync_rows: Tensor
    row_owner: Tensor
    row_index: Tensor
    rotary: JointRotary
    lengths: tuple[Lengths, ...]
    packing: Packing | None = None

    @classmethod
    def concatenate(cls, contexts: Sequence["DiTContext"], *, packed: bool = False) -> "DiTContext":
        """The clips of several contexts, in order.

        Args:
            contexts: of any lengths.
            packed: put all on one row also where a row for each is possible.
        """
        packed = packed or any(c.packing is not None for c in contexts)
        if packed or len({c.lengths[0] for c in contexts}) > 1:
            contexts = [c.pack() for c in contexts]
        if len(contexts) == 1:
            return contexts[0]
        first = contexts[0]
        lengths = tuple(itertools.chain.from_iterable(c.lengths for c in contexts))
        owners = offsets([len(c.lengths) for c in contexts])
        rows = offsets([len(c.sync_rows) for c in contexts])
        # A batch grows by rows, packed clips by tokens of their only row.
        grown = 0 if first.packing is None else 1

        def joined(tensor: Callable[[DiTContext], Tensor], dim: int) -> Tensor:
            return torch.cat([tensor(c) for c in contexts], dim)

        row_index = [c.row_index + n for c, n in zip(contexts, rows, strict=False)]
        row_owner = [c.row_owner + n for c, n in zip(contexts, owners, strict=False)]
        return cls(
            visual=joined(lambda c: c.visual, grown),
            text_keys=joined(lambda c: c.text_keys, 1 + grown),
            text_values=joined(lambda c: c.text_values, 1 + grown),
            sync_rows=joined(lambda c: c.sync_rows, 0),
            row_owner=torch.cat(row_owner),
            row_index=torch.cat(row_index, grown),
            rotary=JointRotary.concatenate([c.rotary for c in contexts]) if grown else first.rotary,
            lengths=lengths,
            packing=Packing.of(lengths, first.visual.device) if grown else None,
        )

    def pack(self) -> "DiTContext":
        """The same clips on one row."""
        if self.packing is not None:
            return self
        return DiTContext(
            visual=self.visual.flatten(0, 1)[None],
            text_keys=self.text_keys.flatten(1, 2)[:, None],
            text_values=self.text_values.flatten(1, 2)[:, None],
            sync_rows=self.sync_rows,
            row_owner=self.row_owner,
            row_index=self.row_index.flatten()[None],
            rotary=JointRotary.concatenate([self.rotary] * len(self.lengths)),
            lengths=self.lengths,
            packing=Packing.of(self.lengths, self.visual.device),
        )


@dataclass(frozen=True)
class TimeModulation:
    """What the blocks are told about time: one row for each time, or for each clip of a batch.

    Attributes:
        embedding: [K, C].
        audio: [L, K, 9C].
        visual: [L, K, 9C].
    """

    embedding: Tensor
    audio: Tensor
    visual: Tensor

    def __getitem__(self, rows: Tensor | slice) -> "TimeModulation":
        """The rows with these int64 indices, repeated as they are, or a view of a range of rows."""
        return TimeModulation(self.embedding[rows], self.audio[:, rows], self.visual[:, rows])

    @classmethod
    def concatenate(cls, times: Sequence["TimeModulation"]) -> "TimeModulation":
        """The rows of several, in order."""
        if len(times) == 1:
            return times[0]
        return cls(
            torch.cat([t.embedding for t in times]),
            torch.cat([t.audio for t in times], dim=1),
            torch.cat([t.visual for t in times], dim=1),
        )


def embed_time(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding, cosines first, float32 [B, dim].

    Source: specification, section 2.3, step 1.
    """
    half = dim // 2
    # Multiplied before divided: at t = 1000 another rounding of the frequency shows in the cosine.
    exponents = -math.log(10000.0) * torch.arange(half, device=timesteps.device).float() / half
    # float32's exponential is another one on other processors: 1 to 6 of 128 are off by a bit.
    frequencies = exponents.double().exp().float()
    angles = torch.outer(timesteps.float(), frequencies)
    embedding = torch.cat((angles.cos(), angles.sin()), dim=-1)
    return F.pad(embedding, (0, dim % 2))


class ClipEmbedding(nn.Module):
    """What is known of a clip, at the transformer's width: computed once a clip."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.visual = GatedMLP(config.visual_dim, dim, dim, 1, bias=False)
        self.text = nn.Sequential(nn.Linear(config.text_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.sync = nn.Sequential(
            nn.Linear(config.sync_dim, dim),
            nn.SiLU(),
            GatedMLP(dim, config.conv_mlp_dim, dim, 1, bias=False),
        )
        self.sync_position = nn.Parameter(torch.zeros(SYNC_POSITIONS, config.sync_dim))
        self.empty_visual = nn.Parameter(torch.zeros(1, config.visual_dim))
        self.empty_sync = nn.Parameter(torch.zeros(1, config.sync_dim))

    def forward(
        self, text_tokens: Tensor, visual_tokens: Tensor | None, sync_tokens: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Text [B, T, C], visual [B, V, C] and sync [B, S, C], projected.

        Without a clip, learned features stand in its place: one visual row and eight sync rows,
        [1, 1, C] and [1, 8, C], since the empty sync feature differs only by its position in the
        segment. Source: specification, sections 2.3, 2.8 and 15.

        Args:
            text_tokens: [B, T, text_dim].
            visual_tokens: [B, V, visual_dim], or None.
            sync_tokens: [B, S, sync_dim], S a multiple of 8, or None.
        """
        dtype = text_tokens.dtype
        if visual_tokens is None:
            visual_tokens = self.empty_visual[None].to(dtype)
        if sync_tokens is None:
            sync_tokens = self.empty_sync.expand(1, SYNC_POSITIONS, -1)
        segments = sync_tokens.unflatten(1, (-1, SYNC_POSITIONS))
        sync_tokens = (segments + self.sync_position).flatten(1, 2).to(dtype)
        return self.text(text_tokens), self.visual(visual_tokens), self.sync(sync_tokens)


class FoleyDiT(ModelMixin, ConfigMixin):
    """The flow-matching transformer. Source: specification, section 2.

    A clip's `context` and a schedule's `time_modulation` are computed once; `forward` then sees
    only what changes from step to step. Each of the three calls modules as wholes, so that hooks on
    them (offloading, casting) see every use of a weight.
    """

    _supports_gradient_checkpointing = False
    _supports_group_offloading = True
    _group_offload_block_modules = ["clip_in"]
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
        self.clip_in = ClipEmbedding(config)
        self.text_projections = nn.ModuleList(
            TextProjection(dim, num_heads) for _ in range(num_joint_blocks)
        )
        self.time_in = nn.Sequential(
            nn.Linear(TIME_EMBEDDING_DIM, dim), nn.SiLU(), nn.Linear(dim, dim)
        )
        self.time_projections = nn.ModuleList(TimeProjection(dim) for _ in range(num_joint_blocks))
        self.audio_in = nn.Linear(latent_dim, dim)
        self.joint_blocks = nn.ModuleList(
            JointBlock(dim, num_heads, config.mlp_dim) for _ in range(num_joint_blocks)
        )
        self.audio_blocks = nn.ModuleList(
            AudioBlock(dim, num_heads, config.conv_mlp_dim) for _ in range(num_audio_blocks)
        )
        self.velocity_out = nn.Linear(dim, latent_dim)

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
        dtype = self.dtype
        text, visual, sync = self.clip_in(
            text_tokens.to(dtype), visual_tokens.to(dtype), sync_tokens.to(dtype)
        )
        index = stretch_index(sync.shape[1], num_latents, sync.device)
        rotary = self._rotary(num_latents, visual.shape[1], sync.device)
        return self._context(self._keys_values(text), visual, sync, index, rotary)

    def empty_context(
        self, num_visual: int, num_sync: int, text_tokens: Tensor, num_latents: int
    ) -> DiTContext:
        """The context of the unconditional half: learned features in place of the clip's.

        Args:
            num_visual: V.
            num_sync: S. Stretching repeats eight rows in turn, whatever S is.
            text_tokens: [B, T, text_dim], the negative prompt's.
            num_latents: A.
        """
        text, visual, sync = self.clip_in(text_tokens.to(self.dtype), None, None)
        index = stretch_index(num_sync, num_latents, sync.device) % SYNC_POSITIONS
        rotary = self._rotary(num_latents, num_visual, sync.device)
        visual = visual.expand(len(text), num_visual, -1)
        sync = sync.expand(len(text), -1, -1)
        return self._context(self._keys_values(text), visual, sync, index, rotary)

    def both_contexts(
        self, visual_tokens: Tensor, sync_tokens: Tensor, text_tokens: Tensor, num_latents: int
    ) -> tuple[DiTContext, DiTContext]:
        """Of the two halves of guidance: `empty_context` of the first prompt, and `context` of the
        second. What they share is computed once, with half of the launches.

        Args:
            visual_tokens: [1, V, visual_dim].
            sync_tokens: [1, S, sync_dim], S a multiple of 8.
            text_tokens: [2, T, text_dim], the negative prompt's first.
            num_latents: A.
        """
        dtype = self.dtype
        text_tokens = text_tokens.to(dtype)
        text, visual, sync = self.clip_in(
            text_tokens, visual_tokens.to(dtype), sync_tokens.to(dtype)
        )
        _, empty_visual, empty_sync = self.clip_in(text_tokens[:1], None, None)
        keys, values = self._keys_values(text)
        negative, positive = zip(keys.split(1, dim=1), values.split(1, dim=1), strict=True)
        index = stretch_index(sync.shape[1], num_latents, sync.device)
        rotary = self._rotary(num_latents, visual.shape[1], sync.device)
        empty_visual = empty_visual.expand(-1, visual.shape[1], -1)
        return (
            self._context(negative, empty_visual, empty_sync, index % SYNC_POSITIONS, rotary),
            self._context(positive, visual, sync, index, rotary),
        )

    def _keys_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated keys, and values, of all joint blocks [L, B, T, H, D], of projected text."""
        keys, values = zip(*(project(text) for project in self.text_projections), strict=True)
        positions = torch.arange(text.shape[1], device=text.device)
        table = RotaryTable.at(positions, self.head_dim)
        return rotate(torch.stack(keys), table), torch.stack(values)

    def _rotary(self, num_audio: int, num_visual: int, device: torch.device) -> JointRotary:
        def plain(length: int) -> RotaryTable:
            return RotaryTable.at(torch.arange(length, device=device), self.head_dim)

        joint = InterleavedPositions.of(num_audio, num_visual, device)
        return JointRotary(
            joint_audio=RotaryTable.at(joint.audio, self.head_dim),
            joint_visual=RotaryTable.at(joint.visual, self.head_dim),
            plain_audio=plain(num_audio),
            plain_visual=plain(num_visual),
            visual_source=joint.visual_source if num_visual > num_audio else None,
        )

    def _context(
        self,
        keys_values: tuple[Tensor, Tensor],
        visual: Tensor,
        sync: Tensor,
        index: Tensor,
        rotary: JointRotary,
    ) -> DiTContext:
        """Of projected tokens; `index` [A] is the sync row that each audio token shows."""
        keys, values = keys_values
        batch, num_rows = sync.shape[:2]
        owners = torch.arange(batch, device=sync.device)
        return DiTContext(
            visual=visual,
            text_keys=keys,
            text_values=values,
            sync_rows=sync.flatten(0, 1),
            row_owner=owners.repeat_interleave(num_rows),
            row_index=num_rows * owners[:, None] + index,
            rotary=rotary,
            lengths=(Lengths(len(index), visual.shape[1], keys.shape[2]),) * batch,
        )

    def time_modulation(self, sigmas: Tensor) -> TimeModulation:
        """What the blocks are told about the noise levels `sigmas` [N], all in one product a block.

        The model's own time is 1000 * sigma (specification, section 4).
        """
        embedding = embed_time(1000.0 * sigmas, TIME_EMBEDDING_DIM).to(self.dtype)
        embedding = self.time_in(embedding)  # [N, C]
        active = F.silu(embedding)
        projected = [projection(active) for projection in self.time_projections]
        audio, visual = zip(*projected, strict=True)
        return TimeModulation(embedding, torch.stack(audio), torch.stack(visual))

    def forward(self, latents: Tensor, time: TimeModulation, context: DiTContext) -> Tensor:
        """The velocity, d(latents) / d(sigma), float32 [B, latent_dim, A].

        Args:
            latents: [B, latent_dim, A]; of packed clips one after another, [1, latent_dim, A].
            time: one row for each clip.
            context: of the same clips.
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
                context.packing,
                update_visual=i + 1 < len(self.joint_blocks),
            )
        conditions = context.sync_rows.float() + time.embedding[context.row_owner]
        conditions = F.silu(conditions).to(context.sync_rows.dtype)  # [R, C]
        for block in self.audio_blocks:
            audio = block(
                audio, conditions, context.row_index, context.rotary.plain_audio, context.packing
            )
        # The checkpoint's final modulation is left out on purpose: it has no effect
        # (specification, section 2.6).
        normed = F.layer_norm(audio, audio.shape[-1:], eps=JOINT_EPS).to(context.visual.dtype)
        return self.velocity_out(normed).float().transpose(1, 2)  # [B, latent_dim, A]


def build_dit(config: DiTConfig) -> FoleyDiT:
    """A FoleyDiT of this architecture, with PyTorch's initial weights."""
    return FoleyDiT(**vars(config))

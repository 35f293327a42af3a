"""FoleyDiT: latents, time and a clip's context give the velocity."""

# B batch, A audio tokens (latent frames, 50 a second), V visual tokens (8 a second),
# S sync tokens (8 a segment), T text tokens, C width, H heads, D head size,
# R distinct sync rows, L joint blocks, N noise levels

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from foley.configs import DiTConfig
from foley.models.audio_block import AudioBlock
from foley.models.context import DiTContext
from foley.models.embeddings import SYNC_POSITIONS, TIME_EMBEDDING_DIM, ClipEmbedding, embed_time
from foley.models.joint_block import JointBlock, TextProjection
from foley.models.layers import JOINT_EPS
from foley.models.modulation import TimeModulation, TimeProjection
from foley.models.packing import Lengths
from foley.models.rope import JointRotary, RotaryTable, rotate, stretch_index


class FoleyDiT(ModelMixin, ConfigMixin):  # type: ignore[misc]  # both define config_name
    """The flow-matching transformer.

    A clip's context and a schedule's time modulation are computed once. `forward` then computes
    only what changes from step to step. Each of the three calls modules as wholes, so that hooks on
    them (offloading, casting) see every use of a weight.

    Source: docs/internals/model-specification.md, section 2.
    """

    _supports_gradient_checkpointing = False
    _supports_group_offloading = True
    _group_offload_block_modules = ["clip_in"]
    _no_split_modules = ["JointBlock", "AudioBlock"]  # type: ignore[assignment]
    _skip_layerwise_casting_patterns = ["norm"]  # type: ignore[assignment]

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

    def make_context(
        self, visual_tokens: Tensor, sync_tokens: Tensor, text_tokens: Tensor, num_latents: int
    ) -> DiTContext:
        """Return the context of clips with these tokens.

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
        rotary = JointRotary.of(num_latents, visual.shape[1], self.head_dim, sync.device)
        return _assemble_context(*self._project_text(text), visual, sync, index, rotary)

    def make_empty_context(
        self, num_visual: int, num_sync: int, text_tokens: Tensor, num_latents: int
    ) -> DiTContext:
        """Return the context of the unconditional half: learned features in place of the clip's.

        Args:
            num_visual: V.
            num_sync: S. Stretching repeats eight rows in turn, for any S.
            text_tokens: [B, T, text_dim], of the negative prompt.
            num_latents: A.

        Source: docs/internals/model-specification.md, section 2.8.
        """
        text, visual, sync = self.clip_in(text_tokens.to(self.dtype), None, None)
        index = stretch_index(num_sync, num_latents, sync.device) % SYNC_POSITIONS
        rotary = JointRotary.of(num_latents, num_visual, self.head_dim, sync.device)
        visual = visual.expand(len(text), num_visual, -1)
        sync = sync.expand(len(text), -1, -1)
        return _assemble_context(*self._project_text(text), visual, sync, index, rotary)

    def make_guidance_contexts(
        self, visual_tokens: Tensor, sync_tokens: Tensor, text_tokens: Tensor, num_latents: int
    ) -> tuple[DiTContext, DiTContext]:
        """Return both halves of guidance: the empty context, then the clip's.

        They are `make_empty_context` of the first prompt and `make_context` of the second one. What
        both need is computed once, with half of the kernel launches.

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
        keys, values = self._project_text(text)
        negative, positive = zip(keys.split(1, dim=1), values.split(1, dim=1), strict=True)
        index = stretch_index(sync.shape[1], num_latents, sync.device)
        rotary = JointRotary.of(num_latents, visual.shape[1], self.head_dim, sync.device)
        empty_visual = empty_visual.expand(-1, visual.shape[1], -1)
        return (
            _assemble_context(*negative, empty_visual, empty_sync, index % SYNC_POSITIONS, rotary),
            _assemble_context(*positive, visual, sync, index, rotary),
        )

    def project_prompts(self, text_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return rotated keys, and values, of prompts in all joint blocks [L, B, T, H, D].

        Args:
            text_tokens: [B, T, text_dim].
        """
        text, _, _ = self.clip_in(text_tokens.to(self.dtype), None, None)
        return self._project_text(text)

    def _project_text(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return rotated keys, and values, of all joint blocks [L, B, T, H, D]."""
        keys, values = zip(*(project(text) for project in self.text_projections), strict=True)
        positions = torch.arange(text.shape[1], device=text.device)
        table = RotaryTable.at(positions, self.head_dim)
        return rotate(torch.stack(keys), table), torch.stack(values)

    def make_time_modulation(self, sigmas: Tensor) -> TimeModulation:
        """Return the modulation for some noise levels, computed with one product a block.

        Args:
            sigmas: float32 [N], from 0 (clean) to 1 (noise).

        Source: docs/internals/model-specification.md, section 2.3, step 1, and section 4: the
        model's own time is 1000 * sigma.
        """
        embedding = embed_time(1000.0 * sigmas, TIME_EMBEDDING_DIM).to(self.dtype)
        embedding = self.time_in(embedding)  # [N, C]
        active = F.silu(embedding)
        projected = [projection(active) for projection in self.time_projections]
        audio, visual = zip(*projected, strict=True)
        return TimeModulation(embedding, torch.stack(audio), torch.stack(visual))

    def forward(self, latents: Tensor, time: TimeModulation, context: DiTContext) -> Tensor:
        """Return the velocity, d(latents) / d(sigma), float32 [B, latent_dim, A].

        Args:
            latents: [B, latent_dim, A]; of packed clips one after another, [1, latent_dim, A].
            time: one row for each clip.
            context: of the same clips.

        Source: docs/internals/model-specification.md, sections 2.3 to 2.6.
        """
        assert context.packing is not None or not context.regions, "regions need a packed context"
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
        # The checkpoint's final modulation is left out: it has no effect (section 2.6).
        normed = F.layer_norm(audio, audio.shape[-1:], eps=JOINT_EPS).to(context.visual.dtype)
        return self.velocity_out(normed).float().transpose(1, 2)  # [B, latent_dim, A]


def _assemble_context(
    keys: Tensor, values: Tensor, visual: Tensor, sync: Tensor, index: Tensor, rotary: JointRotary
) -> DiTContext:
    """Return the context of projected tokens; `index` [A] is the sync row of each audio token."""
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


def build_dit(config: DiTConfig) -> FoleyDiT:
    """Return a FoleyDiT of this architecture, with PyTorch's initial weights."""
    return FoleyDiT(**vars(config))

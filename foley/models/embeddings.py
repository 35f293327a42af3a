"""The transformer's inputs, brought to its width: the noise level, and what is known of a clip."""

# B batch, V visual tokens, S sync tokens (8 a segment), T text tokens, C width

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foley.configs import DiTConfig
from foley.models.layers import GatedMLP

TIME_EMBEDDING_DIM = 256
SYNC_POSITIONS = 8  # sync tokens of one segment


def embed_time(timesteps: Tensor, dim: int) -> Tensor:
    """Return the sinusoidal embedding of times, cosines first, float32 [B, dim].

    Args:
        timesteps: [B], 1000 * sigma, from 0 to 1000.
        dim: of the embedding; an odd one ends in a zero.

    Source: docs/internals/model-specification.md, section 2.3, step 1.
    """
    half = dim // 2
    # Multiplied before it is divided: at t = 1000 another rounding of the frequency shows in the
    # cosine.
    exponents = -math.log(10000.0) * torch.arange(half, device=timesteps.device).float() / half
    # In float64, because float32's exponential differs between processors in 1 to 6 of 128 values.
    frequencies = exponents.double().exp().float()
    angles = torch.outer(timesteps.float(), frequencies)
    embedding = torch.cat((angles.cos(), angles.sin()), dim=-1)
    return F.pad(embedding, (0, dim % 2))


class ClipEmbedding(nn.Module):
    """Projections of a clip's tokens to the transformer's width, computed once a clip."""

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
        """Return projected text [B, T, C], visual [B, V, C] and sync tokens [B, S, C].

        Where a clip's tokens are None, learned features take their place: one visual row [1, 1, C]
        and eight sync rows [1, 8, C], because the empty sync feature differs only by its position
        in the segment.

        Args:
            text_tokens: [B, T, text_dim].
            visual_tokens: [B, V, visual_dim], or None.
            sync_tokens: [B, S, sync_dim], S a multiple of 8, or None.

        Source: docs/internals/model-specification.md, sections 2.3, 2.8 and 15.
        """
        dtype = text_tokens.dtype
        if visual_tokens is None:
            visual_tokens = self.empty_visual[None].to(dtype)
        if sync_tokens is None:
            sync_tokens = self.empty_sync.expand(1, SYNC_POSITIONS, -1)
        segments = sync_tokens.unflatten(1, (-1, SYNC_POSITIONS))
        sync_tokens = (segments + self.sync_position).flatten(1, 2).to(dtype)
        return self.text(text_tokens), self.visual(visual_tokens), self.sync(sync_tokens)

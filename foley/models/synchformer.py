"""The visual branch of Synchformer: from frames at 25 fps to sync tokens."""

# n frames, G segments, F tubelets of a segment, P patches of a frame, N = 1 + F * P tokens,
# S = F * G sync tokens, C width, H heads, D head size

from collections.abc import Callable

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from foley.configs import SYNC_SEGMENT_FRAMES, SYNC_SEGMENT_STRIDE, SynchformerConfig
from foley.models.attention import attend

_EPS = 1e-6


def count_segments(num_frames: int) -> int:
    """Return the number of whole segments in frames at 25 fps.

    Args:
        num_frames: at least 16.

    Source: docs/internals/model-specification.md, section 6.
    """
    return (num_frames - SYNC_SEGMENT_FRAMES) // SYNC_SEGMENT_STRIDE + 1


def count_segment_frames(num_segments: int) -> int:
    """Return the number of frames at 25 fps that so many segments span; at least one segment."""
    return (num_segments - 1) * SYNC_SEGMENT_STRIDE + SYNC_SEGMENT_FRAMES


class DividedAttention(nn.Module):
    """Self-attention of patches within their group, and of the class token to all tokens.

    A group is the same place over time, or the same frame. Each patch attends to the class token
    and to its own group.

    Attributes:
        function: used between the two products where it is set: of the projections [G, N, 3 * C],
            H, F and `over_time`. A faster implementation can be put here.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.function: Callable[[Tensor, int, int, bool], Tensor] | None = None

    def forward(self, x: Tensor, num_tubelets: int, *, over_time: bool) -> Tensor:
        """Return [G, N, C].

        Args:
            x: [G, N, C], class token first.
            num_tubelets: F.
            over_time: True: groups are places over time; False: groups are frames.
        """
        segments = len(x)
        projected = self.qkv(x)
        if self.function is not None:
            return self.proj(self.function(projected, self.num_heads, num_tubelets, over_time))
        query, key, value = projected.unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        class_out = attend(query[:, :1], key, value)  # [G, 1, H, D]

        def group(tokens: Tensor) -> Tensor:
            patches = tokens[:, 1:].unflatten(1, (num_tubelets, -1))  # [G, F, P, H, D]
            if over_time:
                patches = patches.transpose(1, 2)
            return patches.flatten(0, 1)  # [G * groups, members, H, D]

        def group_with_class(tokens: Tensor) -> Tensor:
            members = group(tokens)
            first = tokens[:, :1].repeat_interleave(len(members) // segments, dim=0)
            return torch.cat((first, members), dim=1)

        patch_out = attend(group(query), group_with_class(key), group_with_class(value))
        patch_out = patch_out.unflatten(0, (segments, -1))  # [G, groups, members, H, D]
        if over_time:
            patch_out = patch_out.transpose(1, 2)
        out = torch.cat((class_out, patch_out.flatten(1, 2)), dim=1)
        return self.proj(out.flatten(-2))


class SynchformerBlock(nn.Module):
    """Attention over time, attention over space, then an MLP."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.time_norm = nn.LayerNorm(dim, eps=_EPS)
        self.time_attention = DividedAttention(dim, num_heads)
        self.space_norm = nn.LayerNorm(dim, eps=_EPS)
        self.space_attention = DividedAttention(dim, num_heads)
        self.mlp_norm = nn.LayerNorm(dim, eps=_EPS)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_dim), nn.GELU(), nn.Linear(mlp_dim, dim))

    def forward(self, x: Tensor, num_tubelets: int) -> Tensor:
        """Return [G, N, C] of `x` [G, N, C], class token first; `num_tubelets` is F."""
        x = x + self.time_attention(self.time_norm(x), num_tubelets, over_time=True)
        x = x + self.space_attention(self.space_norm(x), num_tubelets, over_time=False)
        return x + self.mlp(self.mlp_norm(x))


class FrameAggregation(nn.Module):
    """One pre-norm transformer layer that gathers a frame's patches in a class token.

    Attributes:
        function: used between the two products of the attention where it is set: of the projections
            [frames, 1 + P, 3 * C] and H. A faster implementation can be put here.
    """

    def __init__(self, dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.norm1 = nn.LayerNorm(dim, eps=_EPS)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.function: Callable[[Tensor, int], Tensor] | None = None
        self.norm2 = nn.LayerNorm(dim, eps=_EPS)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_dim), nn.GELU(), nn.Linear(mlp_dim, dim))

    def forward(self, patches: Tensor) -> Tensor:
        """Return the class token's result [frames, C] of patches [frames, P, C]."""
        first = self.cls_token.expand(len(patches), -1, -1)
        projected = self.qkv(self.norm1(torch.cat((first, patches), dim=1)))
        x = first + self.out(self._gather(projected))  # [frames, 1, C]
        return (x + self.mlp(self.norm2(x))).squeeze(1)

    def _gather(self, projected: Tensor) -> Tensor:
        """Return the class token's attention [frames, 1, C] to its frame."""
        if self.function is not None:
            return self.function(projected, self.num_heads)
        query, key, value = projected.unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        return attend(query[:, :1], key, value).flatten(-2)


class Synchformer(ModelMixin, ConfigMixin):  # type: ignore[misc]  # both define config_name
    """Divided space-time transformer over segments of 16 frames, 8 apart.

    Source: docs/internals/model-specification.md, section 6.
    """

    _supports_gradient_checkpointing = False
    _supports_group_offloading = True
    _no_split_modules = ["SynchformerBlock"]  # type: ignore[assignment]

    @register_to_config
    def __init__(
        self,
        *,
        hidden_dim: int,
        num_layers: int,
        num_heads: int,
        mlp_dim: int,
        image_size: int,
        patch_size: int,
        tubelet_frames: int,
        segment_frames: int,
    ) -> None:
        super().__init__()
        dim = hidden_dim
        self.patch_size = patch_size
        self.tubelet_frames = tubelet_frames
        self.segment_frames = segment_frames
        self.num_tubelets = segment_frames // tubelet_frames
        num_patches = (image_size // patch_size) ** 2
        self.patch_in = nn.Linear(3 * tubelet_frames * patch_size**2, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(torch.zeros(1, 1 + num_patches, dim))
        self.time_position = nn.Parameter(torch.zeros(1, self.num_tubelets, dim))
        self.blocks = nn.ModuleList(
            SynchformerBlock(dim, num_heads, mlp_dim) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim, eps=_EPS)
        self.aggregation = FrameAggregation(dim, num_heads, mlp_dim)

    def embed_patches(self, frames: Tensor) -> Tensor:
        """Return tokens [n / 2, P, C] of pairs of frames.

        Segments start at even frames, so overlapping segments share these tokens.

        Args:
            frames: [n, 3, height, width] in [-1, 1], n even.
        """
        size, pair = self.patch_size, self.tubelet_frames
        pairs = frames.unflatten(0, (-1, pair))  # [n / 2, 2, 3, H, W]
        grid = pairs.unflatten(-1, (-1, size)).unflatten(-3, (-1, size))  # [.., h, y, w, x]
        patches = grid.permute(0, 3, 5, 2, 1, 4, 6)  # [n / 2, h, w, 3, 2, y, x]
        return self.patch_in(patches.flatten(3).flatten(1, 2))

    def encode_segments(self, patches: Tensor) -> Tensor:
        """Return sync tokens [G, F, C] of embedded patches [G, F, P, C]."""
        x = patches + self.position[:, 1:] + self.time_position.unsqueeze(2)
        first = (self.cls_token + self.position[:, :1]).expand(len(x), -1, -1)
        x = torch.cat((first, x.flatten(1, 2)), dim=1)  # [G, N, C]
        for block in self.blocks:
            x = block(x, self.num_tubelets)
        patches = self.norm(x[:, 1:]).unflatten(1, (self.num_tubelets, -1))
        return self.aggregation(patches.flatten(0, 1)).unflatten(0, (len(x), -1))

    def forward(self, frames: Tensor, segments_at_once: int = 8) -> Tensor:
        """Return sync tokens [S, C] of a clip, 8 for each of its segments, in order.

        Args:
            frames: [n, 3, height, width] in [-1, 1], n at least 16. Frames after the last whole
                segment are dropped.
            segments_at_once: the most segments in memory together.
        """
        num_segments = (len(frames) - self.segment_frames) // SYNC_SEGMENT_STRIDE + 1
        tokens = []
        for start in range(0, num_segments, segments_at_once):
            count = min(segments_at_once, num_segments - start)
            first_frame = start * SYNC_SEGMENT_STRIDE
            num_frames = (count - 1) * SYNC_SEGMENT_STRIDE + self.segment_frames
            patches = self.embed_patches(frames[first_frame : first_frame + num_frames])
            stride = SYNC_SEGMENT_STRIDE // self.tubelet_frames
            windows = patches.unfold(0, self.num_tubelets, stride)  # [G, P, C, F]
            tokens.append(self.encode_segments(windows.permute(0, 3, 1, 2)).flatten(0, 1))
        return torch.cat(tokens)


def build_synchformer(config: SynchformerConfig) -> Synchformer:
    """Return a Synchformer of this architecture, with PyTorch's initial weights."""
    return Synchformer(**vars(config))

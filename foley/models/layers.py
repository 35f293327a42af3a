"""Layers that the transformer's blocks share: norms, convolutions along tokens, gated MLPs."""

# B batch, N tokens, C width, F MLP width, H heads, D head size

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foley.models.modulation import Modulation
from foley.models.packing import Borders

# Epsilons. Source: docs/internals/model-specification.md, section 2.2.
JOINT_EPS = 1e-6
# torch.finfo(float32).eps, which nn.RMSNorm uses when no epsilon is given.
AUDIO_RMS_EPS = 1.1920928955078125e-07
AUDIO_NORM_EPS = 1e-5


class RMSNorm(nn.Module):
    """Root-mean-square norm of the last dimension, computed in float32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` [..., dim], normed, in its own dtype."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class TokenConv(nn.Conv1d):
    """A convolution along tokens, zero-padded to the same length.

    `weight` keeps the checkpoint's layout [out, in, taps].
    """

    def __init__(self, in_dim: int, out_dim: int, kernel_size: int, *, bias: bool) -> None:
        super().__init__(in_dim, out_dim, kernel_size, padding=kernel_size // 2, bias=bias)

    def forward(self, tokens: Tensor, borders: Borders | None = None) -> Tensor:
        """Return the convolved tokens [B, N, out].

        Args:
            tokens: [B, N, in].
            borders: for a row (B is 1) that holds several clips, which must not see each other.
        """
        if borders is None:
            return self._convolve(tokens)
        if borders.equal_clips:  # such as the halves of guidance: a batch needs no gaps
            batch = tokens[0].unflatten(0, (borders.equal_clips, -1))
            return self._convolve(batch).flatten(0, 1)[None]
        spaced = F.pad(tokens, (0, 0, 0, 1))[:, borders.spaced]  # a zero token between the clips
        return self._convolve(spaced)[:, borders.kept]

    def _convolve(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens.transpose(1, 2)).transpose(1, 2)


class GatedMLP(nn.Module):
    """down(SiLU(gate(x)) * up(x)): of each token alone, or a convolution where kernel_size > 1.

    Source: docs/internals/model-specification.md, section 2.2, ConvMLP.
    """

    def __init__(
        self, dim: int, hidden_dim: int, out_dim: int, kernel_size: int, *, bias: bool
    ) -> None:
        super().__init__()

        def layer(inner: int, outer: int) -> nn.Module:
            if kernel_size == 1:
                return nn.Linear(inner, outer, bias=bias)
            return TokenConv(inner, outer, kernel_size, bias=bias)

        self.gate = layer(dim, hidden_dim)
        self.up = layer(dim, hidden_dim)
        self.down = layer(hidden_dim, out_dim)

    def forward(self, x: Tensor, *borders: Borders | None) -> Tensor:
        """Return [B, N, out_dim].

        Args:
            x: [B, N, dim].
            borders: of the clips on the row, at most one; only where kernel_size > 1.
        """
        return self.down(F.silu(self.gate(x, *borders)) * self.up(x, *borders), *borders)


def modulate(x: Tensor, modulation: Modulation, eps: float) -> Tensor:
    """Return `x`, layer-normed, scaled and shifted in float32, in the modulation's dtype.

    The modulation comes out of a linear layer, so its dtype is that of the next matrix product.

    Args:
        x: [B, N, C].
        modulation: [B or 1, N or 1, C].
        eps: of the layer norm.

    Source: docs/internals/model-specification.md, section 2.4.
    """
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=eps)
    shifted = torch.addcmul(modulation.shift, normed, 1 + modulation.scale)
    return shifted.to(modulation.shift.dtype)


def split_heads(x: Tensor, parts: int, num_heads: int) -> tuple[Tensor, ...]:
    """Return `parts` views [B, N, H, D] of a product [B, N, parts * H * D].

    Args:
        x: the parts side by side, each with its heads side by side.
        parts: 3 for query, key and value.
        num_heads: H.
    """
    return x.unflatten(-1, (parts, num_heads, -1)).unbind(-3)

"""The functions between the matrix products of a step, for packed tokens.

They are plain PyTorch, and so their own reference. On a GPU `foley.gpu.compilation` compiles each
function into one or two kernels, so that a tensor crosses the memory once between two products.

Functions that end in `_fp8` return their result quantised, for a product in eight bits.
"""

# N tokens, K clips, R sync rows, C width, F MLP width, H heads, D head size

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Tokens [N, C] in eight bits, and the scale [N, 1], float32, by which they are multiplied.
QuantisedTokens = tuple[Tensor, Tensor]


def modulate_tokens(x: Tensor, shift: Tensor, scale: Tensor, owner: Tensor, eps: float) -> Tensor:
    """Return tokens [N, C], layer-normed, scaled and shifted, in the dtype of `shift`.

    Args:
        x: [N, C].
        shift: [K, C].
        scale: [K, C].
        owner: int64 [N], the row of shift and scale for each token.
        eps: of the layer norm.

    Source: docs/internals/model-specification.md, section 2.4.
    """
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=eps)
    return (normed * (1 + scale[owner].float()) + shift[owner].float()).to(shift.dtype)


def add_branch(x: Tensor, branch: Tensor, gate: Tensor, owner: Tensor) -> Tensor:
    """Return the residual stream [N, C] with a gated branch added, in the stream's dtype.

    Args:
        x: [N, C].
        branch: [N, C].
        gate: [K, C].
        owner: int64 [N], the row of the gate for each token.
    """
    return (x + gate[owner].float() * branch.float()).to(x.dtype)


def add_and_modulate(
    x: Tensor,
    branch: Tensor,
    gate: Tensor,
    gate_owner: Tensor,
    shift: Tensor,
    scale: Tensor,
    owner: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return the stream after `add_branch`, and `modulate_tokens` of it.

    Args:
        x: [N, C], see `add_branch`.
        branch: [N, C].
        gate: [K, C].
        gate_owner: int64 [N], the row of the gate for each token.
        shift: [K', C], see `modulate_tokens`; its rows may be others than those of the gate.
        scale: [K', C].
        owner: int64 [N], the row of shift and scale for each token.
        eps: of the layer norm.
    """
    x = add_branch(x, branch, gate, gate_owner)
    return x, modulate_tokens(x, shift, scale, owner, eps)


def sum_taps(taps: Tensor, bias: Tensor | None, first: Tensor, last: Tensor) -> Tensor:
    """Return a convolution's result [N, C], float32, from the product of each tap with each token.

    Tap 0 reads the token before, tap 2 the token after. None crosses the border of a clip.

    Args:
        taps: [N, 3 * C], the products side by side.
        bias: [C], or None.
        first: bool [N, 1], whether a token is its clip's first.
        last: bool [N, 1], whether a token is its clip's last.
    """
    before, here, after = taps.unflatten(1, (3, -1)).float().unbind(1)
    before = _shift(before, 1).masked_fill(first, 0)
    after = _shift(after, -1).masked_fill(last, 0)
    total = before + here + after
    return total if bias is None else total + bias.float()


def join_neighbours(x: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Return each token between its two neighbours, [N, 3 * C].

    Args:
        x: [N, C].
        first: bool [N, 1], whether a token is its clip's first; zeros stand before it.
        last: bool [N, 1], whether a token is its clip's last; zeros stand after it.
    """
    before = _shift(x, 1).masked_fill(first, 0)
    after = _shift(x, -1).masked_fill(last, 0)
    return torch.cat((before, x, after), dim=1)


def _shift(x: Tensor, places: int) -> Tensor:
    """Return the rows moved by one place, forward or back; a row of zeros fills the free place.

    They are padded before they are cut: a tensor of N - 1 rows would tie what is compiled for two
    tokens to two tokens.
    """
    return F.pad(x, (0, 0, 1, 0))[:-1] if places > 0 else F.pad(x, (0, 0, 0, 1))[1:]


def add_taps_and_modulate(
    x: Tensor,
    taps: Tensor,
    bias: Tensor | None,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    owner: Tensor,
    first: Tensor,
    last: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return `add_and_modulate` of a branch that is `sum_taps` of a convolution's products.

    Args:
        x: [N, C].
        taps: [N, 3 * C], see `sum_taps`.
        bias: [C], or None.
        gate: [K, C].
        shift: [K', C].
        scale: [K', C].
        owner: int64 [N], the row of gate, shift and scale for each token.
        first: bool [N, 1], see `sum_taps`.
        last: bool [N, 1].
        eps: of the layer norm.
    """
    x = add_branch(x, sum_taps(taps, bias, first, last), gate, owner)
    return x, modulate_tokens(x, shift, scale, owner, eps)


def add_taps_and_norm(
    x: Tensor, taps: Tensor, gate: Tensor, owner: Tensor, first: Tensor, last: Tensor, eps: float
) -> Tensor:
    """Return the stream [N, C] after its last branch, layer-normed, in the dtype of `gate`.

    Args:
        x: [N, C].
        taps: [N, 3 * C], see `sum_taps`.
        gate: [K, C].
        owner: int64 [N], the row of the gate for each token.
        first: bool [N, 1], see `sum_taps`.
        last: bool [N, 1].
        eps: of the layer norm.
    """
    x = add_branch(x, sum_taps(taps, None, first, last), gate, owner)
    return F.layer_norm(x.float(), x.shape[-1:], eps=eps).to(gate.dtype)


def norm_and_rotate(
    x: Tensor,
    index: Tensor | None,
    weight: Tensor,
    stream: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float,
) -> Tensor:
    """Return queries or keys [N, H, D]: gathered, RMS-normed by head, turned by their positions.

    Args:
        x: [M, H * D].
        index: int64 [N], the token of `x` at each place; None where N is M and it is its own.
        weight: of the norm [D], or of two streams [2, D].
        stream: int64 [N], the row of a weight of two streams; None for a weight [D].
        cos: float32 [N, D / 2].
        sin: float32 [N, D / 2].
        eps: of the norm.

    Source: docs/internals/model-specification.md, section 2.2.
    """
    heads = (x if index is None else x[index]).unflatten(1, (-1, weight.shape[-1])).float()
    scale = weight.float() if stream is None else weight[stream].float()[:, None]
    normed = heads * torch.rsqrt(heads.square().mean(-1, keepdim=True) + eps) * scale
    even, odd = normed.unflatten(-1, (-1, 2)).unbind(-1)  # [N, H, D / 2] each
    cos, sin = cos[:, None], sin[:, None]
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return turned.flatten(-2).to(x.dtype)


def swiglu(both: Tensor) -> Tensor:
    """Return SiLU(gate) * up [N, F] of the products [gate | up] [N, 2 * F]."""
    gate, up = both.float().chunk(2, dim=1)
    return (F.silu(gate) * up).to(both.dtype)


def gelu(x: Tensor) -> Tensor:
    """Return the tanh approximation of GELU, computed in float32, in the dtype of `x`."""
    return F.gelu(x.float(), approximate="tanh").to(x.dtype)


def condition_rows(rows: Tensor, time: Tensor, owner: Tensor) -> Tensor:
    """Return SiLU(sync + time) [R, C] of the distinct sync rows.

    Args:
        rows: [R, C].
        time: [K, C].
        owner: int64 [R], the row of `time` for each sync row.

    Source: docs/internals/model-specification.md, section 2.5.
    """
    return F.silu(rows.float() + time[owner].float()).to(rows.dtype)


def quantise(x: Tensor) -> QuantisedTokens:
    """Return tokens [N, C] in eight bits, each by a scale of its own."""
    largest = torch.finfo(torch.float8_e4m3fn).max
    x = x.float()
    scale = x.abs().amax(1, keepdim=True).clamp_min(1e-12) / largest
    return (x / scale).to(torch.float8_e4m3fn), scale


def modulate_tokens_fp8(*arguments: Any) -> QuantisedTokens:
    """Return `modulate_tokens`, quantised."""
    return quantise(modulate_tokens(*arguments))


def add_and_modulate_fp8(*arguments: Any) -> tuple[Tensor, QuantisedTokens]:
    """Return `add_and_modulate`, with the modulated tokens quantised."""
    x, modulated = add_and_modulate(*arguments)
    return x, quantise(modulated)


def add_taps_and_modulate_fp8(*arguments: Any) -> tuple[Tensor, QuantisedTokens]:
    """Return `add_taps_and_modulate`, with the modulated tokens quantised."""
    x, modulated = add_taps_and_modulate(*arguments)
    return x, quantise(modulated)


def join_neighbours_fp8(x: Tensor, first: Tensor, last: Tensor) -> QuantisedTokens:
    """Return `join_neighbours`, quantised."""
    return quantise(join_neighbours(x, first, last))


def swiglu_fp8(both: Tensor) -> QuantisedTokens:
    """Return `swiglu`, quantised."""
    return quantise(swiglu(both))


def gelu_fp8(x: Tensor) -> QuantisedTokens:
    """Return `gelu`, quantised."""
    return quantise(gelu(x))


def condition_rows_fp8(rows: Tensor, time: Tensor, owner: Tensor) -> QuantisedTokens:
    """Return `condition_rows`, quantised."""
    return quantise(condition_rows(rows, time, owner))

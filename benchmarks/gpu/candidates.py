"""Kernels that may be faster than what the product uses, each beside its plain twin: for timing.

Nothing imports this but `bench_gpu`. What wins there by enough moves to `foley.models`.
"""

# N tokens, C width, F MLP width

import torch
import triton
import triton.language as tl
from torch import Tensor

from foley.models import pointwise


def gated_convolutions_plain(x: Tensor, weight: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """SiLU(gate(x)) * up(x) [N, F], as the product computes it: neighbours, one product, gating.

    Args:
        x: [N, C].
        weight: [2 * F, 3 * C], the gate's rows before those of up.
        first: bool [N, 1], whether a token is its clip's first.
        last: likewise.
    """
    return pointwise.gated(pointwise.neighbours(x, first, last) @ weight.t())


def gated_convolutions(
    x: Tensor,
    weight: Tensor,
    first: Tensor,
    last: Tensor,
    *,
    block: tuple[int, int, int] = (128, 128, 64),
    num_warps: int = 8,
    num_stages: int = 3,
) -> Tensor:
    """The same in one kernel: shifted rows are read where they lie, and only the result is written.

    C must be a multiple of the last block size, F of the middle one.
    """
    num_tokens, dim = x.shape
    hidden = weight.shape[0] // 2
    out = x.new_empty(num_tokens, hidden)
    block_n, block_f, block_c = block
    grid = (triton.cdiv(num_tokens, block_n) * (hidden // block_f),)
    _gated_convolutions[grid](
        x,
        weight,
        first.view(torch.uint8),
        last.view(torch.uint8),
        out,
        num_tokens,
        dim,
        hidden,
        BLOCK_N=block_n,
        BLOCK_F=block_f,
        BLOCK_C=block_c,
        num_warps=num_warps,
        num_stages=num_stages,
    )
    return out


@triton.jit
def _gated_convolutions(
    x,
    weight,
    first,
    last,
    out,
    num_tokens,
    dim: tl.constexpr,
    hidden: tl.constexpr,
    BLOCK_N: tl.constexpr,  # noqa: N803
    BLOCK_F: tl.constexpr,  # noqa: N803
    BLOCK_C: tl.constexpr,  # noqa: N803
):
    # Neighbouring programs share the rows of the weight, which is the larger operand.
    blocks_n = tl.cdiv(num_tokens, BLOCK_N)
    program = tl.program_id(0)
    rows = (program % blocks_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = (program // blocks_n) * BLOCK_F + tl.arange(0, BLOCK_F)
    inner = tl.arange(0, BLOCK_C)
    inside = rows < num_tokens
    has_before = inside & (tl.load(first + rows, mask=inside, other=1) == 0)
    has_after = inside & (tl.load(last + rows, mask=inside, other=1) == 0)
    gate = tl.zeros((BLOCK_N, BLOCK_F), dtype=tl.float32)
    up = tl.zeros((BLOCK_N, BLOCK_F), dtype=tl.float32)
    gate_rows = weight + columns[None, :] * (3 * dim) + inner[:, None]
    up_rows = gate_rows + hidden * 3 * dim
    for start in range(0, 3 * dim, BLOCK_C):
        tap = start // dim
        there = inside & ((tap != 0) | has_before) & ((tap != 2) | has_after)
        tokens = x + (rows + tap - 1)[:, None] * dim + (start - tap * dim + inner)[None, :]
        a = tl.load(tokens, mask=there[:, None], other=0.0)
        gate = tl.dot(a, tl.load(gate_rows + start), gate)
        up = tl.dot(a, tl.load(up_rows + start), up)
    made = gate * tl.sigmoid(gate) * up
    places = out + rows[:, None] * hidden + columns[None, :]
    tl.store(places, made.to(out.dtype.element_ty), mask=inside[:, None])


def norm_and_rotate(
    x: Tensor,
    index: Tensor | None,
    weight: Tensor,
    stream: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    *,
    rows: int = 1,
) -> Tensor:
    """`pointwise.norm_and_rotate` in one kernel; D must be a power of two."""
    dim = weight.shape[-1]
    num_tokens = len(cos)
    heads = x.shape[1] // dim
    out = x.new_empty(num_tokens, heads, dim)
    vectors = 16 * rows
    _norm_and_rotate[(triton.cdiv(num_tokens * heads, vectors),)](
        x,
        index,
        weight,
        stream,
        cos,
        sin,
        out,
        num_tokens * heads,
        x.stride(0),
        eps,
        HEADS=heads,
        DIM=dim,
        VECTORS=vectors,
        num_warps=4,
    )
    return out


@triton.jit
def _norm_and_rotate(
    x,
    index,
    weight,
    stream,
    cos,
    sin,
    out,
    num_vectors,
    stride,
    eps,
    HEADS: tl.constexpr,  # noqa: N803
    DIM: tl.constexpr,  # noqa: N803
    VECTORS: tl.constexpr,  # noqa: N803
):
    vector = tl.program_id(0) * VECTORS + tl.arange(0, VECTORS)
    inside = vector < num_vectors
    token, head = vector // HEADS, vector % HEADS
    lane, half = tl.arange(0, DIM), tl.arange(0, DIM // 2)
    source = token.to(tl.int64)
    if index is not None:
        source = tl.load(index + token, mask=inside, other=0)
    places = x + source[:, None] * stride + (head * DIM)[:, None] + lane[None, :]
    values = tl.load(places, mask=inside[:, None], other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, 1) / DIM + eps)
    if stream is None:
        factor = tl.load(weight + lane).to(tl.float32)[None, :]
    else:
        which = tl.load(stream + token, mask=inside, other=0)
        factor = tl.load(weight + which[:, None] * DIM + lane[None, :]).to(tl.float32)
    normed = values * scale[:, None] * factor
    even, odd = tl.split(tl.reshape(normed, (VECTORS, DIM // 2, 2)))
    angle = token[:, None] * (DIM // 2) + half[None, :]
    c = tl.load(cos + angle, mask=inside[:, None], other=0.0)
    s = tl.load(sin + angle, mask=inside[:, None], other=0.0)
    turned = tl.join(even * c - odd * s, odd * c + even * s)
    made = tl.reshape(turned, (VECTORS, DIM)).to(out.dtype.element_ty)
    tl.store(out + vector[:, None] * DIM + lane[None, :], made, mask=inside[:, None])

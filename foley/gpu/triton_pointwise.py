"""Triton kernels for functions where the compiler's kernels for plain PyTorch are slow.

The functions of `foley.gpu.pointwise` are the definition and the tests' reference. Triton comes
only with PyTorch's builds for GPUs, so an import of this module may fail.
"""

# N tokens, C width, F MLP width, H heads, D head size

import torch
import triton
import triton.language as tl
from torch import Tensor

_VECTORS = 16  # heads that one program norms and turns; more are not faster


def supports_head_size(dim: int) -> bool:
    """Return whether kernels can work on heads of this size: a power of two of at least 16."""
    return dim >= 16 and dim & (dim - 1) == 0


def norm_and_rotate_triton(
    x: Tensor,
    index: Tensor | None,
    weight: Tensor,
    stream: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float,
) -> Tensor:
    """Return `foley.gpu.pointwise.norm_and_rotate`, reading and writing each token once.

    The compiler's kernels read the pairs that turn together with a stride of two, in two passes, at
    a quarter of this kernel's rate or less.

    Args:
        x: [M, H * D], on a GPU; its columns are adjacent in memory.
        index: see the plain function.
        weight: [D] or [2, D], see `supports_head_size`.
        stream: see the plain function.
        cos: float32 [N, D / 2], contiguous.
        sin: float32 [N, D / 2], contiguous.
        eps: of the norm.
    """
    dim, num_tokens = weight.shape[-1], len(cos)
    heads = x.shape[1] // dim
    out = x.new_empty(num_tokens, heads, dim)
    vectors = num_tokens * heads
    _norm_and_rotate[(triton.cdiv(vectors, _VECTORS),)](
        x,
        index,
        weight,
        stream,
        cos,
        sin,
        out,
        vectors,
        x.stride(0),
        eps,
        HEADS=heads,
        DIM=dim,
        VECTORS=_VECTORS,
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
    result = tl.reshape(turned, (VECTORS, DIM)).to(out.dtype.element_ty)
    tl.store(out + vector.to(tl.int64)[:, None] * DIM + lane[None, :], result, mask=inside[:, None])


def join_neighbours_triton(x: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Return `foley.gpu.pointwise.join_neighbours`, three times as fast as the compiler's kernel.

    Args:
        x: [N, C], on a GPU, contiguous.
        first: bool [N, 1], contiguous.
        last: bool [N, 1], contiguous.
    """
    num_tokens, dim = x.shape
    out = x.new_empty(num_tokens, 3 * dim)
    flags = first.view(torch.uint8), last.view(torch.uint8)
    _join_neighbours[(num_tokens,)](x, *flags, out, None, DIM=dim, **_choose_launch(dim))
    return out


def join_neighbours_fp8_triton(x: Tensor, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Return `foley.gpu.pointwise.join_neighbours_fp8`, reading each row once.

    Args:
        x: [N, C], on a GPU, contiguous.
        first: bool [N, 1], contiguous.
        last: bool [N, 1], contiguous.
    """
    num_tokens, dim = x.shape
    out = x.new_empty(num_tokens, 3 * dim, dtype=torch.float8_e4m3fn)
    scale = x.new_empty(num_tokens, 1, dtype=torch.float32)
    flags = first.view(torch.uint8), last.view(torch.uint8)
    _join_neighbours[(num_tokens,)](x, *flags, out, scale, DIM=dim, **_choose_launch(dim))
    return out, scale


def swiglu_fp8_triton(both: Tensor) -> tuple[Tensor, Tensor]:
    """Return `foley.gpu.pointwise.swiglu_fp8`, reading each row once.

    Args:
        both: [N, 2 * F], on a GPU, contiguous.
    """
    num_tokens, dim = both.shape[0], both.shape[1] // 2
    out = both.new_empty(num_tokens, dim, dtype=torch.float8_e4m3fn)
    scale = both.new_empty(num_tokens, 1, dtype=torch.float32)
    _swiglu_fp8[(num_tokens,)](both, out, scale, DIM=dim, **_choose_launch(dim))
    return out, scale


def _choose_launch(dim: int) -> dict[str, int]:
    """Return the launch options of a kernel whose programs have a whole row [dim] each."""
    block = triton.next_power_of_2(dim)
    return {"BLOCK": block, "num_warps": max(1, min(8, block // 512))}


@triton.jit
def _join_neighbours(
    x,
    first,
    last,
    out,
    scales,
    DIM: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = column < DIM
    has_before = tl.load(first + row) == 0
    has_after = tl.load(last + row) == 0
    place = x + row * DIM + column
    before = tl.load(place - DIM, mask=inside & has_before, other=0.0)
    here = tl.load(place, mask=inside, other=0.0)
    after = tl.load(place + DIM, mask=inside & has_after, other=0.0)
    if scales is not None:
        before, here, after = before.to(tl.float32), here.to(tl.float32), after.to(tl.float32)
        largest = tl.maximum(tl.maximum(tl.abs(before), tl.abs(here)), tl.abs(after))
        scale = tl.maximum(tl.max(largest, 0), 1e-12) / 448
        tl.store(scales + row, scale)
        before, here, after = before / scale, here / scale, after / scale
    place = out + row * (3 * DIM) + column
    kind = out.dtype.element_ty
    tl.store(place, before.to(kind), mask=inside)
    tl.store(place + DIM, here.to(kind), mask=inside)
    tl.store(place + 2 * DIM, after.to(kind), mask=inside)


@triton.jit
def _swiglu_fp8(
    both,
    out,
    scales,
    DIM: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = column < DIM
    place = both + row * (2 * DIM) + column
    gate = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(place + DIM, mask=inside, other=0.0).to(tl.float32)
    # Rounded in between, as in the plain function.
    result = (gate * tl.sigmoid(gate) * up).to(both.dtype.element_ty).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(result), 0), 1e-12) / 448
    tl.store(scales + row, scale)
    tl.store(out + row * DIM + column, (result / scale).to(out.dtype.element_ty), mask=inside)

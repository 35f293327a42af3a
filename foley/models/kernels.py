"""Triton kernels, for where what the compiler makes of plain PyTorch falls short.

Each has its plain twin, which is the definition and the tests' oracle. Triton comes with PyTorch's
builds for GPUs alone: whoever imports this module must do without it elsewhere.
"""

# N tokens, H heads, D head size; G segments, F tubelets of a segment, P patches of a frame

import torch
import triton
import triton.language as tl
from torch import Tensor

_VECTORS = 16  # heads that a program norms and turns; more are no faster
_PATCHES = 8  # whose tubelets a program lets attend: 64 rows with 8 tubelets


def serves(dim: int) -> bool:
    """Whether heads of this size suit the kernels: a power of two, and wide enough for products."""
    return dim >= 16 and dim & (dim - 1) == 0


def norm_and_rotate(
    x: Tensor,
    index: Tensor | None,
    weight: Tensor,
    stream: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float,
) -> Tensor:
    """`foley.models.pointwise.norm_and_rotate`, reading and writing each token once.

    The compiler's kernels read the pairs that turn together with a stride of two, in two passes, at
    a quarter of this one's rate or less.
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
    made = tl.reshape(turned, (VECTORS, DIM)).to(out.dtype.element_ty)
    tl.store(out + vector.to(tl.int64)[:, None] * DIM + lane[None, :], made, mask=inside[:, None])


@torch.library.custom_op("foley::attend_over_time", mutates_args=())
def attend_over_time(qkv: Tensor, num_heads: int, num_tubelets: int) -> Tensor:
    """Each patch attends to the same place at all times and to the class token.

    What `foley.models.synchformer.DividedAttention` computes over time, for patches alone. General
    kernels are laid out for long sequences: most of a tile's rows would be empty.

    Args:
        qkv: [G, 1 + F * P, 3 * H * D], the class token first; contiguous.
        num_heads: H.
        num_tubelets: F, a power of two.

    Returns:
        [G, F * P, H * D].
    """
    segments, num_tokens, width = qkv.shape
    dim = width // 3 // num_heads
    num_patches = (num_tokens - 1) // num_tubelets
    out = qkv.new_empty(segments, num_tokens - 1, width // 3)
    _attend_over_time[(triton.cdiv(num_patches, _PATCHES), num_heads, segments)](
        qkv.contiguous(),
        out,
        num_patches,
        dim**-0.5,
        HEADS=num_heads,
        DIM=dim,
        TUBELETS=num_tubelets,
        PATCHES=_PATCHES,
        num_warps=4,
    )
    return out


@attend_over_time.register_fake
def _(qkv: Tensor, num_heads: int, num_tubelets: int) -> Tensor:
    return qkv.new_empty(qkv.shape[0], qkv.shape[1] - 1, qkv.shape[2] // 3)


@triton.jit
def _attend_over_time(
    qkv,
    out,
    num_patches,
    scale,
    HEADS: tl.constexpr,  # noqa: N803
    DIM: tl.constexpr,  # noqa: N803
    TUBELETS: tl.constexpr,  # noqa: N803
    PATCHES: tl.constexpr,  # noqa: N803
):
    # Rows are tubelet after tubelet, so that neighbours lie side by side in memory.
    row, lane = tl.arange(0, TUBELETS * PATCHES), tl.arange(0, DIM)
    within = row % PATCHES
    patch = tl.program_id(0) * PATCHES + within
    inside = (patch < num_patches)[:, None]
    token = row // PATCHES * num_patches + patch
    width = HEADS * DIM
    segment = tl.program_id(2).to(tl.int64) * (1 + TUBELETS * num_patches)
    head = tl.program_id(1) * DIM + lane
    places = qkv + (segment + 1 + token)[:, None] * (3 * width) + head[None, :]
    query = tl.load(places, mask=inside, other=0.0)
    key = tl.load(places + width, mask=inside, other=0.0)
    value = tl.load(places + 2 * width, mask=inside, other=0.0)
    first = qkv + segment * (3 * width) + head
    class_key = tl.load(first + width).to(tl.float32)
    class_value = tl.load(first + 2 * width).to(tl.float32)

    scores = tl.dot(query, tl.trans(key)) * scale
    scores = tl.where(within[:, None] == within[None, :], scores, float("-inf"))
    class_score = tl.sum(query.to(tl.float32) * class_key[None, :], 1) * scale
    highest = tl.maximum(tl.max(scores, 1), class_score)
    weight = tl.exp(scores - highest[:, None])
    class_weight = tl.exp(class_score - highest)
    total = tl.sum(weight, 1) + class_weight
    made = tl.dot(weight.to(value.dtype), value) + class_weight[:, None] * class_value[None, :]
    made = made / total[:, None]
    places = out + (tl.program_id(2).to(tl.int64) * TUBELETS * num_patches + token)[:, None] * width
    tl.store(places + head[None, :], made.to(out.dtype.element_ty), mask=inside)

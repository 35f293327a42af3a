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
_QUERIES, _QUERY_WARPS = 128, 8  # patches that a program lets attend to their frame
_MOST_PATCHES = 256  # of a frame, whose scores a program holds at once
_CLASS_KEYS = 128  # that the class token sees at a time


def serves(dim: int) -> bool:
    """Whether heads of this size suit the kernels: a power of two, and wide enough for products."""
    return dim >= 16 and dim & (dim - 1) == 0


def serves_divided(dim: int, num_tubelets: int, num_patches: int) -> bool:
    """Whether `attend_divided` suits heads of this size, and so many patches of so many frames."""
    tiles = num_tubelets & (num_tubelets - 1) == 0 and num_tubelets * _PATCHES >= 16
    return serves(dim) and tiles and num_patches <= _MOST_PATCHES


def norm_and_rotate(
    x: Tensor,
    index: Tensor | None,
    weight: Tensor,
    stream: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float,
) -> Tensor:
    """`foley.gpu.pointwise.norm_and_rotate`, reading and writing each token once.

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


def neighbours(x: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """`foley.gpu.pointwise.neighbours`, which the compiler's kernel does at a third of the rate.

    x is [N, C], contiguous.
    """
    num_tokens, dim = x.shape
    out = x.new_empty(num_tokens, 3 * dim)
    _beside[(num_tokens,)](x, *_as_bytes(first, last), out, None, DIM=dim, **_whole_rows(dim))
    return out


def neighbours_8(x: Tensor, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """`foley.gpu.pointwise.neighbours_8`, reading each row once for its scale and its values."""
    num_tokens, dim = x.shape
    out = x.new_empty(num_tokens, 3 * dim, dtype=torch.float8_e4m3fn)
    scale = x.new_empty(num_tokens, 1, dtype=torch.float32)
    _beside[(num_tokens,)](x, *_as_bytes(first, last), out, scale, DIM=dim, **_whole_rows(dim))
    return out, scale


def gated_8(both: Tensor) -> tuple[Tensor, Tensor]:
    """`foley.gpu.pointwise.gated_8`, likewise; `both` is [N, 2 * F], contiguous."""
    num_tokens, dim = both.shape[0], both.shape[1] // 2
    out = both.new_empty(num_tokens, dim, dtype=torch.float8_e4m3fn)
    scale = both.new_empty(num_tokens, 1, dtype=torch.float32)
    _gated_8[(num_tokens,)](both, out, scale, DIM=dim, **_whole_rows(dim))
    return out, scale


def _as_bytes(*flags: Tensor) -> list[Tensor]:
    return [flag.view(torch.uint8) for flag in flags]


def _whole_rows(dim: int) -> dict[str, int]:
    block = triton.next_power_of_2(dim)
    return {"BLOCK": block, "num_warps": max(1, min(8, block // 512))}


@triton.jit
def _beside(
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
def _gated_8(
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
    # Rounded between, as the plain function does.
    made = (gate * tl.sigmoid(gate) * up).to(both.dtype.element_ty).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(made), 0), 1e-12) / 448
    tl.store(scales + row, scale)
    tl.store(out + row * DIM + column, (made / scale).to(out.dtype.element_ty), mask=inside)


@torch.library.custom_op("foley::attend_divided", mutates_args=())
def attend_divided(qkv: Tensor, num_heads: int, num_tubelets: int, over_time: bool) -> Tensor:
    """What `foley.models.synchformer.DividedAttention` computes between its two products.

    General kernels are laid out for long sequences of their own: over time most of a tile's rows
    would be empty, over space each frame needs a copy with the class token before it, and both
    need their results put together again.

    Args:
        qkv: [G, 1 + F * P, 3 * H * D], the class token first; contiguous.
        num_heads: H.
        num_tubelets: F, a power of two.
        over_time: each patch attends to its place at all times, not to its frame; both to the
            class token, which attends to everything.

    Returns:
        [G, 1 + F * P, H * D].
    """
    segments, num_tokens, width = qkv.shape
    dim = width // 3 // num_heads
    num_patches = (num_tokens - 1) // num_tubelets
    qkv, scale = qkv.contiguous(), dim**-0.5
    out = qkv.new_empty(segments, num_tokens, width // 3)
    _let_first_attend(qkv, num_heads, out)
    if over_time:
        _attend_over_time[(triton.cdiv(num_patches, _PATCHES), num_heads, segments)](
            qkv,
            out,
            num_patches,
            scale,
            HEADS=num_heads,
            DIM=dim,
            TUBELETS=num_tubelets,
            PATCHES=_PATCHES,
            num_warps=4,
        )
        return out
    tiles = triton.cdiv(num_patches, _QUERIES)
    _attend_over_space[(tiles, num_heads, segments * num_tubelets)](
        qkv,
        out,
        num_patches,
        scale,
        HEADS=num_heads,
        DIM=dim,
        TUBELETS=num_tubelets,
        QUERIES=_QUERIES,
        KEYS=max(16, triton.next_power_of_2(num_patches)),
        num_warps=_QUERY_WARPS,
    )
    return out


@attend_divided.register_fake
def _(qkv: Tensor, num_heads: int, num_tubelets: int, over_time: bool) -> Tensor:
    return qkv.new_empty(qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3)


@torch.library.custom_op("foley::attend_first", mutates_args=())
def attend_first(qkv: Tensor, num_heads: int) -> Tensor:
    """What the first token of each row gathers from all of the row, itself too.

    The library's kernel for a single query (cuDNN's) now and then gives another last bit for the
    same input.

    Args:
        qkv: [B, N, 3 * H * D].
        num_heads: H.

    Returns:
        [B, 1, H * D].
    """
    out = qkv.new_empty(len(qkv), 1, qkv.shape[2] // 3)
    _let_first_attend(qkv.contiguous(), num_heads, out)
    return out


@attend_first.register_fake
def _(qkv: Tensor, num_heads: int) -> Tensor:
    return qkv.new_empty(len(qkv), 1, qkv.shape[2] // 3)


def _let_first_attend(qkv: Tensor, num_heads: int, out: Tensor) -> None:
    """Into the first token of each row of `out`."""
    rows, num_tokens, width = qkv.shape
    dim = width // 3 // num_heads
    _attend_everywhere[(num_heads, rows)](
        qkv,
        out,
        dim**-0.5,
        HEADS=num_heads,
        DIM=dim,
        TOKENS=num_tokens,
        OUT_TOKENS=out.shape[1],
        KEYS=_CLASS_KEYS,
        num_warps=4,
    )


@triton.jit
def _attend_everywhere(
    qkv,
    out,
    scale,
    HEADS: tl.constexpr,  # noqa: N803
    DIM: tl.constexpr,  # noqa: N803
    TOKENS: tl.constexpr,  # noqa: N803
    OUT_TOKENS: tl.constexpr,  # noqa: N803
    KEYS: tl.constexpr,  # noqa: N803
):
    # One query, the class token's, so no products of matrices.
    row, lane = tl.arange(0, KEYS), tl.arange(0, DIM)
    width = HEADS * DIM
    which = tl.program_id(1).to(tl.int64)
    head = tl.program_id(0) * DIM + lane
    first = qkv + which * (TOKENS * 3 * width) + head
    query = tl.load(first).to(tl.float32) * scale
    highest = tl.full((1,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((1,), dtype=tl.float32)
    made = tl.zeros((DIM,), dtype=tl.float32)
    for start in range(0, TOKENS, KEYS):
        inside = start + row < TOKENS
        places = first[None, :] + (start + row)[:, None] * (3 * width)
        key = tl.load(places + width, mask=inside[:, None], other=0.0).to(tl.float32)
        value = tl.load(places + 2 * width, mask=inside[:, None], other=0.0).to(tl.float32)
        scores = tl.where(inside, tl.sum(key * query[None, :], 1), float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 0))
        before = tl.exp(highest - higher)
        weight = tl.exp(scores - higher)
        total = total * before + tl.sum(weight, 0)
        made = made * before + tl.sum(weight[:, None] * value, 0)
        highest = higher
    made = made / total
    tl.store(out + which * (OUT_TOKENS * width) + head, made.to(out.dtype.element_ty))


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
    token = 1 + row // PATCHES * num_patches + patch
    width = HEADS * DIM
    segment = tl.program_id(2).to(tl.int64) * (1 + TUBELETS * num_patches)
    head = tl.program_id(1) * DIM + lane
    places = qkv + (segment + token)[:, None] * (3 * width) + head[None, :]
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
    places = out + (segment + token)[:, None] * width + head[None, :]
    tl.store(places, made.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _attend_over_space(
    qkv,
    out,
    num_patches,
    scale,
    HEADS: tl.constexpr,  # noqa: N803
    DIM: tl.constexpr,  # noqa: N803
    TUBELETS: tl.constexpr,  # noqa: N803
    QUERIES: tl.constexpr,  # noqa: N803
    KEYS: tl.constexpr,  # noqa: N803
):
    # A frame's patches are few: all its keys at once.
    row, column, lane = tl.arange(0, QUERIES), tl.arange(0, KEYS), tl.arange(0, DIM)
    width = HEADS * DIM
    frame = tl.program_id(2)
    segment = (frame // TUBELETS).to(tl.int64) * (1 + TUBELETS * num_patches)
    begin = segment + 1 + frame % TUBELETS * num_patches
    head = tl.program_id(1) * DIM + lane
    patch = tl.program_id(0) * QUERIES + row
    inside, there = (patch < num_patches)[:, None], column < num_patches
    places = qkv + (begin + column)[:, None] * (3 * width) + head[None, :]
    query = tl.load(
        qkv + (begin + patch)[:, None] * (3 * width) + head[None, :], mask=inside, other=0.0
    )
    key = tl.load(places + width, mask=there[:, None], other=0.0)
    value = tl.load(places + 2 * width, mask=there[:, None], other=0.0)
    first = qkv + segment * (3 * width) + head
    class_key = tl.load(first + width).to(tl.float32)
    class_value = tl.load(first + 2 * width).to(tl.float32)

    scores = tl.dot(query, tl.trans(key)) * scale
    scores = tl.where(there[None, :], scores, float("-inf"))
    class_score = tl.sum(query.to(tl.float32) * class_key[None, :], 1) * scale
    highest = tl.maximum(tl.max(scores, 1), class_score)
    weight = tl.exp(scores - highest[:, None])
    class_weight = tl.exp(class_score - highest)
    total = tl.sum(weight, 1) + class_weight
    made = tl.dot(weight.to(value.dtype), value) + class_weight[:, None] * class_value[None, :]
    made = made / total[:, None]
    places = out + (begin + patch)[:, None] * width + head[None, :]
    tl.store(places, made.to(out.dtype.element_ty), mask=inside)

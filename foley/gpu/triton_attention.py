"""Triton kernels for Synchformer's attentions.

General attention kernels are laid out for long sequences. Here, over time, most rows of a tile
would be empty; over space, each frame would need a copy with the class token before it; and both
results would have to be put together again.

The modules in `foley.models.synchformer` are the definition and the tests' reference. Triton comes
only with PyTorch's builds for GPUs, so an import of this module may fail.
"""

# B rows of N tokens; G segments, F tubelets of a segment, P patches of a frame; H heads,
# D head size

import torch
import triton
import triton.language as tl
from torch import Tensor

from foley.gpu.triton_pointwise import supports_head_size

_PATCHES = 8  # patches whose tubelets one program lets attend: 64 rows with 8 tubelets
_QUERIES, _QUERY_WARPS = 128, 8  # patches that one program lets attend to their frame
_MOST_PATCHES = 256  # of a frame; one program holds their scores at once
_CLASS_KEYS = 128  # keys that the class token attends to at a time


def supports_divided_attention(dim: int, num_tubelets: int, num_patches: int) -> bool:
    """Return whether `attend_divided` can work on a model's sizes.

    Args:
        dim: D.
        num_tubelets: F.
        num_patches: P.
    """
    tiles = num_tubelets & (num_tubelets - 1) == 0 and num_tubelets * _PATCHES >= 16
    return supports_head_size(dim) and tiles and num_patches <= _MOST_PATCHES


@torch.library.custom_op("foley::attend_divided", mutates_args=())
def attend_divided(qkv: Tensor, num_heads: int, num_tubelets: int, over_time: bool) -> Tensor:
    """Return what `foley.models.synchformer.DividedAttention` computes between its two products.

    Args:
        qkv: [G, 1 + F * P, 3 * H * D], the class token first, on a GPU.
        num_heads: H.
        num_tubelets: F; see `supports_divided_attention` for the sizes.
        over_time: True: each patch attends to its own place at all times; False: to its frame.
            Patches also attend to the class token, which attends to all tokens.

    Returns:
        [G, 1 + F * P, H * D].
    """
    segments, num_tokens, width = qkv.shape
    dim = width // 3 // num_heads
    num_patches = (num_tokens - 1) // num_tubelets
    qkv, scale = qkv.contiguous(), dim**-0.5
    out = qkv.new_empty(segments, num_tokens, width // 3)
    _attend_first_into(qkv, num_heads, out)
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
    """Return the attention of each row's first token to the whole row, itself included.

    The library's kernel for a single query (cuDNN's) sometimes gives another last bit for the same
    input.

    Args:
        qkv: [B, N, 3 * H * D], on a GPU; see `supports_head_size` for D.
        num_heads: H.

    Returns:
        [B, 1, H * D].
    """
    out = qkv.new_empty(len(qkv), 1, qkv.shape[2] // 3)
    _attend_first_into(qkv.contiguous(), num_heads, out)
    return out


@attend_first.register_fake
def _(qkv: Tensor, num_heads: int) -> Tensor:
    return qkv.new_empty(len(qkv), 1, qkv.shape[2] // 3)


def _attend_first_into(qkv: Tensor, num_heads: int, out: Tensor) -> None:
    """Write the attention of each row's first token into the first token of a row of `out`."""
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
    # There is one query, the class token's, so this needs no matrix products.
    row, lane = tl.arange(0, KEYS), tl.arange(0, DIM)
    width = HEADS * DIM
    which = tl.program_id(1).to(tl.int64)
    head = tl.program_id(0) * DIM + lane
    first = qkv + which * (TOKENS * 3 * width) + head
    query = tl.load(first).to(tl.float32) * scale
    highest = tl.full((1,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((1,), dtype=tl.float32)
    result = tl.zeros((DIM,), dtype=tl.float32)
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
        result = result * before + tl.sum(weight[:, None] * value, 0)
        highest = higher
    result = result / total
    tl.store(out + which * (OUT_TOKENS * width) + head, result.to(out.dtype.element_ty))


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
    # Rows go tubelet after tubelet, so that neighbouring patches are adjacent in memory.
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
    result = tl.dot(weight.to(value.dtype), value) + class_weight[:, None] * class_value[None, :]
    result = result / total[:, None]
    places = out + (segment + token)[:, None] * width + head[None, :]
    tl.store(places, result.to(out.dtype.element_ty), mask=inside)


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
    # A frame has few patches, so all its keys are loaded at once.
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
    result = tl.dot(weight.to(value.dtype), value) + class_weight[:, None] * class_value[None, :]
    result = result / total[:, None]
    places = out + (begin + patch)[:, None] * width + head[None, :]
    tl.store(places, result.to(out.dtype.element_ty), mask=inside)

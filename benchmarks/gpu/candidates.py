"""Candidate kernels for the model, each with its reference in plain PyTorch.

Only `bench_gpu` imports this module. A candidate that is clearly faster moves to `foley.gpu`.
"""

# N tokens, C width, F MLP width

import torch
import triton
import triton.language as tl
from torch import Tensor

from foley.gpu import pointwise


def convolve_and_gate_plain(x: Tensor, weight: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """SiLU(gate(x)) * up(x) [N, F], computed as in the model: neighbours, one product, gating.

    Args:
        x: [N, C].
        weight: [2 * F, 3 * C], the rows of gate before those of up.
        first: bool [N, 1], whether a token is the first of its clip.
        last: bool [N, 1], whether a token is the last of its clip.
    """
    return pointwise.swiglu(pointwise.join_neighbours(x, first, last) @ weight.t())


def convolve_and_gate(
    x: Tensor,
    weight: Tensor,
    first: Tensor,
    last: Tensor,
    *,
    block: tuple[int, int, int] = (128, 128, 64),
    num_warps: int = 8,
    num_stages: int = 3,
) -> Tensor:
    """The result of `convolve_and_gate_plain` by one kernel, without intermediate tensors.

    Args:
        x: [N, C].
        weight: [2 * F, 3 * C].
        first: bool [N, 1].
        last: bool [N, 1].
        block: tile sizes for N, F and C. F and C must be multiples of theirs.
        num_warps: of each program.
        num_stages: of the software pipeline.
    """
    num_tokens, dim = x.shape
    hidden = weight.shape[0] // 2
    out = x.new_empty(num_tokens, hidden)
    block_n, block_f, block_c = block
    grid = (triton.cdiv(num_tokens, block_n) * (hidden // block_f),)
    _convolve_and_gate[grid](
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
def _convolve_and_gate(
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
    # Consecutive programs share rows of the weight, which is the larger operand.
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

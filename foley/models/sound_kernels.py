"""A residual unit of the sound decoder in one kernel, beside its plain twin.

The unit is `x + conv2(snake2(conv1(snake1(x))))`, of a dilated convolution of seven taps and one of
a single tap. Channels last, a program holds all channels of its samples: what lies between the two
convolutions never leaves it. Its input comes with the first snake already applied and so does its
output, for whatever follows: seven taps would compute a snake seven times.
"""

# B batch, S samples, C channels

import torch
from torch import Tensor
from torch.nn import functional as F

from foley.models import pointwise

try:
    import triton
    import triton.language as tl
except ImportError:  # PyTorch for the CPU has no Triton
    triton = None

_NUM_TAPS = 7


def residual_unit_plain(
    x: Tensor,
    y: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    alpha2: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    next_alpha: Tensor,
    dilation: int,
) -> tuple[Tensor, Tensor]:
    """The unit's result, and the next snake of it.

    Args:
        x: [B, S, C].
        y: the unit's first snake of x.
        weight1: [C, C, 7].
        bias1: [C].
        alpha2: [1, C, 1], of the snake between the convolutions.
        weight2: [C, C, 1].
        bias2: [C].
        next_alpha: [1, C, 1], of the snake that follows.
        dilation: of the first convolution.
    """
    made = F.conv1d(y.transpose(1, 2), weight1, bias1, padding=3 * dilation, dilation=dilation)
    made = F.conv1d(pointwise.snake(made, alpha2), weight2, bias2) + x.transpose(1, 2)
    after = pointwise.snake(made, next_alpha)
    return made.transpose(1, 2).contiguous(), after.transpose(1, 2).contiguous()


def serves(channels: int) -> bool:
    """Whether all channels of some samples fit a program, as a product's operands."""
    return 16 <= channels <= 256 and channels & (channels - 1) == 0


@torch.library.custom_op("foley::residual_unit", mutates_args=())
def residual_unit(
    x: Tensor,
    y: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    alpha2: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    next_alpha: Tensor,
    dilation: int,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """`residual_unit_plain`; without `keep` the first result is empty, for nothing reads it."""
    weights = weight1, bias1, alpha2, weight2, bias2, next_alpha
    if x.is_cuda:
        return run_residual_unit(x, y, *weights, dilation, keep)
    made, after = residual_unit_plain(x, y, *weights, dilation)
    return made if keep else made.new_empty(0), after


@residual_unit.register_fake
def _(
    x: Tensor,
    y: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    alpha2: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    next_alpha: Tensor,
    dilation: int,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if keep else (0,)), x.new_empty(x.shape)


def run_residual_unit(
    x: Tensor,
    y: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    alpha2: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    next_alpha: Tensor,
    dilation: int,
    keep: bool,
    *,
    block: int = 128,
    num_warps: int | None = None,
    num_stages: int = 3,
) -> tuple[Tensor, Tensor]:
    """`residual_unit`, by a kernel of these sizes."""
    batch, num_samples, channels = x.shape
    x, y = x.contiguous(), y.contiguous()
    taps = weight1.permute(0, 2, 1)  # [out, 7, in], which is how a re-laid weight lies
    made, after = x.new_empty(x.shape if keep else (0,)), x.new_empty(x.shape)
    _residual_unit[(triton.cdiv(num_samples, block), batch)](
        x,
        y,
        taps.contiguous(),
        bias1,
        alpha2,
        weight2,
        bias2,
        next_alpha,
        made,
        after,
        num_samples,
        dilation,
        CHANNELS=channels,
        TAPS=_NUM_TAPS,
        BLOCK=block,
        INNER=min(channels, 64),
        KEEP=keep,
        num_warps=num_warps or (4 if channels <= 64 else 8),
        num_stages=num_stages,
    )
    return made, after


if triton is not None:

    @triton.jit
    def _sine_squared(v):
        # Of period pi: once reduced, an even polynomial, right to 3e-7. The library's sine keeps
        # a slow way open for huge arguments.
        turns = v * 0.3183098861837907
        r = turns - tl.floor(turns + 0.5)
        u = r * r
        p = -3.3102075277199208 * u + 13.018209876677727
        p = p * u - 30.093493757548174
        p = p * u + 42.726324409229505
        p = p * u - 32.46963224725961
        p = p * u + 9.869603825162795
        return p * u

    @triton.jit
    def _snake(x, alpha):
        return x + _sine_squared(alpha * x) / (alpha + 1e-9)

    @triton.jit
    def _residual_unit(
        x,
        y,
        weight1,
        bias1,
        alpha2,
        weight2,
        bias2,
        next_alpha,
        made,
        after,
        num_samples,
        dilation,
        CHANNELS: tl.constexpr,  # noqa: N803
        TAPS: tl.constexpr,  # noqa: N803
        BLOCK: tl.constexpr,  # noqa: N803
        INNER: tl.constexpr,  # noqa: N803
        KEEP: tl.constexpr,  # noqa: N803
    ):
        sample = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        channel, inner = tl.arange(0, CHANNELS), tl.arange(0, INNER)
        base = tl.program_id(1).to(tl.int64) * num_samples * CHANNELS
        total = tl.zeros((BLOCK, CHANNELS), dtype=tl.float32)
        rows = weight1 + channel[None, :] * (TAPS * CHANNELS) + inner[:, None]
        for start in range(0, TAPS * CHANNELS, INNER):
            tap = start // CHANNELS
            at = sample + (tap - TAPS // 2) * dilation
            inside = (at >= 0) & (at < num_samples)
            places = y + base + at[:, None] * CHANNELS + (start - tap * CHANNELS + inner)[None, :]
            a = tl.load(places, mask=inside[:, None], other=0.0)
            total = tl.dot(a, tl.load(rows + start), total)
        total += tl.load(bias1 + channel).to(tl.float32)[None, :]
        between = _snake(total, tl.load(alpha2 + channel).to(tl.float32)[None, :])
        narrow = tl.load(weight2 + channel[None, :] * CHANNELS + channel[:, None])
        total = tl.dot(between.to(narrow.dtype), narrow)
        inside = (sample < num_samples)[:, None]
        places = base + sample[:, None] * CHANNELS + channel[None, :]
        total += tl.load(bias2 + channel).to(tl.float32)[None, :]
        total += tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
        if KEEP:
            tl.store(made + places, total.to(made.dtype.element_ty), mask=inside)
        total = _snake(total, tl.load(next_alpha + channel).to(tl.float32)[None, :])
        tl.store(after + places, total.to(after.dtype.element_ty), mask=inside)

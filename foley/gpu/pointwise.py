"""What stands between the matrix products of a step, each as one function of packed tokens.

Plain PyTorch, and so its own oracle: on a GPU each function is compiled into one or two kernels, so
that a tensor crosses the memory once between two products. The products themselves are left to the
library (see `foley.gpu.fused_step`).
"""

# N tokens, K clips, C width, F MLP width, H heads, D head size

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

try:
    from foley.gpu import kernels as kernels
except ImportError:  # PyTorch for the CPU has no Triton
    kernels = None  # type: ignore[assignment]


Precision = Literal["bf16", "fp8"]
# Tokens [N, C] in eight bits, and the scale [N, 1], float32, that gives them back.
Quantised = tuple[Tensor, Tensor]


def modulate(x: Tensor, shift: Tensor, scale: Tensor, owner: Tensor, eps: float) -> Tensor:
    """Layer-normed tokens [N, C], scaled and shifted by the rows [K, C] that own them [N]."""
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=eps)
    return (normed * (1 + scale[owner].float()) + shift[owner].float()).to(shift.dtype)


def add_gated(x: Tensor, branch: Tensor, gate: Tensor, owner: Tensor) -> Tensor:
    """The residual stream [N, C] with a branch added, in the stream's dtype."""
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
    """`add_gated`, and the result's `modulate`."""
    x = add_gated(x, branch, gate, gate_owner)
    return x, modulate(x, shift, scale, owner, eps)


def taps_sum(taps: Tensor, bias: Tensor | None, first: Tensor, last: Tensor) -> Tensor:
    """A convolution's result [N, C], float32, from each tap's product with the tokens [N, 3 * C].

    Tap 0 belongs to the token after, tap 2 to the one before; none crosses the end of a clip.
    """
    before, here, after = taps.unflatten(1, (3, -1)).float().unbind(1)
    before = _shifted(before, 1).masked_fill(first, 0)
    after = _shifted(after, -1).masked_fill(last, 0)
    total = before + here + after
    return total if bias is None else total + bias.float()


def neighbours(x: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Each token between its neighbours, [N, 3 * C]; zeros past the ends of a clip."""
    before = _shifted(x, 1).masked_fill(first, 0)
    after = _shifted(x, -1).masked_fill(last, 0)
    return torch.cat((before, x, after), dim=1)


def _shifted(x: Tensor, places: int) -> Tensor:
    """Rows moved on by one place or back, zeros after them.

    Padded before it is cut: N - 1 rows would tie what is compiled for two tokens to two tokens.
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
    """`add_and_modulate` where the branch is a convolution's taps."""
    x = add_gated(x, taps_sum(taps, bias, first, last), gate, owner)
    return x, modulate(x, shift, scale, owner, eps)


def add_taps_and_norm(
    x: Tensor, taps: Tensor, gate: Tensor, owner: Tensor, first: Tensor, last: Tensor, eps: float
) -> Tensor:
    """The last residual sum, layer-normed, in the dtype of `gate`."""
    x = add_gated(x, taps_sum(taps, None, first, last), gate, owner)
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
    """Queries or keys [N, H, D]: gathered, normed over each head, turned by their positions.

    Args:
        x: [M, H * D].
        index: int64 [N], the token that stands at each place; None where it is its own.
        weight: of the norm [D], or of two streams [2, D].
        stream: int64 [N], which of the two.
        cos: [N, D / 2].
        sin: likewise.
        eps: of the norm.
    """
    heads = (x if index is None else x[index]).unflatten(1, (-1, weight.shape[-1])).float()
    scale = weight.float() if stream is None else weight[stream].float()[:, None]
    normed = heads * torch.rsqrt(heads.square().mean(-1, keepdim=True) + eps) * scale
    even, odd = normed.unflatten(-1, (-1, 2)).unbind(-1)  # [N, H, D / 2] each
    cos, sin = cos[:, None], sin[:, None]
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return turned.flatten(-2).to(x.dtype)


def gated(both: Tensor) -> Tensor:
    """SiLU(gate) * up [N, F] of [gate | up] [N, 2 * F]."""
    gate, up = both.float().chunk(2, dim=1)
    return (F.silu(gate) * up).to(both.dtype)


def gelu(x: Tensor) -> Tensor:
    """The tanh approximation, in float32, dtype kept."""
    return F.gelu(x.float(), approximate="tanh").to(x.dtype)


def row_conditions(rows: Tensor, time: Tensor, owner: Tensor) -> Tensor:
    """SiLU(sync + time) of the distinct sync rows [R, C]; `owner` [R] tells the row of `time`."""
    return F.silu(rows.float() + time[owner].float()).to(rows.dtype)


def quantise(x: Tensor) -> Quantised:
    """Tokens [N, C] in eight bits, each row by its own scale."""
    largest = torch.finfo(torch.float8_e4m3fn).max
    x = x.float()
    scale = x.abs().amax(1, keepdim=True).clamp_min(1e-12) / largest
    return (x / scale).to(torch.float8_e4m3fn), scale


def snake(x: Tensor, alpha: Tensor) -> Tensor:
    """x + sin(alpha x)^2 / alpha in alpha's dtype, x's dtype kept: x [B, C, S], alpha [1, C, 1]."""
    wide = x.to(alpha.dtype)
    sine = torch.sin(alpha * wide)
    return torch.addcmul(wide, sine * sine, 1.0 / (alpha + 1e-9)).to(x.dtype)


def modulate_8(*arguments: Any) -> Quantised:
    """`modulate`, quantised."""
    return quantise(modulate(*arguments))


def add_and_modulate_8(*arguments: Any) -> tuple[Tensor, Quantised]:
    """`add_and_modulate`, what goes on to a product quantised."""
    x, modulated = add_and_modulate(*arguments)
    return x, quantise(modulated)


def add_taps_and_modulate_8(*arguments: Any) -> tuple[Tensor, Quantised]:
    """`add_taps_and_modulate`, likewise."""
    x, modulated = add_taps_and_modulate(*arguments)
    return x, quantise(modulated)


def neighbours_8(x: Tensor, first: Tensor, last: Tensor) -> Quantised:
    """`neighbours`, quantised."""
    return quantise(neighbours(x, first, last))


def gated_8(both: Tensor) -> Quantised:
    """`gated`, quantised."""
    return quantise(gated(both))


def gelu_8(x: Tensor) -> Quantised:
    """`gelu`, quantised."""
    return quantise(gelu(x))


def row_conditions_8(rows: Tensor, time: Tensor, owner: Tensor) -> Quantised:
    """`row_conditions`, quantised."""
    return quantise(row_conditions(rows, time, owner))


class Pointwise(NamedTuple):
    """The functions of this module, plain or compiled.

    `add_taps_and_modulate` leads to a convolution, `end_block` to a product: they differ where
    what goes on to products is quantised.
    """

    modulate: Callable[..., Any] = modulate
    add_and_modulate: Callable[..., Any] = add_and_modulate
    add_taps_and_modulate: Callable[..., Any] = add_taps_and_modulate
    end_block: Callable[..., Any] = add_taps_and_modulate
    add_taps_and_norm: Callable[..., Any] = add_taps_and_norm
    neighbours: Callable[..., Any] = neighbours
    norm_and_rotate: Callable[..., Any] = norm_and_rotate
    gated: Callable[..., Any] = gated
    gelu: Callable[..., Any] = gelu
    row_conditions: Callable[..., Any] = row_conditions
    quantise: Callable[..., Any] = quantise


PLAIN = Pointwise()
# What goes on to products leaves these in eight bits.
PLAIN8 = Pointwise(
    modulate=modulate_8,
    add_and_modulate=add_and_modulate_8,
    end_block=add_taps_and_modulate_8,
    neighbours=neighbours_8,
    gated=gated_8,
    gelu=gelu_8,
    row_conditions=row_conditions_8,
)


def plain(precision: Precision) -> Pointwise:
    """The functions as they stand here."""
    return PLAIN8 if precision == "fp8" else PLAIN


def compiled(precision: Precision = "bf16") -> Pointwise:
    """The functions, compiled; the number of tokens may change from call to call."""
    # Each has a few variants for each model (strides, streams, biases), and a process may hold
    # several models; past PyTorch's limit of 8 a call would fail.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    made = Pointwise(*map(_compiled, plain(precision)))
    if kernels is None:
        return made
    by_compiler = made.norm_and_rotate

    def by_kernel(x: Tensor, index: Tensor | None, weight: Tensor, *others: Any) -> Tensor:
        fits = x.is_cuda and x.stride(1) == 1 and kernels.serves(weight.shape[-1])
        return (kernels.norm_and_rotate if fits else by_compiler)(x, index, weight, *others)

    made = made._replace(norm_and_rotate=by_kernel)
    if precision == "fp8":
        return made._replace(
            neighbours=_on_gpu(kernels.neighbours_8, made.neighbours),
            gated=_on_gpu(kernels.gated_8, made.gated),
        )
    return made._replace(neighbours=_on_gpu(kernels.neighbours, made.neighbours))


def _on_gpu(kernel: Callable[..., Any], otherwise: Callable[..., Any]) -> Callable[..., Any]:
    def call(x: Tensor, *others: Tensor) -> Any:
        return (kernel if x.is_cuda and x.is_contiguous() else otherwise)(x, *others)

    return call


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    fast = torch.compile(function, fullgraph=True)

    def call(*arguments: Any) -> Any:
        for argument in arguments:
            # Widths are constants of the model; only the first dimension counts tokens, or clips.
            if (isinstance(argument, Tensor) and argument.ndim > 1) or _is_index(argument):
                torch._dynamo.maybe_mark_dynamic(argument, 0)
        return fast(*arguments)

    return call


def _is_index(argument: Any) -> bool:
    return isinstance(argument, Tensor) and argument.dtype == torch.int64

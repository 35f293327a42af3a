"""The functions between a step's products as one set: plain, or compiled for a GPU."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foley.gpu import pointwise
from foley.gpu.matrix import Precision

try:
    from foley.gpu import triton_pointwise
except ImportError:  # PyTorch for the CPU has no Triton
    triton_pointwise = None  # type: ignore[assignment]


class Pointwise(NamedTuple):
    """The functions of `foley.gpu.pointwise` that a step calls, for one precision of its products.

    `add_taps_and_modulate` comes before a convolution, `end_block` before a product. They differ in
    fp8: a convolution's tokens are quantised after they were joined with their neighbours.
    """

    modulate_tokens: Callable[..., Any] = pointwise.modulate_tokens
    add_and_modulate: Callable[..., Any] = pointwise.add_and_modulate
    add_taps_and_modulate: Callable[..., Any] = pointwise.add_taps_and_modulate
    end_block: Callable[..., Any] = pointwise.add_taps_and_modulate
    add_taps_and_norm: Callable[..., Any] = pointwise.add_taps_and_norm
    join_neighbours: Callable[..., Any] = pointwise.join_neighbours
    norm_and_rotate: Callable[..., Any] = pointwise.norm_and_rotate
    swiglu: Callable[..., Any] = pointwise.swiglu
    gelu: Callable[..., Any] = pointwise.gelu
    condition_rows: Callable[..., Any] = pointwise.condition_rows
    quantise: Callable[..., Any] = pointwise.quantise


PLAIN = Pointwise()
PLAIN_FP8 = Pointwise(
    modulate_tokens=pointwise.modulate_tokens_fp8,
    add_and_modulate=pointwise.add_and_modulate_fp8,
    end_block=pointwise.add_taps_and_modulate_fp8,
    join_neighbours=pointwise.join_neighbours_fp8,
    swiglu=pointwise.swiglu_fp8,
    gelu=pointwise.gelu_fp8,
    condition_rows=pointwise.condition_rows_fp8,
)


def select_plain(precision: Precision) -> Pointwise:
    """Return the functions in plain PyTorch, for products of this precision."""
    return PLAIN_FP8 if precision == "fp8" else PLAIN


def compile_pointwise(precision: Precision = "bf16") -> Pointwise:
    """Return the functions compiled, for any number of tokens, or Triton kernels in their place.

    Args:
        precision: of the products.
    """
    # Each function has a few variants for each model (strides, streams, biases), and a process may
    # hold several models. Past PyTorch's limit of 8 a call would fail.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    # While one thread compiles, a compiled function that another one calls, for another GPU, runs
    # as plain PyTorch. Else PyTorch would take that call for a part of the compilation, and fail.
    torch._dynamo.config.error_on_nested_fx_trace = False
    ops = Pointwise(*map(_compile, select_plain(precision)))
    if triton_pointwise is None:
        return ops
    ops = ops._replace(norm_and_rotate=_prefer_norm_and_rotate_kernel(ops.norm_and_rotate))
    if precision == "fp8":
        return ops._replace(
            join_neighbours=_prefer_kernel(
                triton_pointwise.join_neighbours_fp8_triton, ops.join_neighbours
            ),
            swiglu=_prefer_kernel(triton_pointwise.swiglu_fp8_triton, ops.swiglu),
        )
    return ops._replace(
        join_neighbours=_prefer_kernel(triton_pointwise.join_neighbours_triton, ops.join_neighbours)
    )


def _prefer_norm_and_rotate_kernel(otherwise: Callable[..., Any]) -> Callable[..., Any]:
    def call(x: Tensor, index: Tensor | None, weight: Tensor, *others: Any) -> Tensor:
        fits = x.is_cuda and x.stride(1) == 1
        if fits and triton_pointwise.supports_head_size(weight.shape[-1]):
            return triton_pointwise.norm_and_rotate_triton(x, index, weight, *others)
        return otherwise(x, index, weight, *others)

    return call


def _prefer_kernel(kernel: Callable[..., Any], otherwise: Callable[..., Any]) -> Callable[..., Any]:
    def call(x: Tensor, *others: Tensor) -> Any:
        return (kernel if x.is_cuda and x.is_contiguous() else otherwise)(x, *others)

    return call


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    fast = torch.compile(function, fullgraph=True)

    def call(*arguments: Any) -> Any:
        for argument in arguments:
            # Widths are constants of the model. Only the first dimension counts tokens, or clips.
            if (isinstance(argument, Tensor) and argument.ndim > 1) or _is_index(argument):
                torch._dynamo.maybe_mark_dynamic(argument, 0)
        return fast(*arguments)

    return call


def _is_index(argument: Any) -> bool:
    return isinstance(argument, Tensor) and argument.dtype == torch.int64

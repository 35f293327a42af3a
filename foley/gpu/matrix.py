"""Matrix products of a step: weights in 16 bits, or in 8 bits with a scale for each row."""

# N tokens

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from foley.gpu.pointwise import QuantisedTokens, quantise
from foley.models.adapters import AdapterBatch, find_adapters

# Of the products: 16 bits in the weights' dtype, or 8 bits.
Precision = Literal["bf16", "fp8"]
Tokens = Tensor | QuantisedTokens

# The library has products in 8 bits only for some small numbers of rows.
_FEWEST_FP8_ROWS = 128
# Of a weight, that are quantised together.
_ROWS_AT_ONCE = 1024
# False: products in 8 bits are summed with float32's precision throughout.
_FAST_FP8_SUMS = True


class MatrixLayer(NamedTuple):
    """A layer whose product a matrix computes, for adapters.

    Attributes:
        name: in `FoleyDiT`.
        inputs: columns of the matrix's tokens that are the layer's inputs.
        outputs: columns of its product to which the layer's outputs can be added.
    """

    name: str
    inputs: slice = slice(None)
    outputs: slice = slice(None)


class Matrix:
    """The product of a linear layer, with those of its adapters (`foley.models.adapters`).

    In 8 bits, tokens come quantised or are quantised here. Each token has a scale of its own: one
    scale for all would tie a request's sound to the loudest value of the requests that share a pass
    with it.

    Args:
        weight: [out, in].
        bias: [out], or None.
        precision: of the product.
        quantise_tokens: used in 8 bits for tokens that come in 16.
        layers: whose product it is.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        precision: Precision,
        quantise_tokens: Callable[[Tensor], QuantisedTokens],
        layers: Sequence[MatrixLayer] = (),
    ) -> None:
        self._layers = layers
        self.bias, self.scale = bias, None
        self.weight = weight.t()  # [in, out]
        self._dtype = weight.dtype
        if precision == "fp8":
            # A few rows at a time: in between they have 32 bits.
            parts = [quantise(rows) for rows in weight.split(_ROWS_AT_ONCE)]
            rows, scale = (torch.cat(column) for column in zip(*parts, strict=True))
            self.weight, self.scale = rows.t(), scale.t()
        self._quantise_tokens = quantise_tokens

    def __call__(self, x: Tokens, out: Tensor | None = None) -> Tensor:
        """Return the products [N, out].

        Args:
            x: [N, in].
            out: where the products are written; new memory when None.
        """
        product = self._multiply(x, out)
        adapters = find_adapters()
        if adapters is not None:
            self._add_adapters(adapters, x, product)
        return product

    def _add_adapters(self, adapters: AdapterBatch, x: Tokens, product: Tensor) -> None:
        layers = [layer for layer in self._layers if adapters.has(layer.name)]
        for layer in layers:
            # Adapters have 16 bits, and get the tokens that the matrix gets.
            tokens = x[0].to(self._dtype) * x[1].to(self._dtype) if isinstance(x, tuple) else x
            adapters.add_to(product[:, layer.outputs], layer.name, tokens[:, layer.inputs])

    def _multiply(self, x: Tokens, out: Tensor | None) -> Tensor:
        if self.scale is not None:
            quantised = x if isinstance(x, tuple) else self._quantise_tokens(x)
            return self._multiply_fp8(quantised, out)
        assert isinstance(x, Tensor)
        if self.bias is None:
            return torch.mm(x, self.weight, out=out)
        return torch.addmm(self.bias, x, self.weight, out=out)

    def multiply_and_activate(self, x: Tokens, gelu: Callable[[Tensor], Tensor]) -> Tensor:
        """Return GELU (the tanh approximation) of the products, in one kernel where there is one.

        Args:
            x: [N, in].
            gelu: used where there is no such kernel.
        """
        is_plain = self.scale is None and find_adapters() is None
        if isinstance(x, Tensor) and x.is_cuda and is_plain and self.bias is not None:
            return torch._addmm_activation(self.bias, x, self.weight, use_gelu=True)
        return gelu(self(x))

    def new_empty(self, num_tokens: int) -> Tensor:
        """Return uninitialised memory [num_tokens, out] for products."""
        like = self.weight if self.bias is None else self.bias
        return like.new_empty(num_tokens, self.weight.shape[1], dtype=self._dtype)

    def _multiply_fp8(self, x: QuantisedTokens, out: Tensor | None) -> Tensor:
        assert self.scale is not None
        rows, scale = x
        count = len(rows)
        missing = max(0, _FEWEST_FP8_ROWS - count)
        if missing:
            rows, scale = (F.pad(part, (0, 0, 0, missing)) for part in (rows, scale))
        product = torch._scaled_mm(
            rows,
            self.weight,
            scale_a=scale,
            scale_b=self.scale,
            bias=self.bias,
            out_dtype=self._dtype,
            use_fast_accum=_FAST_FP8_SUMS,
            out=None if missing else out,
        )
        if not missing:
            return product
        return product[:count] if out is None else out.copy_(product[:count])


def count_tokens(x: Tokens) -> int:
    """Return N of tokens, quantised or not."""
    return len(x[0] if isinstance(x, tuple) else x)


def multiply_side_by_side(first: Matrix, second: Matrix, x: Tokens, y: Tokens) -> Tensor:
    """Return the products of two groups of tokens in one tensor [N + M, out], the first's on top.

    Args:
        first: of the tokens `x`.
        second: of the tokens `y`, with as many outputs as `first`.
        x: [N, in].
        y: [M, in].
    """
    count = count_tokens(x)
    both = second.new_empty(count + count_tokens(y))
    first(x, both[:count])
    second(y, both[count:])
    return both

"""Scaled dot-product attention by the fastest kernel there is: see `foley.attention_kernels`."""

# B batch, N queries, M keys, H heads, D head size

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from foley.attention_kernels import choose_kernel
from foley.models.packing import Segments

_HALF_DTYPES = (torch.float16, torch.bfloat16)


def attend(query: Tensor, key: Tensor, value: Tensor, segments: Segments | None = None) -> Tensor:
    """Return softmax(query key^T / sqrt(D)) value, without a mask.

    Args:
        query: [B, N, H, D]. It is converted to the dtype of `value`.
        key: [B, M, H, D]. It is converted to the dtype of `value`.
        value: [B, M, H, D].
        segments: for a row (B is 1) that holds several clips; each clip attends to itself alone,
            or each region to itself and, near soft borders, to its neighbours.

    Returns:
        [B, N, H, D], in the dtype of `value`.

    Source: docs/internals/model-specification.md, section 2.2.
    """
    query, key = query.to(value.dtype), key.to(value.dtype)
    if segments is not None and segments.soft is not None:
        query = query[:, segments.soft.queries]
        return segments.soft.blend(_attend_segments(query, key, value, segments))
    if segments is not None:
        return _attend_segments(query, key, value, segments)
    # Compiled layers use PyTorch's kernel, because torch.compile cannot trace the choice.
    if value.is_cuda and value.dtype in _HALF_DTYPES and not torch.compiler.is_compiling():
        kernel = choose_kernel(value.device.index)
        if kernel.dense is not None:
            return _drop_normaliser(kernel.dense(query, key, value))
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # [B, H, N, D]
    # Not in training: it needs no repeatable bits, and torch.compile gave wrong gradients of these
    # sums.
    needs_same_bits = value.is_cuda and value.dtype in _HALF_DTYPES and not torch.is_grad_enabled()
    if query.shape[2] == 1 and needs_same_bits:
        return attend_single_query(query, key, value).transpose(1, 2)
    return scaled_dot_product_attention(query, key, value).transpose(1, 2)


def attend_single_query(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return the attention of one query, with the same bits for the same input.

    PyTorch would use cuDNN's kernel on an H100, which sometimes gives another last bit.

    Args:
        query: [B, H, 1, D].
        key: [B, H, M, D].
        value: [B, H, M, D].

    Returns:
        [B, H, 1, D], in the dtype of `value`.
    """
    # Sums instead of float32 matrix products: compiled, they read each key and value once.
    scores = (query.float() * key.float()).sum(-1) * query.shape[-1] ** -0.5  # [B, H, M]
    weights = scores.softmax(-1)[..., None]
    return (weights * value.float()).sum(2, keepdim=True).to(value.dtype)


def _attend_segments(query: Tensor, key: Tensor, value: Tensor, segments: Segments) -> Tensor:
    """Return the attention of a row of clips [1, N, H, D], each clip to itself."""
    runs = segments.runs()
    if len(runs) > 1 and value.is_cuda and value.dtype in _HALF_DTYPES:
        kernel = choose_kernel(value.device.index)
        if kernel.segmented is not None:
            begins = segments.query_offsets, segments.key_offsets
            longest = segments.longest_query, segments.longest_key
            out = kernel.segmented(query[0], key[0], value[0], *begins, *longest)
            return _drop_normaliser(out)[None]
    # Consecutive clips of equal lengths form a batch.
    outs, first_query, first_key = [], 0, 0
    for count, num_queries, num_keys in runs:
        last_query = first_query + count * num_queries
        last_key = first_key + count * num_keys
        out = attend(
            query[0, first_query:last_query].unflatten(0, (count, num_queries)),
            key[0, first_key:last_key].unflatten(0, (count, num_keys)),
            value[0, first_key:last_key].unflatten(0, (count, num_keys)),
        )
        outs.append(out.flatten(0, 1))
        first_query, first_key = last_query, last_key
    # torch.cat would copy a single result.
    return (outs[0] if len(outs) == 1 else torch.cat(outs))[None]


def _drop_normaliser(out: Any) -> Tensor:
    """Return the attention alone: some versions also return the softmax's normaliser."""
    return out[0] if isinstance(out, tuple) else out

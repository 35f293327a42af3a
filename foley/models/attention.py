"""The attention kernel: FlashAttention 3, 2 or PyTorch's own, chosen once and reported at start."""

# B batch, N queries, M keys, H heads, D head size

import importlib
import logging
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from foley.models.packing import Segments

logger = logging.getLogger(__name__)

# Package, its distribution's name for people, and the compute capabilities that it serves.
_FLASH = (
    ("flash_attn_interface", "FlashAttention 3", lambda major: major == 9),
    ("flash_attn", "FlashAttention 2", lambda major: major >= 8),
)
_HALF = (torch.float16, torch.bfloat16)


def attend(query: Tensor, key: Tensor, value: Tensor, segments: Segments | None = None) -> Tensor:
    """softmax(query key^T / sqrt(D)) value, without a mask.

    Args:
        query: [B, N, H, D].
        key: [B, M, H, D].
        value: [B, M, H, D].
        segments: where B is 1 and the row holds several clips: each attends to itself alone.

    Returns:
        [B, N, H, D], in the dtype of `value`.
    """
    query, key = query.to(value.dtype), key.to(value.dtype)
    if segments is not None:
        return _attend_segments(query, key, value, segments)
    # Compiled layers (the encoders') take PyTorch's: the choice cannot be traced.
    if value.is_cuda and value.dtype in _HALF and not torch.compiler.is_compiling():
        kernel = _flash_kernel(value.device.index)
        if kernel.dense is not None:
            return _output(kernel.dense(query, key, value))
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # [B, H, N, D]
    # Not in training, which need not repeat: compiled, the gradients of these sums came out wrong.
    served = value.is_cuda and value.dtype in _HALF and not torch.is_grad_enabled()
    if query.shape[2] == 1 and served:
        return attend_once(query, key, value).transpose(1, 2)
    return scaled_dot_product_attention(query, key, value).transpose(1, 2)


def attend_once(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The attention of a single query, spelt out: cuDNN's kernel, which PyTorch would take on an
    H100, now and then gives another last bit for the same input.

    Args:
        query: [B, H, 1, D].
        key: [B, H, M, D].
        value: [B, H, M, D].

    Returns:
        [B, H, 1, D], in the dtype of `value`.
    """
    # Sums, not products of float32 matrices: compiled, they read each key and value once.
    scores = (query.float() * key.float()).sum(-1) * query.shape[-1] ** -0.5  # [B, H, M]
    weights = scores.softmax(-1)[..., None]
    return (weights * value.float()).sum(2, keepdim=True).to(value.dtype)


def _attend_segments(query: Tensor, key: Tensor, value: Tensor, segments: Segments) -> Tensor:
    """Clip after clip; neighbours of equal lengths together."""
    runs = segments.runs()
    if len(runs) > 1 and value.is_cuda and value.dtype in _HALF:
        kernel = _flash_kernel(value.device.index)
        if kernel.segmented is not None:
            begins = segments.query_offsets, segments.key_offsets
            longest = segments.longest_query, segments.longest_key
            return _output(kernel.segmented(query[0], key[0], value[0], *begins, *longest))[None]
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
    # Not through cat where there is one: it copies.
    return (outs[0] if len(outs) == 1 else torch.cat(outs))[None]


def attention_kernel(device: torch.device | None = None) -> str:
    """The name of the kernel that half-precision attention on a GPU runs on, for people."""
    return _flash_kernel(device.index if device else None).name


class _Kernel(NamedTuple):
    name: str
    dense: Callable[..., Any] | None  # of query, key, value [B, N, H, D]
    segmented: Callable[..., Any] | None  # of [N, H, D] each, both offsets, both longest lengths


@cache
def _flash_kernel(index: int | None) -> _Kernel:
    if torch.cuda.is_available():
        major, _ = torch.cuda.get_device_capability(index)
        for module, name, serves in _FLASH:
            if not serves(major):
                continue
            try:
                flash = importlib.import_module(module)
                return _Kernel(name, flash.flash_attn_func, flash.flash_attn_varlen_func)
            except (ImportError, AttributeError) as error:  # absent, or built for another torch
                logger.info("%s is not usable: %s", name, error)
    try:
        own = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except ImportError:  # before PyTorch 2.10: clips of different lengths, run by run
        own = None
    return _Kernel("PyTorch scaled_dot_product_attention", None, own)


def _output(out: Any) -> Tensor:
    """Some versions give the softmax's normaliser too."""
    return out[0] if isinstance(out, tuple) else out

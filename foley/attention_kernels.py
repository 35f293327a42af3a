"""Which kernel attention uses: FlashAttention 3, 2 or PyTorch's. It is chosen once for each GPU.

It imports none of the models, so that `foley serve` and `foley doctor` report it at once.
"""

# B batch, N queries, H heads, D head size

import importlib
import logging
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch

logger = logging.getLogger(__name__)

# Package, its name for people, and the major compute capabilities that it supports.
_FLASH_PACKAGES: tuple[tuple[str, str, Callable[[int], bool]], ...] = (
    ("flash_attn_interface", "FlashAttention 3", lambda major: major == 9),
    ("flash_attn", "FlashAttention 2", lambda major: major >= 8),
)


class AttentionKernel(NamedTuple):
    """A kernel of half-precision attention. Some versions also return the softmax's normaliser.

    Attributes:
        name: for people.
        dense: of query, key, value [B, N, H, D]; None for PyTorch's own.
        segmented: of query, key, value [N, H, D] each, the offsets of queries and of keys, and the
            longest lengths of both; None if there is none.
    """

    name: str
    dense: Callable[..., Any] | None
    segmented: Callable[..., Any] | None


@cache
def choose_kernel(index: int | None) -> AttentionKernel:
    """Return the fastest kernel that works.

    Args:
        index: of a GPU, or None for the current one; without GPUs it is PyTorch's.
    """
    plain = AttentionKernel("PyTorch scaled_dot_product_attention", None, None)
    if not torch.cuda.is_available():
        return plain  # the import below takes seconds
    major, _ = torch.cuda.get_device_capability(index)
    for module, name, supports in _FLASH_PACKAGES:
        if not supports(major):
            continue
        try:
            flash = importlib.import_module(module)
            return AttentionKernel(name, flash.flash_attn_func, flash.flash_attn_varlen_func)
        except (ImportError, AttributeError) as error:  # absent, or built for another PyTorch
            logger.info("%s is not usable: %s", name, error)
    try:
        segmented = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except ImportError:  # before PyTorch 2.10: `foley.models.attention` loops over the runs
        return plain
    return plain._replace(segmented=segmented)


def find_attention_kernel(device: torch.device | None = None) -> str:
    """Return the name of the kernel that half-precision attention uses, for people.

    Args:
        device: a GPU, or None for the current one.
    """
    return choose_kernel(device.index if device else None).name

"""Store the transformer's matrices in eight bits. On the device they are bfloat16 again.

This halves the file, and what is read at a start. Nothing is computed in eight bits. Each row of a
matrix (each output channel) has its own scale, because e4m3 keeps its precision of three bits only
from 2^-6 to 448. Without scales, smaller weights would lose more.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Storage = Literal["bf16", "fp8"]

FP8_DTYPE = torch.float8_e4m3fn
_LARGEST = torch.finfo(FP8_DTYPE).max
SCALE_SUFFIX = "_scale"  # appended to the key of the matrix
_LARGE = ("joint_blocks.", "audio_blocks.", "text_projections.", "time_projections.")


def pack_fp8(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with the matrices of all blocks in eight bits, and their scales.

    Args:
        weights: a transformer's state, in a floating type. A matrix [out, ...] gets a float32
            scale [out].
    """
    packed = {}
    for key, tensor in weights.items():
        if tensor.ndim < 2 or not key.startswith(_LARGE):
            packed[key] = tensor.contiguous()
            continue
        rows = tensor.float().flatten(1)
        scale = rows.abs().amax(1, keepdim=True).clamp_min(1e-12) / _LARGEST
        packed[key] = (rows / scale).to(FP8_DTYPE).view(tensor.shape)
        packed[key + SCALE_SUFFIX] = scale.squeeze(1)
    return packed


def unpack_fp8(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `pack_fp8`: matrices become bfloat16 again, on their own device.

    Args:
        weights: the result of `pack_fp8`, or weights without scales, which are returned as they
            are. The relative error of a matrix is below 3 %.
    """
    unpacked = {}
    for key, tensor in weights.items():
        if key + SCALE_SUFFIX in weights:
            scale = weights[key + SCALE_SUFFIX].view(-1, *[1] * (tensor.ndim - 1))
            unpacked[key] = tensor.to(torch.bfloat16).mul_(scale)
        elif not (key.endswith(SCALE_SUFFIX) and key.removesuffix(SCALE_SUFFIX) in weights):
            unpacked[key] = tensor
    return unpacked

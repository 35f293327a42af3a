"""The transformer's matrices in eight bits on disk; on the device they are bfloat16 again.

Storage only: it halves the file and what is read at a start, and nothing runs in eight bits. Each
row of a matrix (each output channel) has its own scale, since e4m3 keeps three bits of a number but
only from 2^-6 to 448: without scales, small weights lose more.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Storage = Literal["bf16", "fp8"]

STORED = torch.float8_e4m3fn
LARGEST = torch.finfo(STORED).max
SCALE = "_scale"  # after the key of the matrix that it belongs to
_LARGE = ("joint_blocks.", "audio_blocks.", "text_projections.", "time_projections.")


def pack(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with the matrices of all blocks in eight bits, and their scales."""
    packed = {}
    for key, tensor in weights.items():
        if tensor.ndim < 2 or not key.startswith(_LARGE):
            packed[key] = tensor.contiguous()
            continue
        rows = tensor.float().flatten(1)
        scale = rows.abs().amax(1, keepdim=True).clamp_min(1e-12) / LARGEST
        packed[key] = (rows / scale).to(STORED).view(tensor.shape)
        packed[key + SCALE] = scale.squeeze(1)
    return packed


def unpack(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse, as nearly as eight bits allow, in bfloat16 and on the tensors' own device."""
    unpacked = {}
    for key, tensor in weights.items():
        if key + SCALE in weights:
            scale = weights[key + SCALE].view(-1, *[1] * (tensor.ndim - 1))
            unpacked[key] = tensor.to(torch.bfloat16).mul_(scale)
        elif not (key.endswith(SCALE) and key.removesuffix(SCALE) in weights):
            unpacked[key] = tensor
    return unpacked

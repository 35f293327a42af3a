"""Small tensors on their way to a GPU."""

import torch
from torch import Tensor


def uploaded(tensor: Tensor, device: torch.device | None) -> Tensor:
    """The tensor on the device; neither the host nor what is queued on a GPU waits for it.

    From ordinary memory each copy would hold the host until the GPU has done all before it, and
    then the GPU waits for what the host launches next.
    """
    if device is None or device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)

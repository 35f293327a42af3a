"""Small tensors on their way to a GPU."""

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device | None) -> Tensor:
    """Return the tensor on a device, without waiting for the GPU.

    A copy from ordinary memory would hold the host until the GPU has finished all earlier work, and
    then the GPU would wait for the host's next launch. The copy goes through pinned memory instead.

    Args:
        tensor: of any shape, small: it is copied once more in host memory.
        device: where it goes; None for the CPU.
    """
    if device is None or device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)

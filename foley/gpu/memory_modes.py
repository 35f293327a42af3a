"""How much of a model stays on a GPU: the memory modes, which one fits, and what they exclude."""

from typing import Literal, get_args

import torch

from foley.errors import ConfigError
from foley.gpu.matrix import Precision

Memory = Literal["auto", "full", "balanced", "low"]

# What requests need beside the weights: a clip of 15 s, with room to spare; with streamed encoders
# that work in small pieces; and with streamed blocks, when the card is as good as full: then what
# the driver takes later, for kernels and graphs, counts too (0.3 GB).
_WORKING_BYTES = 2_500_000_000
_BALANCED_WORKING_BYTES = 1_200_000_000
LOW_WORKING_BYTES = 1_750_000_000
# With so much free memory, any preset is loaded straight to the GPU.
_ROOMY_BYTES = 24_000_000_000


def check_options(device: torch.device, precision: Precision, memory: Memory) -> None:
    """Refuse options that do not exist or exclude each other.

    Args:
        device: where the model runs.
        precision: of the transformer's products.
        memory: the mode.

    Raises:
        ConfigError: names the options, and what to choose instead.
    """
    for name, value, known in (
        ("precision", precision, get_args(Precision)),
        ("memory", memory, get_args(Memory)),
    ):
        if value not in known:
            raise ConfigError(f"{name} {value!r} does not exist; use {', '.join(known)}")
    if device.type != "cuda" and (precision != "bf16" or memory not in ("auto", "full")):
        raise ConfigError(
            f"precision {precision} and memory {memory} are for GPUs, and the model runs on "
            f"{device}, in float32; leave them at bf16 and auto"
        )
    if precision == "fp8" and torch.cuda.get_device_capability(device) < (8, 9):
        raise ConfigError(
            f"precision fp8 needs a GPU of compute capability 8.9 or more, and {device} has "
            f"{'.'.join(map(str, torch.cuda.get_device_capability(device)))}; use bf16"
        )


def choose_loading_device(device: torch.device, memory: Memory) -> torch.device:
    """Return where to load a model before it is placed: the GPU only if all of it may stay there.

    Args:
        device: where the model will run.
        memory: the mode.
    """
    if device.type != "cuda" or memory == "full":
        return device
    if memory == "auto" and torch.cuda.mem_get_info(device)[0] >= _ROOMY_BYTES:
        return device
    return torch.device("cpu")


def choose_memory(full_bytes: int, balanced_bytes: int, free_bytes: float) -> Memory:
    """Return the mode that fits, for memory="auto".

    Args:
        full_bytes: of all weights, in the dtypes that they have on the GPU.
        balanced_bytes: of those that stay in the mode balanced.
        free_bytes: of the GPU's memory, without any part of the model.
    """
    if free_bytes >= full_bytes + _WORKING_BYTES:
        return "full"
    return "balanced" if free_bytes >= balanced_bytes + _BALANCED_WORKING_BYTES else "low"

"""Load the model that the settings name onto one device."""

import gc
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from runners.logs import adopt_libraries

if TYPE_CHECKING:  # these import the models' libraries, which takes seconds
    import torch

    from foley.gpu.matrix import Precision
    from foley.gpu.memory_modes import Memory
    from foley.pipeline import FoleyPipeline


class ModelChoice(NamedTuple):
    """Which model to load, and where.

    Attributes:
        preset: tiny, xl, xxl or auto.
        device: auto, cpu, cuda or cuda:N.
        weights: folder of the weights; None for the usual one.
        precision: bf16 or fp8.
        memory: auto, full, balanced or low.
        adapters: folder or files of adapters; None for none.
    """

    preset: str
    device: str
    weights: Path | None = None
    precision: "Precision" = "bf16"
    memory: "Memory" = "auto"
    adapters: str | None = None


def count_gpus(device: str) -> int:
    """Return the number of GPUs that a name stands for, without the start of CUDA on any.

    Args:
        device: auto, cpu, cuda or cuda:N.
    """
    import torch

    if device not in ("auto", "cuda"):
        return int(device.startswith("cuda"))
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def find_devices(name: str) -> "list[torch.device]":
    """Return the devices of a name.

    Args:
        name: cpu or cuda:N; auto and cuda stand for all visible GPUs, if there are any.

    Raises:
        DeviceError: the device is unknown or missing.
    """
    import torch

    from foley.weights.selection import choose_device

    if name in ("auto", "cuda") and (count := count_gpus(name)):
        return [torch.device("cuda", index) for index in range(count)]
    return [choose_device(name)]


def load_pipeline(choice: ModelChoice) -> "FoleyPipeline":
    """Return the pipeline of a model on the first device of its choice.

    Args:
        choice: of the model.

    Raises:
        FoleyError: the machine cannot run it, or its weights cannot be loaded.
    """
    import diffusers.utils.logging
    import transformers.utils.logging

    # Both libraries set up their handlers at the first call, and warn while they are imported.
    diffusers.utils.logging.get_logger()
    transformers.utils.logging.get_logger()
    adopt_libraries()
    from foley.hardware.doctor import refuse_unfit
    from foley.pipeline import FoleyPipeline

    refuse_unfit(preset=choice.preset, device=choice.device, weights=choice.weights)
    pipeline = FoleyPipeline.from_preset(
        choice.preset,
        device=str(find_devices(choice.device)[0]),
        weights=choice.weights,
        precision=choice.precision,
        memory=choice.memory,
    )
    if choice.adapters is not None:
        pipeline.load_adapters(choice.adapters)
    return pipeline


def freeze_gc() -> None:
    """Exclude all existing objects from garbage collection.

    The libraries and a warm model have half a million objects that live as long as the process. A
    full collection visits each of them and stops the thread that feeds a GPU for 0.1 s.
    """
    gc.collect()
    gc.freeze()

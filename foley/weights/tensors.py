"""Files of tensors: read with restrictions, or only their keys and shapes."""

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from foley.errors import CheckpointError

_MAX_HEADER_BYTES = 100 * 1024 * 1024  # the format's own limit
# What is copied to a device out of one map of a file: while the map lasts, the pages that were read
# through it count as this process's memory.
_MAPPED_BYTES = 1 << 30

# What torch's restricted unpickler is seen to raise on bytes that are no pickle, among others.
_UNREADABLE = (
    SafetensorError,
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
)


def read_weights(
    path: Path, device: str = "cpu", wanted: Callable[[str], bool] = lambda _key: True
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of a checkpoint, mapped from the file where its format allows, and its metadata.

    Args:
        path: safetensors, or what PyTorch writes.
        device: where safetensors are put, each straight from the map.
        wanted: which keys of safetensors to read.

    Raises:
        CheckpointError: the file is missing, damaged, or holds more than tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; download the weights or name their folder")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path, device, wanted)
        content = _unpickle(path)
    except _UNREADABLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {reason}; fetch the file again"
        ) from error
    metadata = {}
    if isinstance(content, Mapping) and "state_dict" in content:
        content, metadata = content["state_dict"], dict(content.get("metadata") or {})
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"{path} is not a dictionary of tensors; it is of another model")
    return dict(content), metadata


def _read_safetensors(
    path: Path, device: str, wanted: Callable[[str], bool]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    while True:
        num_bytes = 0
        with safe_open(path, framework="pt", device=device) as file:
            for key in file.keys():  # noqa: SIM118
                if key in tensors or not wanted(key):
                    continue
                if num_bytes >= _MAPPED_BYTES and device != "cpu":
                    break  # through a new map; on the CPU, tensors are views of the one there is
                tensors[key] = file.get_tensor(key)
                num_bytes += tensors[key].nbytes
            else:
                return tensors, file.metadata() or {}


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):  # files written before PyTorch 1.6
            raise
        return torch.load(path, map_location="cpu", weights_only=True)


@dataclass(frozen=True)
class Outline:
    """What a file says of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: str


def read_outline(path: Path) -> dict[str, Outline]:
    """Keys, shapes and types of a safetensors file; empty where it is none."""
    try:
        with path.open("rb") as file:
            num_bytes = int.from_bytes(file.read(8), "little")
            if num_bytes > _MAX_HEADER_BYTES:
                return {}
            header = json.loads(file.read(num_bytes))
        return {
            key: Outline(tuple(entry["shape"]), entry["dtype"])
            for key, entry in header.items()
            if key != "__metadata__"
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}

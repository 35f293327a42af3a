"""Read files of tensors, or only their keys and shapes. No file can run code."""

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

_POINTER = b"version https://git-lfs.github.com/spec/"  # what git-lfs puts where a file belongs
_MAX_HEADER_BYTES = 100 * 1024 * 1024  # the format's own limit
# How much is copied to a device through one memory map. Pages that were read through a map count as
# this process's memory until the map is closed.
_MAPPED_BYTES = 1 << 30

# Exceptions that PyTorch's restricted unpickler raises on damaged files, among others.
_UNREADABLE = (
    SafetensorError,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
)


def read_weights(
    path: Path, device: str = "cpu", is_wanted: Callable[[str], bool] = lambda _key: True
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint; returns its tensors by key, and its metadata.

    Tensors on the CPU are views of a memory map if the format allows it.

    Args:
        path: a safetensors file, or one that `torch.save` wrote.
        device: where tensors of a safetensors file are put, such as cpu or cuda:0.
        is_wanted: whether to read the tensor of a key; applies to safetensors files only.

    Raises:
        CheckpointError: the file is missing, damaged, or holds more than tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; download the weights or name their folder")
    refuse_pointer(path)
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path, device, is_wanted)
        content = _unpickle(path)
    except pickle.UnpicklingError:
        # PyTorch's message explains how to read the file without the restriction.
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: it is damaged, or holds objects that are not "
            "tensors and could run code; fetch the file again, from the official repository"
        ) from None
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


def refuse_pointer(path: Path) -> None:
    """Refuse what git-lfs puts where a file belongs.

    Args:
        path: an existing file.

    Raises:
        CheckpointError: it is a pointer.
    """
    with path.open("rb") as file:
        if file.read(len(_POINTER)) != _POINTER:
            return
    raise CheckpointError(
        f"{path} is a pointer of git-lfs, and not the file itself; run `git lfs pull` in "
        f"{path.parent}, or `foley download`"
    )


def _read_safetensors(
    path: Path, device: str, is_wanted: Callable[[str], bool]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    while True:
        num_bytes = 0
        with safe_open(path, framework="pt", device=device) as file:
            for key in file.keys():  # noqa: SIM118
                if key in tensors or not is_wanted(key):
                    continue
                if num_bytes >= _MAPPED_BYTES and device != "cpu":
                    break  # and go on with a new map; on the CPU, the tensors are views of this one
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
    """A tensor's description in the header of a safetensors file.

    Attributes:
        shape: sizes of its dimensions.
        dtype: the format's name of its type, such as BF16.
    """

    shape: tuple[int, ...]
    dtype: str


def read_outline(path: Path) -> dict[str, Outline]:
    """Return the keys, shapes and types in a safetensors file; empty if it is not one."""
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

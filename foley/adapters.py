"""The adapters that a pipeline offers: read once, and brought to its device when they are used."""

import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from foley.errors import ConfigError
from foley.models.adapters import Adapter, AdapterSet, LowRank, add_hooks
from foley.models.dit import FoleyDiT
from foley.request import AdapterUse, check_adapter_names
from foley.weights.adapters import NAME, read_adapter

# Largest share of a GPU's memory that adapters take which no request uses any more.
_DEVICE_SHARE = 0.05
# Each matrix begins at a multiple of so many values, since products on a GPU read 16 bytes at once.
_STEP = 64


class AdapterInfo(NamedTuple):
    """What callers may know of an adapter.

    Attributes:
        name: by which a request asks for it.
        rank: the largest of its layers.
        about: a line for people; may be empty.
        trigger: a prompt that suits it; may be empty.
    """

    name: str
    rank: int
    about: str
    trigger: str


class _Packed:
    """The matrices of an adapter one behind the other, so that one copy moves all of them.

    Args:
        layers: by the layer's name; all of one dtype, on the CPU.
    """

    def __init__(self, layers: Mapping[str, LowRank]) -> None:
        first = next(iter(layers.values())).down
        self._shapes = {name: (layer.down.shape, layer.up.shape) for name, layer in layers.items()}
        sizes = [_round_up(t.numel()) for layer in layers.values() for t in layer]
        self._values = torch.empty(sum(sizes), dtype=first.dtype)
        for name, packed in self._split(self._values).items():
            for target, matrix in zip(packed, layers[name], strict=True):
                target.copy_(matrix)

    def place(self, device: torch.device) -> dict[str, LowRank]:
        """Return the matrices on a device, by the layer's name; on the CPU they are not copied."""
        if device.type != "cuda":
            return self._split(self._values)
        # On a stream of its own a copy does not wait for the steps that are queued on the other.
        stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
        with torch.cuda.stream(stream):
            values = self._values.to(device, non_blocking=True)
        current.wait_stream(stream)
        values.record_stream(current)
        return self._split(values)

    def _split(self, values: Tensor) -> dict[str, LowRank]:
        layers, start = {}, 0
        for name, shapes in self._shapes.items():
            pair = []
            for shape in shapes:
                size = math.prod(shape)
                pair.append(values[start : start + size].view(shape))
                start += _round_up(size)
            layers[name] = LowRank(*pair)
        return layers


def _round_up(size: int) -> int:
    return -(-size // _STEP) * _STEP


class AdapterStore:
    """Adapters by name, for one transformer.

    They stay in host memory. Those used last stay on a GPU too, up to a twentieth of its memory,
    and a request holds its own for as long as it runs.

    Args:
        dit: on its device.
        preset_name: of the model.
        device: where requests need them.
    """

    def __init__(self, dit: FoleyDiT, preset_name: str, device: torch.device) -> None:
        self._dit = dit
        self._preset_name = preset_name
        self._device = device
        self._dtype = dit.dtype
        self._changing = threading.Lock()
        self._adapters: dict[str, Adapter] = {}
        self._packed: dict[str, _Packed] = {}
        self._infos: dict[str, AdapterInfo] = {}
        self._on_device: OrderedDict[str, Adapter] = OrderedDict()
        self._most_bytes = 0.0
        if device.type == "cuda":
            self._most_bytes = _DEVICE_SHARE * torch.cuda.get_device_properties(device).total_memory

    @property
    def infos(self) -> tuple[AdapterInfo, ...]:
        """Of all adapters, by name."""
        return tuple(self._infos[name] for name in sorted(self._infos))

    def load(self, path: Path, name: str | None = None) -> AdapterInfo:
        """Read a file and offer its adapter; an adapter of the same name is replaced.

        Requests that run keep what they began with.

        Args:
            path: ends in .safetensors.
            name: by which requests ask for it; None takes the file's, without the suffix.

        Raises:
            CheckpointError: the file does not fit the model, or cannot be read.
            ConfigError: the name cannot be one.
        """
        name = path.stem if name is None else name
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} cannot be an adapter's name: it has 1 to 64 of A-Z a-z 0-9 . _ - and "
                "begins with a letter or a digit; rename the file, or give a name"
            )
        file = read_adapter(path, self._dit, self._preset_name, self._dtype)
        packed = _Packed(file.layers)
        info = AdapterInfo(name, file.rank, file.about, file.trigger)
        with self._changing:
            self._adapters[name] = Adapter(name, packed.place(torch.device("cpu")))
            self._packed[name] = packed
            self._infos[name] = info
            self._on_device.pop(name, None)
        add_hooks(self._dit)
        return info

    def select(self, uses: Sequence[AdapterUse]) -> AdapterSet | None:
        """Return the adapters of a request on the device; None where nothing is changed.

        Args:
            uses: of the request. Those with scale 0 are left out, so that the sound is the model's
                own to the last bit.

        Raises:
            ParameterError: an adapter is unknown; the message lists the known ones.
        """
        check_adapter_names((use.name for use in uses), self._infos)
        members = sorted((use.name, use.scale) for use in uses if use.scale)
        if not members:
            return None
        with self._changing:
            return AdapterSet(tuple((self._place(name), scale) for name, scale in members))

    def _place(self, name: str) -> Adapter:
        """Return an adapter on the device."""
        adapter = self._adapters[name]
        if self._device.type != "cuda":
            return adapter
        placed = self._on_device.pop(name, None)
        if placed is None:
            placed = Adapter(name, self._packed[name].place(self._device), adapter.content)
        self._on_device[name] = placed
        total = sum(a.num_bytes for a in self._on_device.values())
        while total > self._most_bytes and len(self._on_device) > 1:
            total -= self._on_device.popitem(last=False)[1].num_bytes
        return placed

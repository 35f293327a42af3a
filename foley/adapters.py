"""The adapters that a pipeline offers: read once, and brought to its device when they are used."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from foley.errors import ConfigError
from foley.models.adapters import Adapter, AdapterSet, LowRank, add_hooks
from foley.models.dit import FoleyDiT
from foley.request import AdapterUse, check_adapter_names
from foley.weights.adapters import NAME, read_adapter

# Largest share of a GPU's memory that adapters take which no request uses any more.
_DEVICE_SHARE = 0.05


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
        file = read_adapter(path, self._dit, self._preset_name)
        dtype = self._dtype
        layers = {k: LowRank(down.to(dtype), up.to(dtype)) for k, (down, up) in file.layers.items()}
        info = AdapterInfo(name, file.rank, file.about, file.trigger)
        with self._changing:
            self._adapters[name] = Adapter(name, layers)
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
            layers = {
                key: LowRank(*(t.to(self._device, non_blocking=True) for t in layer))
                for key, layer in adapter.layers.items()
            }
            placed = Adapter(name, layers, adapter.content)
        self._on_device[name] = placed
        total = sum(a.num_bytes for a in self._on_device.values())
        while total > self._most_bytes and len(self._on_device) > 1:
            total -= self._on_device.popitem(last=False)[1].num_bytes
        return placed

"""Modules whose weights lie in pinned host memory and are copied to the GPU for their turn.

This is not diffusers' group offloading. With streams, that lets each group be loaded by the group
that ran before it in the first forward. Here a clip's context and a schedule's modulations are
computed by calls of their own, so the order of one step is not that of the next, and a group would
be missing. The order of a pass is known, so each module loads its successor. The blocks of a step
are streamed by `foley.gpu.matrix_stream`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foley.gpu.host_memory import hold_on_host, lay_out
from foley.models.vae import EncoderBlock, FoleyVAE


class WeightStreamer:
    """Keeps modules' weights off the GPU except for each module's turn.

    The modules run in turn, and nothing waits on the host. There are two places on the GPU, each of
    the size of the largest module. A module is copied to one of them while the module before it
    computes in the other. So the memory is the same however far the host is ahead of the GPU.

    Args:
        modules: in the order of their calls.
        device: where they run. If it is a GPU, their weights are moved to pinned host memory. Both
            places are freed after the last module.
    """

    def __init__(self, modules: Sequence[nn.Module], device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._homes = [_Home(module, pinned=device.type == "cuda") for module in modules]
        self._place_bytes = max(home.num_bytes for home in self._homes)
        self._places = [_Place(), _Place()]
        for index, module in enumerate(modules):
            module.register_forward_pre_hook(self._make_load_hook(index))
            module.register_forward_hook(self._make_unload_hook(index), always_call=True)

    def _make_load_hook(self, index: int) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            place = self._find(index) or self._fetch(index, self._places[0])
            if place.arrived is not None:
                torch.cuda.current_stream(self._device).wait_event(place.arrived)
            following = index + 1
            if following < len(self._homes) and self._find(following) is None:
                (other,) = (p for p in self._places if p is not place)
                self._fetch(following, other)

        return hook

    def _make_unload_hook(self, index: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            place = self._find(index)
            if place is None:  # there was too little memory to load it
                return
            self._unload(place)
            if self._stream is not None:
                place.left = torch.cuda.current_stream(self._device).record_event()
            if index + 1 == len(self._homes):
                self._places = [_Place(), _Place()]

        return hook

    def _find(self, index: int) -> "_Place | None":
        return next((place for place in self._places if place.holds == index), None)

    def _fetch(self, index: int, place: "_Place") -> "_Place":
        """Start the copy of a module's weights to a place, and return it."""
        if place.holds is not None:  # a pass that an error ended
            self._unload(place)
        if place.memory is None:
            place.memory = torch.empty(self._place_bytes, dtype=torch.uint8, device=self._device)
            if self._stream is not None:
                place.left = torch.cuda.current_stream(self._device).record_event()
        home = self._homes[index]
        if self._stream is None:
            place.memory[: home.num_bytes].copy_(home.memory)
        else:
            assert place.left is not None
            self._stream.wait_event(place.left)
            with torch.cuda.stream(self._stream):
                place.memory[: home.num_bytes].copy_(home.memory, non_blocking=True)
                place.arrived = self._stream.record_event()
        home.use(place.memory)
        place.holds = index
        return place

    def _unload(self, place: "_Place") -> None:
        assert place.holds is not None
        home = self._homes[place.holds]
        home.use(home.memory)
        place.holds = None


class _Place:
    """Memory on the GPU that one module's weights take at a time.

    Attributes:
        memory: uint8; None before the first use.
        holds: the index of the module whose weights are there, or on their way.
        arrived: when they are there.
        left: when the module before had computed.
    """

    def __init__(self) -> None:
        self.memory: Tensor | None = None
        self.holds: int | None = None
        self.arrived: torch.cuda.Event | None = None
        self.left: torch.cuda.Event | None = None


class _Home:
    """A module's weights, one after another in host memory.

    Args:
        module: on any device. Its weights become views of that memory.
        pinned: whether a GPU copies from there.

    Attributes:
        memory: uint8 [num_bytes].
        num_bytes: of all weights.
    """

    def __init__(self, module: nn.Module, *, pinned: bool) -> None:
        self._weights = _list_weights(module)
        self.memory = hold_on_host(self._weights, pinned=pinned)
        self.num_bytes = self.memory.nbytes
        self.use(self.memory)

    def use(self, memory: Tensor) -> None:
        """Let the module's weights be those in `memory`, laid out as in its own."""
        views = list(lay_out(memory, self._weights))
        for weight, view in zip(self._weights, views, strict=True):
            weight.data = view


def stream_modules(
    whole: nn.Module,
    passes: Sequence[Sequence[nn.Module]],
    device: torch.device,
    staying: Sequence[nn.Module] = (),
) -> None:
    """Stream some of the modules that a module consists of; its other weights move to the device.

    Args:
        whole: in host memory; its weights are moved in place.
        passes: modules that run one after another, each once.
        device: where it runs.
        staying: modules whose weights stay where they are.
    """
    for modules in passes:
        WeightStreamer(modules, device)
    away = [*staying, *(module for modules in passes for module in modules)]
    away_ids = {id(weight) for module in away for weight in _list_weights(module)}
    for weight in _list_weights(whole):
        if id(weight) not in away_ids:
            weight.data = weight.data.to(device)


def list_layers(encoder: nn.Module) -> list[nn.Module]:
    """Return the layers of a transformer, in the order of their calls.

    Args:
        encoder: with one list of layers.
    """
    (layers,) = (module for module in encoder.modules() if isinstance(module, nn.ModuleList))
    return list(layers)


def list_encoder_parts(vae: FoleyVAE) -> list[nn.Module]:
    """Return the large modules of the sound encoder, in the order of their calls."""
    blocks = [block for block in vae.encoder.blocks if isinstance(block, EncoderBlock)]
    return [part for block in blocks for part in (*block.units, block.downsample)]


def _list_weights(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]

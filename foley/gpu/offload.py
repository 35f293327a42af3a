"""Weights that live in pinned host memory and are copied to the GPU while others compute.

This is not diffusers' group offloading. With streams, that lets each group be loaded by the group
that ran before it in the first forward. Here a clip's context and a schedule's modulations are
computed by calls of their own, so the order of one step is not that of the next, and a group would
be missing. The order of a step's blocks is known, so each block loads its successor, and the last
block loads the first.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foley.models.dit import FoleyDiT


class WeightStreamer:
    """Keeps modules' weights off the GPU except for each module's turn.

    The modules run in turn, again and again. At most two are present at once. Nothing waits on the
    host.

    Args:
        modules: in the order of their calls.
        device: where they run. If it is a GPU, their weights are moved to pinned host memory.
    """

    def __init__(self, modules: Sequence[nn.Module], device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._homes = [self._move_to_host(module) for module in modules]
        self._arrived: list[torch.cuda.Event | None] = [None] * len(modules)
        self._present = [False] * len(modules)
        for index, module in enumerate(modules):
            module.register_forward_pre_hook(self._make_load_hook(index))
            module.register_forward_hook(self._make_unload_hook(index), always_call=True)

    def _move_to_host(self, module: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """Return each weight, and its data in host memory."""
        home = []
        for weight in (*module.parameters(), *module.buffers()):
            data = weight.data.cpu()
            weight.data = data.pin_memory() if self._device.type == "cuda" else data
            home.append((weight, weight.data))
        return home

    def _make_load_hook(self, index: int) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            self._load(index)
            if self._stream is not None:
                event = self._arrived[index]
                assert event is not None
                torch.cuda.current_stream(self._device).wait_event(event)
            if len(self._homes) > 1:
                self._load((index + 1) % len(self._homes))

        return hook

    def _make_unload_hook(self, index: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self._unload(index)

        return hook

    def _load(self, index: int) -> None:
        """Start the copy of a module's weights to the device, unless it has started before."""
        if self._present[index]:
            return
        if self._stream is None:
            for weight, home in self._homes[index]:
                weight.data = home.to(self._device, copy=True)
        else:
            current = torch.cuda.current_stream(self._device)
            with torch.cuda.stream(self._stream):
                for weight, home in self._homes[index]:
                    weight.data = home.to(self._device, non_blocking=True)
                    weight.data.record_stream(current)  # freed only after this stream has read it
                self._arrived[index] = self._stream.record_event()
        self._present[index] = True

    def _unload(self, index: int) -> None:
        for weight, home in self._homes[index]:
            weight.data = home
        self._present[index] = False


def split_by_bytes(
    modules: Sequence[nn.Module], resident_bytes: int
) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return the modules that stay on the device, and those that are streamed.

    Those that stay are spread evenly over the order, so that the copy of each streamed module has
    the time of its neighbours.

    Args:
        modules: in the order of their calls, with at least one weight.
        resident_bytes: the most that the modules that stay may take.
    """
    sizes = [sum(p.numel() * p.element_size() for p in module.parameters()) for module in modules]
    total = sum(sizes)
    share = min(1.0, resident_bytes / total)
    resident, streamed, kept = [], [], 0
    for index, (module, size) in enumerate(zip(modules, sizes, strict=True)):
        if kept + size <= min(resident_bytes, share * sum(sizes[: index + 1])):
            resident.append(module)
            kept += size
        else:
            streamed.append(module)
    return resident, streamed


def stream_blocks(dit: FoleyDiT, device: torch.device, resident_bytes: int) -> None:
    """Stream the blocks beyond a budget; all other weights of a transformer move to the device.

    Args:
        dit: in host memory; its weights are moved in place.
        device: where it runs.
        resident_bytes: the most that the blocks that stay may take.
    """
    blocks = [*dit.joint_blocks, *dit.audio_blocks]
    _, streamed = split_by_bytes(blocks, resident_bytes)
    if streamed:
        WeightStreamer(streamed, device)
    away = {id(weight) for block in streamed for weight in block.parameters()}
    for weight in dit.parameters():
        if id(weight) not in away:
            weight.data = weight.data.to(device)

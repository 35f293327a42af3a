"""Weights that live in pinned host memory and cross to the device while others compute.

Not diffusers' group offloading: with streams, it lets each group be brought by the one that ran
before it in the first forward. Here a clip's context and a schedule's modulations are computed by
calls of their own, so the order of one step is not that of the next, and a group would be missing.
The order of a step's blocks is known, so each brings its successor, and the last one the first.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Streamed:
    """Modules that run in turn, again and again, each present on the device only for its turn.

    At most two are present at once. Nothing waits on the host.

    Args:
        modules: in the order of their calls.
        device: where they run. Their weights are moved to pinned host memory, if it is a GPU.
    """

    def __init__(self, modules: Sequence[nn.Module], device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._homes = [self._take(module) for module in modules]
        self._arrived: list[torch.cuda.Event | None] = [None] * len(modules)
        self._present = [False] * len(modules)
        for index, module in enumerate(modules):
            module.register_forward_pre_hook(self._before(index))
            module.register_forward_hook(self._after(index), always_call=True)

    def _take(self, module: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """Each weight, and where it lives."""
        home = []
        for weight in (*module.parameters(), *module.buffers()):
            data = weight.data.cpu()
            weight.data = data.pin_memory() if self._device.type == "cuda" else data
            home.append((weight, weight.data))
        return home

    def _before(self, index: int) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            self._bring(index)
            if self._stream is not None:
                event = self._arrived[index]
                assert event is not None
                torch.cuda.current_stream(self._device).wait_event(event)
            if len(self._homes) > 1:
                self._bring((index + 1) % len(self._homes))

        return hook

    def _after(self, index: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self._send_home(index)

        return hook

    def _bring(self, index: int) -> None:
        """Start a module's weights on their way, unless they are."""
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
                    weight.data.record_stream(current)  # which reads it; freed only after that
                self._arrived[index] = self._stream.record_event()
        self._present[index] = True

    def _send_home(self, index: int) -> None:
        for weight, home in self._homes[index]:
            weight.data = home
        self._present[index] = False


def split_by_bytes(
    modules: Sequence[nn.Module], resident_bytes: int
) -> tuple[list[nn.Module], list[nn.Module]]:
    """Modules that may stay on the device, and those that are streamed.

    Those that stay are spread evenly over the order, so that each streamed one has the time of its
    neighbours to arrive.
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

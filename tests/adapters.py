"""Adapters with random matrices, and files of them."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from foley.denoise import Denoising, VelocityModel
from foley.models.adapters import Adapter, LowRank, list_layers
from foley.weights.adapters import write_adapter


def draw_layers(
    dit: nn.Module, seed: int, rank: int, wants: Callable[[str], bool] = lambda name: True
) -> dict[str, LowRank]:
    """Matrices that change the result of a toy model clearly, for the layers that are wanted."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: LowRank(
            0.3 * torch.randn(inputs, taps, rank, generator=generator),
            0.3 * torch.randn(rank, outputs, generator=generator),
        )
        for name, (inputs, outputs, taps) in list_layers(dit).items()
        if wants(name)
    }


def draw_adapter(
    dit: nn.Module,
    name: str,
    seed: int,
    rank: int = 4,
    wants: Callable[[str], bool] = lambda name: True,
) -> Adapter:
    """An adapter with random matrices."""
    return Adapter(name, draw_layers(dit, seed, rank, wants))


def write_random_adapter(
    path: Path, dit: nn.Module, base: str, *, seed: int = 0, rank: int = 4
) -> Path:
    """Write an adapter with random matrices for all layers of a model; returns the path."""
    layers = draw_layers(dit, seed, rank)
    write_adapter(path, layers, base=base, rank=rank, metadata={}, dtype=torch.float32)
    return path


def run_together(velocities: VelocityModel, paths: list[Denoising]) -> list[Tensor]:
    """The latents of requests whose evaluations are made together."""
    while running := [path for path in paths if path.point is not None]:
        parts = velocities([path.prepare_part() for path in running])
        for path, velocity in zip(running, parts, strict=True):
            path.advance(velocity)
    return [path.latents for path in paths if path.latents is not None]

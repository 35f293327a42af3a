"""Noise levels, guidance and ODE solvers. Pure functions; no model is imported.

A solver is a generator: it yields the points at which it wants a velocity, is sent that velocity,
and returns the clean latents. Whoever drives it decides which requests share a model evaluation.
"""

# B batch, L latent channels, A latent frames, N steps

import itertools
import math
import secrets
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foley.request import MAX_SEED, Solver

VelocityFn = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Evaluation:
    """A point at which a solver wants the velocity.

    Attributes:
        latents: [.., L, A].
        sigma: noise level.
        step: index of the step that it belongs to.
    """

    latents: Tensor
    sigma: float
    step: int


Trajectory = Generator[Evaluation, Tensor, Tensor]


def make_sigmas(num_steps: int, shift: float = 1.0) -> Tensor:
    """Noise levels falling from 1 to 0, float32 [num_steps + 1].

    Source: specification, section 4.
    """
    sigmas = torch.linspace(1, 0, num_steps + 1)
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def make_flux_sigmas(num_steps: int, num_latents: int) -> Tensor:
    """The schedule whose shift grows with the number of latent frames; off by default.

    Source: specification, section 4. mu is linear through (256, 0.5) and (4096, 1.15).
    """
    slope = (1.15 - 0.5) / (4096 - 256)
    mu = math.exp(slope * num_latents + 0.5 - slope * 256)
    sigmas = torch.linspace(1, 0, num_steps + 1)
    return mu / (mu + (1 / sigmas - 1))


def guide(uncond: Tensor, cond: Tensor, guidance_scale: float) -> Tensor:
    """Classifier-free guidance of two velocities of one shape, in float32."""
    uncond = uncond.float()
    return uncond + guidance_scale * (cond.float() - uncond)


def trajectory(noise: Tensor, sigmas: Sequence[float] | Tensor, solver: Solver) -> Trajectory:
    """Clean latents, reached from noise along the probability-flow ODE.

    Args:
        noise: standard normal [.., L, A], drawn by the caller from the request's own generator.
        sigmas: falling from 1 to 0.
        solver: each stage of a step is evaluated at its own noise level, and starts from the state
            at the beginning of the step. Source: specification, section 4.

    Yields:
        where the velocity, d(latents) / d(sigma), is wanted.
    """
    latents = noise.float()  # the state stays float32; the network casts for itself
    # Differences are taken between float32 values, as the published sampler does.
    levels = torch.as_tensor(sigmas, dtype=torch.float32)
    take_step = _SOLVERS[solver]
    for step, (sigma, next_sigma) in enumerate(itertools.pairwise(levels)):
        latents = yield from take_step(latents, sigma, next_sigma, step)
    return latents


def integrate(
    velocity_fn: VelocityFn,
    noise: Tensor,
    sigmas: Sequence[float] | Tensor,
    solver: Solver = "euler",
) -> Tensor:
    """`trajectory`, driven to its end with one velocity function (latents, sigma) -> velocity."""
    path = trajectory(noise, sigmas, solver)
    try:
        point = next(path)
        while True:
            point = path.send(velocity_fn(point.latents, point.sigma))
    except StopIteration as stop:
        return stop.value


def _euler(latents: Tensor, sigma: Tensor, next_sigma: Tensor, step: int) -> Trajectory:
    velocity = yield Evaluation(latents, sigma.item(), step)
    return latents + (next_sigma - sigma).item() * velocity.float()


def _heun(latents: Tensor, sigma: Tensor, next_sigma: Tensor, step: int) -> Trajectory:
    delta = (next_sigma - sigma).item()
    first = yield Evaluation(latents, sigma.item(), step)
    second = yield Evaluation(latents + delta * first.float(), next_sigma.item(), step)
    return latents + delta * 0.5 * (first.float() + second.float())


def _midpoint(latents: Tensor, sigma: Tensor, next_sigma: Tensor, step: int) -> Trajectory:
    delta = (next_sigma - sigma).item()
    middle = (sigma + (next_sigma - sigma) / 2).item()
    first = yield Evaluation(latents, sigma.item(), step)
    second = yield Evaluation(latents + delta / 2 * first.float(), middle, step)
    return latents + delta * second.float()


def _rk4(latents: Tensor, sigma: Tensor, next_sigma: Tensor, step: int) -> Trajectory:
    delta = (next_sigma - sigma).item()
    middle = (sigma + (next_sigma - sigma) / 2).item()
    first = yield Evaluation(latents, sigma.item(), step)
    second = yield Evaluation(latents + delta / 2 * first.float(), middle, step)
    third = yield Evaluation(latents + delta / 2 * second.float(), middle, step)
    fourth = yield Evaluation(latents + delta * third.float(), next_sigma.item(), step)
    total = first.float() + 2 * second.float() + 2 * third.float() + fourth.float()
    return latents + delta / 6 * total


_SOLVERS: dict[Solver, Callable[[Tensor, Tensor, Tensor, int], Trajectory]] = {
    "euler": _euler,
    "heun": _heun,
    "midpoint": _midpoint,
    "rk4": _rk4,
}


def choose_seeds(seed: int | None, num_variations: int) -> tuple[int, ...]:
    """One seed for each variation, counting up from `seed`, or from a random one."""
    if seed is None:
        seed = secrets.randbelow(2**32)
    return tuple((seed + i) % (MAX_SEED + 1) for i in range(num_variations))


def draw_noise(seeds: Sequence[int], latent_dim: int, num_latents: int) -> Tensor:
    """Standard normal noise, float32 [len(seeds), latent_dim, num_latents], on the CPU.

    Each item has a generator of its own, so its noise depends on neither the batch nor the device.
    """
    noise = [
        torch.randn(latent_dim, num_latents, generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    ]
    return torch.stack(noise)

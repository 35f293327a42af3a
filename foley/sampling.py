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


@dataclass(frozen=True)
class Evaluation:
    """A point at which a solver wants the velocity.

    Attributes:
        latents: [.., L, A].
        sigma: noise level.
        step: index of the step that it belongs to.
        index: how many evaluations came before it.
    """

    latents: Tensor
    sigma: float
    step: int
    index: int


Trajectory = Generator[Evaluation, Tensor, Tensor]
VelocityFn = Callable[[Evaluation], Tensor]


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
    index = itertools.count()
    for step, (sigma, next_sigma) in enumerate(itertools.pairwise(levels)):
        take_step = _SOLVERS[solver](latents, sigma, next_sigma)
        try:
            state, level = next(take_step)
            while True:
                velocity = yield Evaluation(state, level.item(), step, next(index))
                state, level = take_step.send(velocity.float())
        except StopIteration as stop:
            latents = stop.value
    return latents


def integrate(
    velocity_fn: VelocityFn,
    noise: Tensor,
    sigmas: Sequence[float] | Tensor,
    solver: Solver = "euler",
) -> Tensor:
    """`trajectory`, driven to its end with one velocity function."""
    path = trajectory(noise, sigmas, solver)
    try:
        point = next(path)
        while True:
            point = path.send(velocity_fn(point))
    except StopIteration as stop:
        return stop.value


def evaluation_sigmas(sigmas: Sequence[float] | Tensor, solver: Solver) -> Tensor:
    """The noise level of every model evaluation that a solver will ask for, in order."""
    levels: list[float] = []

    def standing_still(point: Evaluation) -> Tensor:
        levels.append(point.sigma)
        return torch.zeros_like(point.latents)

    integrate(standing_still, torch.zeros(1), sigmas, solver)
    return torch.tensor(levels)


# One step: yields states and the levels at which their velocity is wanted; returns the next state.
_Step = Generator[tuple[Tensor, Tensor], Tensor, Tensor]


def _euler(latents: Tensor, sigma: Tensor, next_sigma: Tensor) -> _Step:
    velocity = yield latents, sigma
    return latents + (next_sigma - sigma).item() * velocity


def _heun(latents: Tensor, sigma: Tensor, next_sigma: Tensor) -> _Step:
    delta = (next_sigma - sigma).item()
    first = yield latents, sigma
    second = yield latents + delta * first, next_sigma
    return latents + delta * 0.5 * (first + second)


def _midpoint(latents: Tensor, sigma: Tensor, next_sigma: Tensor) -> _Step:
    delta = (next_sigma - sigma).item()
    first = yield latents, sigma
    second = yield latents + delta / 2 * first, sigma + (next_sigma - sigma) / 2
    return latents + delta * second


def _rk4(latents: Tensor, sigma: Tensor, next_sigma: Tensor) -> _Step:
    delta = (next_sigma - sigma).item()
    middle = sigma + (next_sigma - sigma) / 2
    first = yield latents, sigma
    second = yield latents + delta / 2 * first, middle
    third = yield latents + delta / 2 * second, middle
    fourth = yield latents + delta * third, next_sigma
    return latents + delta / 6 * (first + 2 * second + 2 * third + fourth)


_SOLVERS: dict[Solver, Callable[[Tensor, Tensor, Tensor], _Step]] = {
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

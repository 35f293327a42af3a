"""Noise levels, guidance and ODE solvers. Pure functions; no model is imported.

A solver is a generator: it yields the points at which it needs a velocity, receives that velocity,
and returns the clean latents. Its caller decides which requests share a model evaluation.
"""

# B batch, L latent channels, A latent frames, N steps

import itertools
import secrets
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from foley.plans import Solver
from foley.request import MAX_SEED


@dataclass(frozen=True)
class SolverPoint:
    """A point at which a solver needs the velocity.

    Attributes:
        latents: [.., L, A], float32.
        sigma: noise level, from 1 (noise) to 0 (clean).
        step: index of the solver step that it belongs to.
        index: number of evaluations before it.
    """

    latents: Tensor
    sigma: float
    step: int
    index: int


SolverPath = Generator[SolverPoint, Tensor, Tensor]
VelocityFn = Callable[[SolverPoint], Tensor]


_NOISE_BLOCK = 64  # latent frames; the sounds of seeds depend on it


def make_sigmas(num_steps: int, shift: float = 1.0) -> Tensor:
    """Return noise levels that fall from 1 to 0, float32 [num_steps + 1].

    Args:
        num_steps: at least 1.
        shift: 1 for equal steps. Larger values place more of the steps near 1: the ratio of noise
            to sound, sigma / (1 - sigma), is multiplied by it.

    Source: specification, section 4.
    """
    sigmas = torch.linspace(1, 0, num_steps + 1)
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def count_guided_steps(sigmas: Sequence[float] | Tensor, guidance_interval: float) -> int:
    """Return the number of steps with guidance, at least 1; they come first.

    All evaluations of a step are guided, or none, so that each step keeps its solver's order.

    Args:
        sigmas: [steps + 1], falling from 1 to 0.
        guidance_interval: lowest noise level, 0 to 1, at which a guided step may begin. A level
            within 1e-6 of it counts as equal.
    """
    levels = torch.as_tensor(sigmas, dtype=torch.float32)[:-1]
    return max(1, int((levels >= guidance_interval - 1e-6).sum()))


def guide(uncond: Tensor, cond: Tensor, guidance_scale: float) -> Tensor:
    """Return the velocity with classifier-free guidance, float32, in the shape of the inputs.

    Args:
        uncond: velocity of the unconditional half.
        cond: velocity of the conditional half, of the same shape.
        guidance_scale: 1 gives `cond`; larger values extrapolate beyond it.

    Source: specification, section 4.
    """
    uncond = uncond.float()
    return uncond + guidance_scale * (cond.float() - uncond)


def solve(
    noise: Tensor,
    sigmas: Sequence[float] | Tensor,
    solver: Solver,
    num_guided_steps: int | None = None,
) -> SolverPath:
    """Solve the probability-flow ODE from noise to clean latents.

    Args:
        noise: [.., L, A], standard normal, drawn by the caller from the request's own generator.
        sigmas: [steps + 1], falling from 1 to 0.
        solver: each stage of a step is evaluated at its own noise level, and starts from the state
            at the beginning of the step.
        num_guided_steps: steps after which the velocity jumps, because guidance ends; None without
            a jump. ab2 starts again there, because it must not extrapolate over the jump.

    Yields:
        the points at which the velocity, d(latents) / d(sigma), is needed.

    Returns:
        the clean latents [.., L, A], float32.

    Source: specification, section 4. The published sampler has no ab2.
    """
    latents = noise.float()  # the state stays float32; the network casts for itself
    # Differences are taken between float32 values, as the published sampler does.
    levels = torch.as_tensor(sigmas, dtype=torch.float32)
    indices = itertools.count()
    last: _LastStep | None = None
    for step, (sigma, next_sigma) in enumerate(itertools.pairwise(levels)):
        if step == num_guided_steps:
            last = None
        if solver == "ab2":
            take_step = _ab2(latents, sigma, next_sigma, last)
        else:
            take_step = _ONE_STEP_SOLVERS[solver](latents, sigma, next_sigma)
        try:
            state, level = next(take_step)
            while True:
                velocity = yield SolverPoint(state, level.item(), step, next(indices))
                velocity = velocity.float()
                last = _LastStep(velocity, (next_sigma - sigma).item())
                state, level = take_step.send(velocity)
        except StopIteration as stop:
            latents = stop.value
    return latents


def integrate(
    velocity_fn: VelocityFn,
    noise: Tensor,
    sigmas: Sequence[float] | Tensor,
    solver: Solver = "euler",
    num_guided_steps: int | None = None,
) -> Tensor:
    """Return the clean latents [.., L, A] that `solve` reaches with one velocity function.

    Args:
        velocity_fn: gives the velocity [.., L, A] at a point.
        noise: [.., L, A], standard normal.
        sigmas: [steps + 1], falling from 1 to 0.
        solver: euler, heun, midpoint, rk4 or ab2.
        num_guided_steps: of `solve`.
    """
    path = solve(noise, sigmas, solver, num_guided_steps)
    try:
        point = next(path)
        while True:
            point = path.send(velocity_fn(point))
    except StopIteration as stop:
        return stop.value


def compute_evaluation_sigmas(sigmas: Sequence[float] | Tensor, solver: Solver) -> Tensor:
    """Return the noise level of each model evaluation of a solver, in order, float32.

    Args:
        sigmas: [steps + 1], falling from 1 to 0.
        solver: euler and ab2 evaluate once a step, heun and midpoint twice, rk4 four times.
    """
    levels: list[float] = []

    def record(point: SolverPoint) -> Tensor:
        levels.append(point.sigma)
        return torch.zeros_like(point.latents)

    integrate(record, torch.zeros(1), sigmas, solver)
    return torch.tensor(levels)


# One step: yields states and the levels at which their velocity is needed, returns the next state.
_Step = Generator[tuple[Tensor, Tensor], Tensor, Tensor]


class _LastStep(NamedTuple):
    velocity: Tensor  # [.., L, A], the last one of the step
    delta: float  # the change of the noise level in the step


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


def _ab2(latents: Tensor, sigma: Tensor, next_sigma: Tensor, last: _LastStep | None) -> _Step:
    """Two-step Adams-Bashforth for steps of any sizes; Euler where there is no last step.

    The velocity is extrapolated by the line through its values at the beginnings of both steps.
    One Euler step does not lower the order, because its own error is of second order.
    """
    delta = (next_sigma - sigma).item()
    velocity = yield latents, sigma
    if last is None or last.delta == 0:  # a path that starts without noise stands still
        return latents + delta * velocity
    weight = delta / (2 * last.delta)
    return latents + delta * ((1 + weight) * velocity - weight * last.velocity)


_ONE_STEP_SOLVERS: dict[Solver, Callable[[Tensor, Tensor, Tensor], _Step]] = {
    "euler": _euler,
    "heun": _heun,
    "midpoint": _midpoint,
    "rk4": _rk4,
}


def choose_seeds(seed: int | None, num_variations: int) -> tuple[int, ...]:
    """Return one seed for each variation, counting up from `seed`.

    Args:
        seed: 0 to `MAX_SEED`, after which the count wraps to 0; None draws a random one.
        num_variations: at least 1.
    """
    if seed is None:
        seed = secrets.randbelow(2**32)
    return tuple((seed + i) % (MAX_SEED + 1) for i in range(num_variations))


def draw_noise(seeds: Sequence[int], latent_dim: int, num_latents: int) -> Tensor:
    """Return standard normal noise, float32 [len(seeds), latent_dim, num_latents], on the CPU.

    Each item has a generator of its own, so its noise depends on neither the batch nor the device.

    Args:
        seeds: one for each item, 0 to `MAX_SEED`.
        latent_dim: channels of the latents.
        num_latents: latent frames.
    """
    noise = [
        torch.randn(latent_dim, num_latents, generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    ]
    return torch.stack(noise)


class NoiseLine:
    """Standard normal noise of a sound whose length is not known yet.

    Args:
        seeds: as `draw_noise`, and so is the other.
        latent_dim: channels of the latents.
    """

    def __init__(self, seeds: Sequence[int], latent_dim: int) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._latent_dim = latent_dim
        self._start = 0  # of what is kept
        self._kept = torch.empty(len(seeds), latent_dim, 0)

    def draw(self, start: int, stop: int) -> Tensor:
        """Return the noise of latent frames, float32 [len(seeds), latent_dim, stop - start].

        It is the same however the line is cut.

        Args:
            start: not less than at the call before.
            stop: after `start`.
        """
        blocks = [self._kept[..., start - self._start :]]
        end = self._start + self._kept.shape[-1]
        assert self._start <= start <= end
        while end < stop:
            block = [
                torch.randn(self._latent_dim, _NOISE_BLOCK, generator=generator)
                for generator in self._generators
            ]
            blocks.append(torch.stack(block))
            end += _NOISE_BLOCK
        self._start, self._kept = start, torch.cat(blocks, -1)
        return self._kept[..., : stop - start]

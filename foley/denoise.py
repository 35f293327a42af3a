"""Noise -> latents: the transformer with guidance, along a solver's path.

Requests of any lengths, schedules and guidance share one forward pass: see `VelocityModel`.
"""

# N variations, K = 2 N clips with guidance or N without, L latent channels, A latent frames

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from foley.models.dit import DiTContext, FoleyDiT, TimeModulation
from foley.models.transfer import uploaded
from foley.request import Solver
from foley.sampling import Evaluation, evaluation_sigmas, guide, trajectory
from foley.types import Conditions

# Time modulations are computed for so many evaluations at once: a rk4 schedule of 200 steps would
# take 0.8 GB with xxl (18 blocks x 800 rows x 2 streams x 9 x 1536 values of 2 bytes).
TIMES_AT_ONCE = 64


class Part(NamedTuple):
    """One request's part of a model evaluation.

    Attributes:
        latents: [N, L, A], the variations' states.
        time: its noise level, one row of `FoleyDiT.time_modulation`.
        context: of `clip_context`, the same object in every evaluation of the request.
        guidance_scale: up to 1, the context has no unconditional half.
    """

    latents: Tensor
    time: TimeModulation
    context: DiTContext
    guidance_scale: float


class Step(Protocol):
    """A forward pass of packed clips: latents [sum of A, L] -> velocities, float32, likewise."""

    def __call__(self, latents: Tensor, time: TimeModulation, context: DiTContext) -> Tensor: ...  # noqa: D102
    def forget(self) -> None: ...  # noqa: D102 - the last batch
    def release(self) -> None: ...  # noqa: D102 - all that can be made again


class VelocityModel:
    """Guided velocities of several requests from one forward pass of the transformer.

    The requests' contexts are put together once and kept as long as the same requests come, in the
    same order; a request that joins or leaves costs one more concatenation.

    Args:
        dit: the transformer.
        step: what to use in place of its own forward, if anything.
    """

    def __init__(self, dit: FoleyDiT, step: Step | None = None) -> None:
        self.dit = dit
        self._step = step
        self._members: tuple[DiTContext, ...] = ()
        self._batch: DiTContext | None = None
        self._part_of_clip = torch.empty(0)

    @torch.inference_mode()
    def __call__(self, parts: Sequence[Part]) -> list[Tensor]:
        """The velocity [N, L, A], float32, of each part.

        When the device runs out of memory, all that is kept here is let go first.
        """
        try:
            return self._evaluate(parts)
        except torch.OutOfMemoryError:
            self.forget()
            if self._step is not None:
                self._step.release()
            raise

    def _evaluate(self, parts: Sequence[Part]) -> list[Tensor]:
        batch = self._batch_of([part.context for part in parts])
        times = TimeModulation.concatenate([part.time for part in parts])[self._part_of_clip]
        states = [
            part.latents.repeat(len(part.context.lengths) // len(part.latents), 1, 1)
            for part in parts
        ]
        if batch.packing is None:
            velocities = self.dit(torch.cat(states), times, batch).split([len(s) for s in states])
        else:
            rows = [state.transpose(1, 2).flatten(0, 1) for state in states]  # [K * A, L] each
            packed = torch.cat(rows)
            if self._step is not None:
                out = self._step(packed, times, batch)
            else:
                out = self.dit(packed.t()[None], times, batch)[0].t()
            velocities = [
                row.unflatten(0, (len(state), -1)).transpose(1, 2)
                for row, state in zip(out.split([len(r) for r in rows]), states, strict=True)
            ]
        return [_guided(v, part) for v, part in zip(velocities, parts, strict=True)]

    def _batch_of(self, contexts: Sequence[DiTContext]) -> DiTContext:
        same = len(contexts) == len(self._members) and all(
            context is member for context, member in zip(contexts, self._members, strict=True)
        )
        if self._batch is None or not same:
            packed = self._step is not None
            self._batch = DiTContext.concatenate(contexts, packed=packed)
            self._members = tuple(contexts)
            counts = torch.tensor([len(context.lengths) for context in contexts])
            parts = torch.arange(len(contexts)).repeat_interleave(counts)
            self._part_of_clip = uploaded(parts, self._batch.visual.device)
        return self._batch

    def forget(self) -> None:
        """Let go of the last batch's memory."""
        self._members, self._batch = (), None
        if self._step is not None:
            self._step.forget()


def _guided(velocity: Tensor, part: Part) -> Tensor:
    if part.guidance_scale <= 1:
        return velocity
    uncond, cond = velocity.chunk(2)
    return guide(uncond, cond, part.guidance_scale)


def velocities(dit: FoleyDiT, parts: Sequence[Part]) -> list[Tensor]:
    """What `VelocityModel` gives, for parts that come once."""
    return VelocityModel(dit)(parts)


class Denoising:
    """One request on its way from noise to latents; whoever drives it evaluates the model.

        while path.point is not None:
            path.advance(velocity of path.part)

    Args:
        dit: on the device where everything happens.
        conditions: of the clip.
        noise: [N, L, A], standard normal.
        sigmas: falling from 1 to 0.
        solver: euler, heun, midpoint or rk4.
        guidance_scale: up to 1, the conditional half alone is evaluated.

    Attributes:
        point: where the velocity is wanted next; None at the end.
        latents: [N, L, A], the clean ones; None before the end.
    """

    def __init__(
        self,
        dit: FoleyDiT,
        conditions: Conditions,
        noise: Tensor,
        sigmas: Tensor,
        *,
        solver: Solver = "euler",
        guidance_scale: float = 1.0,
    ) -> None:
        self._dit = dit
        self._guidance_scale = guidance_scale
        self._context = clip_context(dit, conditions, len(noise), guided=guidance_scale > 1)
        self._levels = uploaded(evaluation_sigmas(sigmas, solver), noise.device)
        self._times: TimeModulation | None = None
        self._path = trajectory(noise, sigmas, solver)
        self.latents: Tensor | None = None
        self.point: Evaluation | None = next(self._path)

    @property
    def part(self) -> Part:
        """What the next evaluation takes of this request."""
        assert self.point is not None
        row = self.point.index % TIMES_AT_ONCE
        if row == 0 or self._times is None:
            first = self.point.index - row
            self._times = self._dit.time_modulation(self._levels[first : first + TIMES_AT_ONCE])
        now = self._times[row : row + 1]
        return Part(self.point.latents, now, self._context, self._guidance_scale)

    def advance(self, velocity: Tensor) -> None:
        """Go on with the velocity [N, L, A] of `part`."""
        try:
            self.point = self._path.send(velocity)
        except StopIteration as stop:
            self.point, self.latents = None, stop.value


def denoise(
    dit: FoleyDiT | VelocityModel,
    conditions: Conditions,
    noise: Tensor,
    sigmas: Tensor,
    *,
    solver: Solver = "euler",
    guidance_scale: float = 1.0,
    on_evaluation: Callable[[Evaluation], None] | None = None,
) -> Tensor:
    """Latents [N, L, A] of a clip's variations: `Denoising`, driven alone.

    Args:
        dit: on the device where everything happens.
        conditions: of the clip.
        noise: [N, L, A], standard normal.
        sigmas: falling from 1 to 0.
        solver: euler, heun, midpoint or rk4.
        guidance_scale: up to 1, the conditional half alone is evaluated.
        on_evaluation: called before each model evaluation; what it raises ends the work.
    """
    model = dit if isinstance(dit, VelocityModel) else VelocityModel(dit)
    path = Denoising(
        model.dit, conditions, noise, sigmas, solver=solver, guidance_scale=guidance_scale
    )
    while path.point is not None:
        if on_evaluation is not None:
            on_evaluation(path.point)
        path.advance(*model([path.part]))
    assert path.latents is not None
    return path.latents


def clip_context(
    dit: FoleyDiT, conditions: Conditions, num_variations: int, *, guided: bool
) -> DiTContext:
    """The context of that many items of one clip; the unconditional ones, if any, come first."""
    text, num_latents = conditions.text_tokens, conditions.num_latents
    visual, sync = conditions.visual_tokens[None], conditions.sync_tokens[None]
    if not guided:
        contexts = [dit.context(visual, sync, text[1:], num_latents)] * num_variations
    else:
        uncond, cond = dit.both_contexts(visual, sync, text, num_latents)
        contexts = [uncond] * num_variations + [cond] * num_variations
    return DiTContext.concatenate(contexts)

"""Noise -> latents: the transformer with guidance, along a solver's path."""

# N variations, B = 2 N with guidance or N without, L latent channels, A latent frames

from collections.abc import Callable

import torch
from torch import Tensor

from foley.models.dit import DiTContext, FoleyDiT
from foley.request import Solver
from foley.sampling import Evaluation, evaluation_sigmas, guide, integrate
from foley.types import Conditions


def denoise(
    dit: FoleyDiT,
    conditions: Conditions,
    noise: Tensor,
    sigmas: Tensor,
    *,
    solver: Solver = "euler",
    guidance_scale: float = 1.0,
    on_evaluation: Callable[[Evaluation], None] | None = None,
) -> Tensor:
    """Latents [N, L, A] of a clip's variations.

    Args:
        dit: on the device where everything happens.
        conditions: of the clip.
        noise: [N, L, A], standard normal.
        sigmas: falling from 1 to 0.
        solver: euler, heun, midpoint or rk4.
        guidance_scale: up to 1, the conditional half alone is evaluated.
        on_evaluation: called before each model evaluation; what it raises ends the work.
    """
    guided = guidance_scale > 1
    context = clip_context(dit, conditions, len(noise), guided=guided)
    levels = evaluation_sigmas(sigmas, solver)
    times = dit.time_modulation(levels.to(noise.device))
    rows = torch.zeros(len(context.visual), dtype=torch.long, device=noise.device)

    def velocity(point: Evaluation) -> Tensor:
        if on_evaluation is not None:
            on_evaluation(point)
        latents = point.latents.repeat(2, 1, 1) if guided else point.latents
        out = dit(latents, times[rows + point.index], context)
        if not guided:
            return out
        uncond, cond = out.chunk(2)
        return guide(uncond, cond, guidance_scale)

    return integrate(velocity, noise, sigmas, solver)


def clip_context(
    dit: FoleyDiT, conditions: Conditions, num_variations: int, *, guided: bool
) -> DiTContext:
    """The context of that many items of one clip; the unconditional ones, if any, come first."""
    negative, positive = conditions.text_tokens.split(1)
    visual, sync = conditions.visual_tokens[None], conditions.sync_tokens[None]
    contexts = [dit.context(visual, sync, positive, conditions.num_latents)] * num_variations
    if guided:
        lengths = visual.shape[1], sync.shape[1]
        uncond = dit.empty_context(*lengths, negative, conditions.num_latents)
        contexts = [uncond] * num_variations + contexts
    return DiTContext.concatenate(contexts)

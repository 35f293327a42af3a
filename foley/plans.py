"""Plans of the sampler: how a request goes from noise to sound, and the plans that have names."""

from typing import Literal, NamedTuple, get_args

Solver = Literal["euler", "heun", "midpoint", "rk4", "ab2"]
SOLVERS: tuple[Solver, ...] = get_args(Solver)
Quality = Literal["reference", "balanced", "fast"]


class SamplingPlan(NamedTuple):
    """How a request goes from noise to sound.

    Attributes:
        num_inference_steps: solver steps, 1 to 200.
        solver: of the ODE.
        schedule_shift: 1 for equal steps of the noise level; see `foley.sampling.make_sigmas`.
        guidance_interval: lowest noise level at which a step with guidance may begin.
    """

    num_inference_steps: int
    solver: Solver = "euler"
    schedule_shift: float = 1.0
    guidance_interval: float = 0.0


QUALITIES: dict[Quality, SamplingPlan] = {
    "reference": SamplingPlan(50),  # as published
    "balanced": SamplingPlan(12, "ab2", 4.0, 0.8),
    "fast": SamplingPlan(6, "euler", 4.0, 0.8),
}
# Plans of a request that gives none. For the official models it is the published one. For tiny it
# has the fewest evaluations from which quality does not rise, and whose sound is close to that of
# the exact path (benchmarks/quality/README.md).
OFFICIAL_PLAN, TINY_PLAN = QUALITIES["reference"], QUALITIES["fast"]

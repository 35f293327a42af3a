"""Fewer evaluations of the transformer, beside caching between its steps.

Which evaluations are left out is fixed here, by what was found on the embedded model; see the
research log. Random weights say nothing about sound, so only the time is compared.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.model import random_conditions, random_dit
from benchmarks.gpu.parts import make_step
from benchmarks.records import percentile
from foley.denoise import Denoising, Step, VelocityModel
from foley.models.context import DiTContext
from foley.models.dit import FoleyDiT
from foley.models.modulation import TimeModulation
from foley.plans import QUALITIES, SamplingPlan
from foley.sampling import draw_noise, make_sigmas

_REFERENCE = QUALITIES["reference"]
# Of its 50 steps, those that are evaluated: 28, and 22.
_EVERY_SECOND = (*range(6), *range(6, 50, 2))
_FIRST_BLOCK = (*range(5), *range(5, 50, 3), 48, 49)


class Extrapolated:
    """A step that is computed at some evaluations, and extrapolated at the others (Taylor).

    Args:
        step: computes.
        whole: at which evaluations; the first two among them.
    """

    def __init__(self, step: Step, whole: tuple[int, ...]) -> None:
        self._step, self._whole = step, whole
        self._count = 0
        self._known: list[Tensor] = []

    def __call__(self, latents: Tensor, time: TimeModulation, context: DiTContext) -> Tensor:
        """Return the velocities."""
        self._count += 1
        if self._count - 1 in self._whole:
            self._known = [*self._known[-1:], self._step(latents, time, context)]
            return self._known[-1]
        before, last = self._known
        return 2 * last - before

    def forget(self) -> None:
        """Free the memory of the last batch."""
        self._step.forget()

    def release(self) -> None:
        """Free all memory that earlier steps left."""
        self._step.release()


class FirstBlockCached:
    """A step whose first block is always computed, and whose other blocks often are not.

    The host waits for the first block, to decide. What it would decide is fixed here.

    Args:
        step: computes.
        first: a step of the transformer's first blocks alone.
        whole: at which evaluations all blocks are computed; the first among them.
    """

    def __init__(self, step: Step, first: Step, whole: tuple[int, ...]) -> None:
        self._step, self._first, self._whole = step, first, whole
        self._count = 0
        self._context: tuple[DiTContext, DiTContext] | None = None
        self._change = self._rest = torch.empty(0)

    def __call__(self, latents: Tensor, time: TimeModulation, context: DiTContext) -> Tensor:
        """Return the velocities."""
        if self._context is None or self._context[0] is not context:
            short = replace(
                context, text_keys=context.text_keys[:1], text_values=context.text_values[:1]
            )
            self._context = context, short
        short_time = replace(time, audio=time.audio[:1], visual=time.visual[:1])
        change = self._first(latents, short_time, self._context[1])
        if len(self._change):
            ((change - self._change).norm() / self._change.norm()).item()
        self._count += 1
        if self._count - 1 in self._whole:
            self._change = change
            velocities = self._step(latents, time, context)
            self._rest = velocities - change
            return velocities
        return change + self._rest

    def forget(self) -> None:
        """Free the memory of the last batch."""
        self._step.forget()
        self._first.forget()

    def release(self) -> None:
        """Free all memory that earlier steps left."""
        self._step.release()
        self._first.release()


@torch.inference_mode()
def measure_caches(bench: Bench) -> dict[str, Any]:
    """Seconds from noise to latents: all evaluations, two caches, and fewer evaluations."""
    dit = random_dit(bench)
    step = make_step(bench, dit, "bf16")
    first = make_step(bench, _keep_first_blocks(dit), "bf16")
    ways: dict[str, tuple[SamplingPlan, Callable[[], Step]]] = {
        "reference": (_REFERENCE, lambda: step),
        "reference, extrapolated, 28 evaluations": (
            _REFERENCE,
            lambda: Extrapolated(step, _EVERY_SECOND),
        ),
        "reference, first block, 22 evaluations": (
            _REFERENCE,
            lambda: FirstBlockCached(step, first, _FIRST_BLOCK),
        ),
        "balanced": (QUALITIES["balanced"], lambda: step),
        "fast": (QUALITIES["fast"], lambda: step),
    }
    found: dict[str, Any] = {}
    for name, (plan, wrap) in ways.items():
        samples = [_sample(bench, dit, plan, wrap()) for _ in range(7 if bench.on_gpu else 1)]
        found[name] = {"median": percentile(samples[-5:], 50), "samples": samples}
        print(f"{name}: {1000 * found[name]['median']:.1f} ms", flush=True)
    return found


def _keep_first_blocks(dit: FoleyDiT) -> FoleyDiT:
    """Return the same transformer with one joint and one audio block, about a block of a cache."""
    short = copy.copy(dit)
    short._modules = dict(dit._modules)
    short.joint_blocks = nn.ModuleList([*dit.joint_blocks][:1])
    short.audio_blocks = nn.ModuleList([*dit.audio_blocks][:1])
    return short


def _sample(bench: Bench, dit: FoleyDiT, plan: SamplingPlan, step: Step) -> float:
    conditions = random_conditions(bench, bench.args.seconds, 0)
    noise = draw_noise((0,), bench.preset.dit.latent_dim, conditions.num_latents)
    velocities = VelocityModel(dit, step)
    bench.wait()
    begun = time.perf_counter()
    path = Denoising(
        dit,
        conditions,
        noise.to(bench.device),
        make_sigmas(plan.num_inference_steps, plan.schedule_shift),
        solver=plan.solver,
        guidance_scale=4.5,
        guidance_interval=plan.guidance_interval,
    )
    while path.point is not None:
        (velocity,) = velocities([path.prepare_part()])
        path.advance(velocity)
    bench.wait()
    return time.perf_counter() - begun

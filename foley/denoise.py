"""Noise -> latents: the transformer with guidance, along a solver's path.

Requests of any lengths, schedules and guidance share one forward pass: see `VelocityModel`.
"""

# N variations, K = 2 N clips with guidance or N without, L latent channels, A latent frames

import itertools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from foley.models.adapter_stacks import AdapterStacks, Member
from foley.models.adapters import (
    AdapterBatch,
    AdapterSet,
    use_adapters,
)
from foley.models.context import DiTContext
from foley.models.dit import FoleyDiT
from foley.models.modulation import TimeModulation
from foley.models.packing import Lengths, Regions
from foley.models.transfer import upload
from foley.plans import Solver
from foley.sampling import (
    SolverPoint,
    compute_evaluation_sigmas,
    count_guided_steps,
    guide,
    solve,
)
from foley.types import Conditions, TextConditions
from foley.windows import Window, cut_conditions, make_weights

# Time modulations are computed for this many evaluations at once. All of them would take too much
# memory: a rk4 schedule of 200 steps takes 0.8 GB with xxl (18 blocks x 800 rows x 2 streams x
# 9 x 1536 values of 2 bytes).
TIMES_AT_ONCE = 64

# Of one sound and its variations, or of each of several layers.
SoundConditions = Conditions | TextConditions | Sequence[Conditions | TextConditions]

# No id is given twice in a process, so a batch can be recognised by the ids of its parts.
_path_ids = itertools.count()


class EvaluationPart(NamedTuple):
    """One request's part of a model evaluation.

    Attributes:
        path_id: identifies the path from noise to latents that this part belongs to, or one window
            of it. All parts of one id have the same context, and an evaluation takes at most one
            of them. A path gets other ids when its guidance ends, because its context changes then.
        latents: [N, L, A], the variations' states; of a long sound, those of one window.
        time: the modulation of its noise level, one row of `FoleyDiT.make_time_modulation`.
        context: of `make_clip_context`.
        guidance_scale: up to 1, the context has no unconditional half.
        adapters: of the request; None without any.
    """

    path_id: int
    latents: Tensor
    time: TimeModulation
    context: DiTContext
    guidance_scale: float
    adapters: AdapterSet | None = None


class KeptLatents(NamedTuple):
    """Latents that are known, and are put back at each step.

    Attributes:
        velocity: [N, L, A], noise minus known latents: it leads from the noise to them.
        frames: bool [A], where they are known.
    """

    velocity: Tensor
    frames: Tensor


class Step(Protocol):
    """A forward pass of packed clips: latents [sum of A, L] -> velocities, float32, same shape."""

    def __call__(self, latents: Tensor, time: TimeModulation, context: DiTContext) -> Tensor: ...  # noqa: D102
    def forget(self) -> None: ...  # noqa: D102 - the last batch
    def release(self) -> None: ...  # noqa: D102 - everything that can be computed again


class VelocityModel:
    """Compute the guided velocities of several requests in one forward pass of the transformer.

    The contexts of a batch are concatenated once and kept for as long as the same paths come, in
    whatever order the caller lists them: the batch itself is ordered by adapters, then by path id.
    A path that joins or leaves costs one more concatenation.

    Args:
        dit: the transformer.
        step: replaces the transformer's own forward pass, if given.
    """

    def __init__(self, dit: FoleyDiT, step: Step | None = None) -> None:
        self.dit = dit
        self._step = step
        self._path_ids: tuple[int, ...] = ()
        self._batch: DiTContext | None = None
        self._part_of_clip = torch.empty(0)  # int64 [sum of K], on the device
        self._stacks = AdapterStacks(dit)
        self._adapters: AdapterBatch | None = None

    @torch.inference_mode()
    def __call__(self, parts: Sequence[EvaluationPart]) -> list[Tensor]:
        """Return the velocity [N, L, A], float32, of each part, in the order of `parts`.

        Args:
            parts: at least one, each of another path, all on the transformer's device.

        Raises:
            torch.OutOfMemoryError: the batch does not fit. Everything kept here is freed first.
        """
        places = self._stacks.order([part.adapters for part in parts])
        order = sorted(range(len(parts)), key=lambda i: (places[i], parts[i].path_id))
        ordered = [parts[i] for i in order]
        assert len({part.path_id for part in parts}) == len(parts), "two parts of one path"
        try:
            velocities = self._evaluate(ordered)
        except torch.OutOfMemoryError:
            self.forget()
            self._stacks.forget()
            if self._step is not None:
                self._step.release()
            raise
        velocity_of = {
            part.path_id: velocity for part, velocity in zip(ordered, velocities, strict=True)
        }
        return [velocity_of[part.path_id] for part in parts]

    def _evaluate(self, parts: Sequence[EvaluationPart]) -> list[Tensor]:
        batch = self._concatenate_contexts(parts)
        with use_adapters(self._adapters):
            return self._evaluate_batch(parts, batch)

    def _evaluate_batch(self, parts: Sequence[EvaluationPart], batch: DiTContext) -> list[Tensor]:
        times = TimeModulation.concatenate([part.time for part in parts])[self._part_of_clip]
        states = [
            part.latents.repeat(len(part.context.lengths) // len(part.latents), 1, 1)
            for part in parts
        ]  # [K, L, A] each
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
        return [_apply_guidance(v, part) for v, part in zip(velocities, parts, strict=True)]

    def _concatenate_contexts(self, parts: Sequence[EvaluationPart]) -> DiTContext:
        """Return the context of the batch; the last one, if its paths are the same."""
        path_ids = tuple(part.path_id for part in parts)
        if self._batch is None or path_ids != self._path_ids:
            contexts = [part.context for part in parts]
            packed = self._step is not None or any(context.regions for context in contexts)
            self._batch = DiTContext.concatenate(contexts, packed=packed)
            self._path_ids = path_ids
            counts = torch.tensor([len(context.lengths) for context in contexts])
            part_of_clip = torch.arange(len(contexts)).repeat_interleave(counts)
            self._part_of_clip = upload(part_of_clip, self._batch.visual.device)
            self._adapters = self._stacks.make(
                [
                    Member(
                        part.adapters,
                        tuple(clip.audio for clip in part.context.lengths),
                        sum(clip.visual for clip in part.context.lengths),
                        len(part.context.sync_rows),
                    )
                    for part in parts
                ],
                self._batch.visual,
            )
        return self._batch

    def forget(self) -> None:
        """Free the last batch's memory."""
        self._path_ids, self._batch, self._adapters = (), None, None
        if self._step is not None:
            self._step.forget()


def _apply_guidance(velocity: Tensor, part: EvaluationPart) -> Tensor:
    if part.guidance_scale <= 1:
        return velocity
    uncond, cond = velocity.chunk(2)
    return guide(uncond, cond, part.guidance_scale)


class Denoising:
    """One request on its way from noise to latents. The caller evaluates the model.

        while path.point is not None:
            path.advance(velocity of path.prepare_part())

    A group of a long sound has several windows, and a part is that of one window. The solver goes
    on when it has the parts of all windows.

    Args:
        dit: on the device where everything is computed.
        conditions: of the clip, or of the prompts alone; or those of N layers of one length, a
            sound each.
        noise: [N, L, A], standard normal, on the device; or latents with noise of the first level.
        sigmas: [steps + 1], falling from 1, or another first level, to 0.
        solver: euler, heun, midpoint, rk4 or ab2.
        guidance_scale: up to 1, only the conditional half is evaluated.
        guidance_interval: lowest noise level, 0 to 1, at which a step with guidance may begin. The
            steps after it evaluate only the conditional half.
        windows: in order, of the sound that its conditions describe; the noise is that of their
            span. None evaluates the sound whole, whatever its length.
        adapters: of the request; None without any.
        kept: latents that are known, on the device; None without any.

    Attributes:
        point: where the velocity is needed next; None at the end.
        latents: [N, L, A], float32, without noise; None before the end.
    """

    def __init__(
        self,
        dit: FoleyDiT,
        conditions: SoundConditions,
        noise: Tensor,
        sigmas: Tensor,
        *,
        solver: Solver = "euler",
        guidance_scale: float = 1.0,
        guidance_interval: float = 0.0,
        windows: tuple[Window, ...] | None = None,
        adapters: AdapterSet | None = None,
        kept: KeptLatents | None = None,
    ) -> None:
        self._dit = dit
        self._kept = kept
        self._guidance_scale = guidance_scale
        self._windows = windows or (Window(0, noise.shape[-1]),)
        layers = _list_layers(conditions)
        assert len(noise) % len(layers) == 0
        self._first = self._windows[0].start
        assert noise.shape[-1] == self._windows[-1].stop - self._first
        assert windows or all(layer.num_latents == noise.shape[-1] for layer in layers)
        self._layers = layers
        self._num_variations = len(noise)
        self._adapters = adapters
        self._whole: AdapterBatch | None = None  # of what is computed for this request alone
        if adapters is not None:
            self._whole = AdapterBatch.whole(adapters, dit, noise.new_empty(0, dtype=dit.dtype))
        self._contexts = self._make_contexts()
        self._path_ids = [next(_path_ids) for _ in self._windows]
        self._next_window = 0
        self._weights: list[Tensor] = []
        self._blend: Tensor | None = None  # [N, L, A], of the windows before the next one
        if len(self._windows) > 1:
            self._weights = [upload(w, noise.device) for w in make_weights(self._windows)]
        self._levels = upload(compute_evaluation_sigmas(sigmas, solver), noise.device)
        self._times: TimeModulation | None = None
        self._num_guided_steps = (
            count_guided_steps(sigmas, guidance_interval) if guidance_scale > 1 else 0
        )
        self._path = solve(noise, sigmas, solver, self._num_guided_steps)
        self.latents: Tensor | None = None
        self.point: SolverPoint | None = next(self._path)

    @property
    def num_tokens(self) -> int:
        """Latent frames of the next part, of all sounds and halves of guidance."""
        window = self._windows[self._next_window]
        is_guided = self._guidance_scale > 1 and (
            self.point is None or self.point.step < self._num_guided_steps
        )
        return (2 if is_guided else 1) * self._num_variations * (window.stop - window.start)

    def prepare_part(self) -> EvaluationPart:
        """Return this request's part of the next evaluation; call only before the end.

        It is the part of one window. Called again before `advance`, it returns the same.

        At every `TIMES_AT_ONCE`th evaluation it computes the time modulations of the next ones.
        """
        assert self.point is not None
        if self._guidance_scale > 1 and self.point.step >= self._num_guided_steps:
            self._end_guidance()
        row = self.point.index % TIMES_AT_ONCE
        if (row == 0 and self._next_window == 0) or self._times is None:
            first = self.point.index - row
            with use_adapters(self._whole):
                self._times = self._dit.make_time_modulation(
                    self._levels[first : first + TIMES_AT_ONCE]
                )
        window = self._windows[self._next_window]
        return EvaluationPart(
            path_id=self._path_ids[self._next_window],
            latents=self.point.latents[..., window.start - self._first : window.stop - self._first],
            time=self._times[row : row + 1],
            context=self._contexts[self._next_window],
            guidance_scale=self._guidance_scale,
            adapters=self._adapters,
        )

    def advance(self, velocity: Tensor) -> None:
        """Take the velocity, in the shape of its latents, of the part that was prepared last."""
        if len(self._windows) > 1:
            whole = self._add(velocity)
            if whole is None:
                return
            velocity = whole
        if self._kept is not None:
            velocity = torch.where(self._kept.frames, self._kept.velocity, velocity.float())
        try:
            self.point = self._path.send(velocity)
        except StopIteration as stop:
            self.point, self.latents = None, stop.value

    def _add(self, velocity: Tensor) -> Tensor | None:
        """Blend a window's velocity in; returns the whole velocity after the last window."""
        assert self.point is not None
        window = self._windows[self._next_window]
        if self._blend is None:
            self._blend = torch.zeros_like(self.point.latents)
        place = slice(window.start - self._first, window.stop - self._first)
        self._blend[..., place] += self._weights[self._next_window] * velocity
        self._next_window += 1
        if self._next_window < len(self._windows):
            return None
        whole, self._blend, self._next_window = self._blend, None, 0
        return whole

    def _end_guidance(self) -> None:
        self._path_ids = [next(_path_ids) for _ in self._windows]
        self._guidance_scale = 1.0
        if any(context.packing is not None for context in self._contexts):
            self._contexts = self._make_contexts()  # layers with different words share a row
        else:
            count = self._num_variations
            self._contexts = [context.select_last(count) for context in self._contexts]

    def _make_contexts(self) -> list[DiTContext]:
        """Return the context of each window."""
        with use_adapters(self._whole):
            return [
                make_clip_context(
                    self._dit,
                    [cut_conditions(layer, window) for layer in self._layers],
                    self._num_variations // len(self._layers),
                    guided=self._guidance_scale > 1,
                )
                for window in self._windows
            ]


def make_clip_context(
    dit: FoleyDiT,
    conditions: SoundConditions,
    num_variations: int,
    *,
    guided: bool,
) -> DiTContext:
    """Return the transformer's context of the sounds of one clip or prompt.

    Args:
        dit: on the device of the conditions.
        conditions: of the clip, or of the prompts alone; or those of several layers.
        num_variations: sounds of each layer, at least 1.
        guided: whether to add the unconditional half; the items of all layers come first.
    """
    contexts = [_make_halves(dit, layer, guided=guided) for layer in _list_layers(conditions)]
    halves = [half for column in zip(*contexts, strict=True) for half in column]
    return DiTContext.concatenate([half for half in halves for _ in range(num_variations)])


def _list_layers(conditions: SoundConditions) -> Sequence[Conditions | TextConditions]:
    return conditions if isinstance(conditions, Sequence) else [conditions]


def _make_halves(
    dit: FoleyDiT, conditions: Conditions | TextConditions, *, guided: bool
) -> list[DiTContext]:
    """Return the context of one sound: the unconditional half, if it is guided, and the other one.

    Source: specification, section 4 (guidance).
    """
    text, num_latents = conditions.text_tokens, conditions.num_latents
    if isinstance(conditions, TextConditions):
        halves = [
            dit.make_empty_context(conditions.num_visual, conditions.num_sync, row, num_latents)
            for row in (text[:2] if guided else text[1:2]).split(1)
        ]
    else:
        visual, sync = conditions.visual_tokens[None], conditions.sync_tokens[None]
        if guided:
            halves = [*dit.make_guidance_contexts(visual, sync, text[:2], num_latents)]
        else:
            halves = [dit.make_context(visual, sync, text[1:2], num_latents)]
    if conditions.regions:
        halves = _split_regions(dit, conditions, halves)
    return halves


def _split_regions(
    dit: FoleyDiT, conditions: Conditions | TextConditions, halves: Sequence[DiTContext]
) -> list[DiTContext]:
    """Return the halves with their regions, each of which hears its own text."""
    keys, values = dit.project_prompts(conditions.text_tokens)  # [L, B, T, H, D]
    num_text = keys.shape[2]
    regions = Regions(
        tuple(Lengths(r.num_latents, r.num_visual, num_text) for r in conditions.regions),
        # Without a picture there is no synchrony to keep, and steady sounds would leak.
        are_apart=isinstance(conditions, TextConditions),
    )
    heard = [region.text_row for region in conditions.regions]
    negative = [region.negative_row for region in conditions.regions]
    rows = [heard] if len(halves) == 1 else [negative, heard]
    return [
        half.split(regions, keys[:, row], values[:, row])
        for half, row in zip(halves, rows, strict=True)
    ]

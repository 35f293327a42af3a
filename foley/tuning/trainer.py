"""The training loop of an adapter. A training that is killed goes on as if it had not been.

Every draw of a step depends on the seed and the step alone, and the state is saved as a whole, so
the result after a kill is that without it: to the bit on a CPU.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foley.atomic import atomic_path
from foley.errors import ModelError, ParameterError
from foley.models.adapters import LowRank, add_hooks
from foley.models.dit import FoleyDiT
from foley.tuning.examples import Example
from foley.tuning.loss import (
    KEPT_SHARE,
    UNCONDITIONAL_SHARE,
    TrainedAdapter,
    checkpoint_blocks,
    compute_loss,
    draw_sigmas,
)
from foley.tuning.team import Team

STATE_FILE = "state.pt"
# Noise levels at which the validation clips are measured, always with the same noise.
_VALIDATION_SIGMAS = (0.2, 0.45, 0.7, 0.9)
# A validation counts as better from this share on.
_LEAST_GAIN = 1e-3
_WARM_UP_STEPS = 20
_LAST_RATE = 0.02  # of the largest one


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a training does; the defaults suit a few dozen clips.

    Attributes:
        rank: R, 1 to 512.
        targets: a key of `foley.tuning.loss.TARGETS`.
        steps: at most.
        batch_clips: clips of a step.
        rate: largest learning rate.
        kept_share: of the clips of a step, those with a prompt for something else.
        seed: of everything that is drawn.
        validate_every: steps between two validations, after each of which the state is saved.
        patience: validations without a gain after which the training ends.
    """

    rank: int = 16
    targets: str = "all"
    steps: int = 1000
    batch_clips: int = 4
    rate: float = 1e-3
    kept_share: float = KEPT_SHARE
    seed: int = 0
    validate_every: int = 50
    patience: int = 8


@dataclass
class History:
    """What a training has done.

    Attributes:
        training: step, and the mean loss of the steps since the last entry.
        validation: step, and the loss of the validation clips; the first one is the model's own.
        seconds: of work, without the time between a kill and the next start.
        ended_early: whether the validation had stopped getting better.
    """

    training: list[tuple[int, float]] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0
    ended_early: bool = False

    @property
    def best(self) -> tuple[int, float]:
        """Step and loss of the best validation, whose adapter is kept."""
        return min(self.validation, key=lambda entry: entry[1])


@dataclass(frozen=True)
class TrainingProgress:
    """How far a training is.

    Attributes:
        step: steps that are done.
        num_steps: at most.
        loss: of the steps since the last report.
        validation_loss: the last one.
        seconds_left: an estimate, without an early end.
    """

    step: int
    num_steps: int
    loss: float
    validation_loss: float
    seconds_left: float


OnTrainingProgress = Callable[[TrainingProgress], None]
MakeOptimizer = Callable[[list[nn.Parameter], float], torch.optim.Optimizer]


def make_adamw(parameters: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """Return the optimiser that won the comparison on `tiny`, see docs/guides/training.md.

    Args:
        parameters: matrices.
        rate: largest learning rate.
    """
    return torch.optim.AdamW(parameters, rate, betas=(0.9, 0.99), weight_decay=0.01)


class Trainer:
    """Trains an adapter on examples.

    Args:
        dit: on its device; its own weights stay as they are.
        preset_name: of the model.
        examples: to learn from.
        validation: to measure on.
        recipe: what to do.
        folder: for the state; a state there is gone on with.
        kept: clips with prompts for something else, for which the model is not to change.
        make_optimizer: of the adapter's matrices.
        team: the processes that train together.
        checkpointed: whether blocks are computed again in the backward pass, which saves memory.

    Raises:
        ParameterError: the folder holds the state of another training, or a step has fewer clips
            than there are processes.
    """

    def __init__(
        self,
        dit: FoleyDiT,
        preset_name: str,
        examples: Sequence[Example],
        validation: Sequence[Example],
        recipe: Recipe,
        folder: Path,
        *,
        kept: Sequence[Example] = (),
        make_optimizer: MakeOptimizer = make_adamw,
        team: Team | None = None,
        checkpointed: bool,
    ) -> None:
        self._team = team = team or Team()
        if min(recipe.batch_clips, len(examples)) < team.size:
            raise ParameterError(
                f"a step has {min(recipe.batch_clips, len(examples))} clips for {team.size} "
                "processes; raise --batch, or start fewer"
            )
        self._dit, self._preset_name = dit, preset_name
        self._examples, self._validation, self._kept = examples, validation, kept
        self._recipe, self._path = recipe, folder / STATE_FILE
        dit.requires_grad_(False)
        add_hooks(dit)
        if checkpointed:
            checkpoint_blocks(dit)
        device = examples[0].latents.device
        self.adapter = TrainedAdapter(dit, recipe.rank, recipe.targets, recipe.seed).to(device)
        self._optimizer = make_optimizer(list(self.adapter.parameters()), recipe.rate)
        self.history = History()
        self._step = 0
        self._best = self._copy()
        self._losses: list[Tensor] = []
        self._fingerprint = json.dumps(
            [
                asdict(recipe),
                preset_name,
                len(examples),
                len(validation),
                _sum_up([*examples, *kept]),
            ]
        )
        if self._path.is_file():
            self._resume(device)

    def run(self, on_progress: OnTrainingProgress = lambda progress: None) -> dict[str, LowRank]:
        """Train to the end; returns the matrices of the best validation.

        Args:
            on_progress: called after each validation; an error that it raises ends the work, which
                can be gone on with.

        Raises:
            ModelError: the loss is not finite.
        """
        recipe = self._recipe
        if not self.history.validation:
            self.history.validation.append((0, self._validate()))
        began, done = time.monotonic(), self._step
        while self._step < recipe.steps and not self.history.ended_early:
            self._losses.append(self.train_step(self._step))
            self._step += 1
            if self._step % recipe.validate_every and self._step < recipe.steps:
                continue
            self._end_period()
            now = time.monotonic()
            self.history.seconds += now - began
            each = (now - began) / (self._step - done)
            self._save()
            on_progress(
                TrainingProgress(
                    step=self._step,
                    num_steps=recipe.steps,
                    loss=self.history.training[-1][1],
                    validation_loss=self.history.validation[-1][1],
                    seconds_left=each * (recipe.steps - self._step),
                )
            )
            began, done = time.monotonic(), self._step
        return self.adapter.list_layers(self._best)

    def train_step(self, step: int) -> Tensor:
        """Do one step; returns its loss.

        Args:
            step: its number, from 0.
        """
        recipe = self._recipe
        generator = torch.Generator().manual_seed((recipe.seed << 32) + step)
        count = min(recipe.batch_clips, len(self._examples))
        chosen = torch.randperm(len(self._examples), generator=generator)[:count].tolist()
        chances = torch.rand(count, generator=generator)
        dropped = (chances < UNCONDITIONAL_SHARE).tolist()
        kept = [bool(self._kept) and c > 1 - recipe.kept_share for c in chances.tolist()]
        others = torch.randint(max(len(self._kept), 1), (count,), generator=generator).tolist()
        loss = compute_loss(
            self._dit,
            self.adapter,
            [
                self._kept[other] if is_kept else self._examples[i]
                for i, other, is_kept in zip(chosen, others, kept, strict=True)
            ],
            draw_sigmas(self._preset_name, count, generator),
            generator,
            unconditional=dropped,
            kept=kept,
            mine=self._team.share(count),
        )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        loss = loss.detach().clone()
        gradients = [p.grad for p in self.adapter.parameters() if p.grad is not None]
        self._team.add_up([*gradients, loss])
        torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), 1.0)
        for group in self._optimizer.param_groups:
            group["lr"] = _compute_rate(step, recipe)
        self._optimizer.step()
        return loss

    def _validate(self) -> float:
        """Return the loss of the validation clips, with the same noise at each call."""
        total = self._examples[0].latents.new_zeros(())
        with torch.no_grad():
            for index in self._team.share(len(self._validation)):
                example = self._validation[index]
                generator = torch.Generator().manual_seed(index)
                count = len(_VALIDATION_SIGMAS)
                loss = compute_loss(
                    self._dit,
                    self.adapter,
                    [example] * count,
                    torch.tensor(_VALIDATION_SIGMAS),
                    generator,
                    unconditional=[False] * count,
                )
                total += loss
        self._team.add_up([total])
        return float(total) / len(self._validation)

    def _end_period(self) -> None:
        """Measure, and keep what is best."""
        history, recipe = self.history, self._recipe
        history.training.append((self._step, float(torch.stack(self._losses).mean())))
        self._losses.clear()
        best = history.best[1]
        history.validation.append((self._step, self._validate()))
        for loss in (history.training[-1][1], history.validation[-1][1]):
            if not loss < float("inf"):
                raise ModelError(
                    f"the loss at step {self._step} is {loss}; lower the rate ({recipe.rate:g}), "
                    "or check the clips"
                )
        if history.validation[-1][1] < best:
            self._best = self._copy()
        losses = [loss for _, loss in history.validation]
        if len(losses) > recipe.patience:
            before = min(losses[: -recipe.patience])
            history.ended_early = min(losses[-recipe.patience :]) > (1 - _LEAST_GAIN) * before

    def _copy(self) -> dict[str, Tensor]:
        return {k: v.detach().cpu().clone() for k, v in self.adapter.state_dict().items()}

    def _save(self) -> None:
        if not self._team.leads:
            return
        state = {
            "fingerprint": self._fingerprint,
            "step": self._step,
            "adapter": self.adapter.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "best": self._best,
            "history": asdict(self.history),
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self._path) as temporary:
            torch.save(state, temporary)

    def _resume(self, device: torch.device) -> None:
        state: dict[str, Any] = torch.load(self._path, map_location=device, weights_only=True)
        if state["fingerprint"] != self._fingerprint:
            raise ParameterError(
                f"{self._path} is the state of a training with other clips or options; use those, "
                "or name another folder with --out"
            )
        self._step = state["step"]
        self.adapter.load_state_dict(state["adapter"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._best = {key: tensor.cpu() for key, tensor in state["best"].items()}
        history = state["history"]
        for name in ("training", "validation"):
            history[name] = [(step, loss) for step, loss in history[name]]
        self.history = History(**history)


def _compute_rate(step: int, recipe: Recipe) -> float:
    """Return the learning rate: a short warm-up, then half a cosine."""
    share = torch.pi * step / recipe.steps
    cosine = 0.5 * (1 + torch.cos(torch.tensor(share)).item())
    warm = min(1.0, (step + 1) / _WARM_UP_STEPS)
    return recipe.rate * warm * (_LAST_RATE + (1 - _LAST_RATE) * cosine)


def _sum_up(examples: Sequence[Example]) -> list[float]:
    """Return numbers that tell one list of examples from another."""
    return [round(float(example.latents.double().abs().sum()), 3) for example in examples]

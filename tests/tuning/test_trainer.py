"""Training an adapter at toy width: it learns, and a kill changes nothing."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from foley.errors import ParameterError
from foley.models.adapters import add_hooks
from foley.models.dit import FoleyDiT
from foley.tuning.examples import Example
from foley.tuning.kept import PROMPTS, choose_prompts
from foley.tuning.loss import TrainedAdapter, checkpoint_blocks, compute_loss, draw_sigmas
from foley.tuning.report import draw_curves
from foley.tuning.team import Team
from foley.tuning.trainer import (
    _VALIDATION_SIGMAS,
    STATE_FILE,
    History,
    Recipe,
    Trainer,
    TrainingProgress,
)
from foley.types import Conditions
from tests.toys import toy_components

RECIPE = Recipe(rank=4, steps=12, batch_clips=2, rate=3e-3, validate_every=4)


def example(seed: int, num_latents: int = 20) -> Example:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    conditions = Conditions(
        visual_tokens=draw(4 + seed % 3, 24),
        sync_tokens=draw(16, 16),
        text_tokens=draw(2, 4, 16),
        num_latents=num_latents,
    )
    pattern = torch.linspace(-1, 1, 8)[:, None].expand(8, num_latents)
    return Example(conditions, 0.1 * draw(8, num_latents) + 2 * pattern)


def trainer(
    folder: Path,
    recipe: Recipe = RECIPE,
    *,
    checkpointed: bool = False,
    team: Team | None = None,
) -> Trainer:
    examples = [example(seed, num_latents=20 + 5 * (seed % 2)) for seed in range(4)]
    dit = toy_components().dit
    return Trainer(
        dit, "toy", examples, [example(9)], recipe, folder, team=team, checkpointed=checkpointed
    )


class KilledError(Exception):
    """Ends a training as a kill does."""


@pytest.mark.long
def test_it_learns_and_what_it_learnt_is_what_is_served(tmp_path: Path) -> None:
    recipe = Recipe(rank=4, steps=60, batch_clips=2, rate=2e-2, validate_every=20)
    training = trainer(tmp_path, recipe)
    layers = training.run()
    (_, first), (_, best) = training.history.validation[0], training.history.best
    assert best < 0.9 * first
    # Put into the weights, the matrices give the loss that the trainer measured.
    dit = toy_components().dit
    for name, (down, up) in layers.items():
        weight = dit.get_parameter(f"{name}.weight")
        weight.data += torch.einsum("ckr,rf->fck", down, up).view(weight.shape)
    levels = torch.tensor(_VALIDATION_SIGMAS)
    generator = torch.Generator().manual_seed(0)
    examples, never = [example(9)] * 4, [False] * 4
    with torch.no_grad():
        loss = compute_loss(dit, None, examples, levels, generator, unconditional=never)
    assert float(loss) == pytest.approx(best, rel=1e-4)
    dit = training._dit
    assert not any(parameter.requires_grad for parameter in dit.parameters())


@pytest.mark.long
def test_a_kill_changes_nothing(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole").run()

    def kill(progress: TrainingProgress) -> None:
        if progress.step == 8:
            raise KilledError

    with pytest.raises(KilledError):
        trainer(tmp_path / "killed").run(kill)
    # Killed again, between two saves.
    again = trainer(tmp_path / "killed")
    again.train_step(8)
    resumed = trainer(tmp_path / "killed")
    layers = resumed.run()
    assert [step for step, _ in resumed.history.validation] == [0, 4, 8, 12]
    for name, layer in whole.items():
        assert all(map(torch.equal, layer, layers[name])), name


def test_the_state_of_another_training_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, Recipe(rank=4, steps=1, validate_every=1)).run()
    assert (tmp_path / STATE_FILE).is_file()
    with pytest.raises(ParameterError, match="other clips or options"):
        trainer(tmp_path, Recipe(rank=4, steps=2, validate_every=1))


def test_a_training_that_gets_no_better_ends_early(tmp_path: Path) -> None:
    recipe = Recipe(rank=4, steps=50, rate=0.0, validate_every=1, patience=3)
    training = trainer(tmp_path, recipe)
    training.run()
    assert training.history.ended_early
    assert training.history.validation[-1][0] == 3


def test_checkpoints_of_blocks_give_the_same_gradients() -> None:
    def gradients(dit: FoleyDiT) -> list[Tensor]:
        adapter = TrainedAdapter(dit.requires_grad_(False), 4, "all", 0)
        for up in adapter.up.values():
            torch.nn.init.constant_(up, 0.02)
        generator = torch.Generator().manual_seed(0)
        loss = compute_loss(
            dit,
            adapter,
            [example(0), example(1)],
            torch.tensor([0.3, 0.8]),
            generator,
            unconditional=[False, True],
        )
        loss.backward()
        return [parameter.grad for parameter in adapter.parameters() if parameter.grad is not None]

    plain, checkpointed = toy_components().dit, toy_components().dit
    for dit in (plain, checkpointed):
        add_hooks(dit)
    checkpoint_blocks(checkpointed)
    first, second = gradients(plain), gradients(checkpointed)
    assert len(first) == len(second) > 20
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(other, one)


def test_noise_levels_follow_the_law_of_the_base() -> None:
    levels = draw_sigmas("tiny", 4000, torch.Generator().manual_seed(0))
    assert 0 < levels.min() < 0.02
    assert 0.98 < levels.max() < 1
    assert levels.mean() == pytest.approx(0.55, abs=0.02)  # tiny prefers high levels
    other = draw_sigmas("xxl", 4000, torch.Generator().manual_seed(0))
    assert other.mean() == pytest.approx(0.5, abs=0.02)


def test_curves_stay_in_their_picture() -> None:
    history = History(training=[(4, 2.0), (8, 1.0)], validation=[(0, 3.0), (8, 1.5)])
    svg = draw_curves(history)
    assert svg.count("<polyline") == 2
    flat = draw_curves(History(validation=[(0, 1.0)]))
    assert "nan" not in svg + flat


def test_for_other_prompts_the_models_own_velocity_is_learnt() -> None:
    dit = toy_components().dit.requires_grad_(False)
    add_hooks(dit)
    adapter = TrainedAdapter(dit, 4, "all", 0)

    def loss(kept: bool, unconditional: bool) -> float:
        generator = torch.Generator().manual_seed(0)
        made = compute_loss(
            dit,
            adapter,
            [example(0), example(1)],
            torch.tensor([0.3, 0.8]),
            generator,
            unconditional=[unconditional] * 2,
            kept=[kept] * 2,
        )
        return float(made.detach())

    # An adapter that changes nothing has nothing to learn there. Measured: at most 3e-14.
    assert loss(kept=True, unconditional=False) < 1e-9
    assert loss(kept=False, unconditional=True) < 1e-9
    assert loss(kept=False, unconditional=False) > 1
    for up in adapter.up.values():
        torch.nn.init.constant_(up, 0.05)
    assert loss(kept=True, unconditional=False) > 1e-6


def test_other_prompts_name_nothing_that_is_taught() -> None:
    chosen = choose_prompts(["Hitting GLASS, hard.", "rain"], 60)
    assert len(chosen) == 60
    assert {"metal", "wind blowing", ""} <= set(chosen)
    assert not {"glass clinks", "rain", "hitting wood"} & set(chosen)
    assert "" not in choose_prompts(["rain", ""], 60)  # a clip without a prompt teaches it
    assert choose_prompts([" ".join(PROMPTS), ""], 4) == []


def test_the_word_that_all_prompts_share_is_replaced() -> None:
    chosen = choose_prompts(["a rubber ball", "Hitting rubber."], 40)
    assert {"hitting plastic", "a wooden ball", "plastic", "hitting wood", ""} <= set(chosen)
    assert not any("rubber" in prompt for prompt in chosen)
    assert sum(prompt in PROMPTS for prompt in chosen) >= 20

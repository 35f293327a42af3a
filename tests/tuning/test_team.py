"""Processes that train one adapter together, on one CPU."""

import os
from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from foley.errors import ParameterError
from foley.tuning.team import Team, join_team
from foley.tuning.trainer import STATE_FILE, Recipe
from runners.process import find_free_port
from tests.tuning.test_trainer import trainer

SIZE = 2
RECIPE = Recipe(rank=4, steps=6, batch_clips=3, rate=3e-3, validate_every=3)


def _member(rank: int, port: int, folder: str) -> None:
    # What torchrun and accelerate launch set.
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(SIZE),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }
    torch.set_num_threads(1)
    with join_team(torch.device("cpu")) as (team, device):
        assert (team.rank, team.size, team.leads, device.type) == (rank, SIZE, rank == 0, "cpu")
        seen = Path(folder) / "led"
        with team.leader_first():
            assert seen.exists() != team.leads
            seen.touch()
        training = trainer(Path(folder) / f"state{rank}", RECIPE, team=team)
        layers = training.run()
    torch.save((layers, training.history.validation), Path(folder) / f"{rank}.pt")


@pytest.mark.soak
def test_a_team_learns_what_one_process_learns(tmp_path: Path) -> None:
    multiprocessing.spawn(_member, (find_free_port(), str(tmp_path)), nprocs=SIZE)
    alone = trainer(tmp_path / "alone", RECIPE)
    wanted = alone.run()
    made = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(SIZE)]
    assert made[0][1] == made[1][1]  # all take the same decisions
    for (_, loss), (_, other) in zip(alone.history.validation, made[0][1], strict=True):
        assert loss == pytest.approx(other, rel=1e-5)
    for name, layer in wanted.items():
        for one, first, second in zip(layer, made[0][0][name], made[1][0][name], strict=True):
            assert torch.equal(first, second)
            # Gradients are summed in another order, which AdamW makes larger where they are small.
            torch.testing.assert_close(first, one, rtol=0, atol=1e-3)
    assert (tmp_path / "state0" / STATE_FILE).is_file()
    assert not (tmp_path / "state1").exists()  # the first one alone writes


def test_a_step_has_a_clip_for_each_process(tmp_path: Path) -> None:
    team = Team()
    team.size = 3
    with pytest.raises(ParameterError, match="2 clips for 3 processes; raise --batch"):
        trainer(tmp_path, Recipe(rank=4, batch_clips=2), team=team)


def test_a_process_alone_does_everything() -> None:
    with join_team(torch.device("cpu")) as (team, device):
        assert (team.leads, team.size, device) == (True, 1, torch.device("cpu"))
        assert list(team.share(3)) == [0, 1, 2]
        value = torch.ones(2)
        team.add_up([value])
        assert torch.equal(value, torch.ones(2))

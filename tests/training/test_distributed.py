"""Processes that train together, on one CPU."""

import os
from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from runners.process import find_free_port
from training.distributed import ProcessGroup

SIZE = 2


def _member(rank: int, port: int, folder: str) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(SIZE),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    group = ProcessGroup.join()
    gradients = [torch.full((3, 2), float(rank)), torch.full((5,), 2.0 * rank)]
    group.average(gradients)
    torch.save((group, gradients, group.mean(rank)), Path(folder) / f"{rank}.pt")
    group.leave()


@pytest.mark.long
@pytest.mark.skipif(torch.cuda.is_available(), reason="members would each take a GPU")
def test_members_go_on_with_the_mean_of_gradients_and_of_whole_numbers(tmp_path: Path) -> None:
    multiprocessing.spawn(_member, (find_free_port(), str(tmp_path)), nprocs=SIZE)
    for rank in range(SIZE):
        group, (first, second), mean = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert (group.rank, group.size, group.is_main) == (rank, SIZE, rank == 0)
        assert torch.equal(first, torch.full((3, 2), 0.5))
        assert torch.equal(second, torch.full((5,), 1.0))
        assert mean == 0.5


def test_alone_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    group = ProcessGroup.join()
    gradients = [torch.arange(3.0)]
    group.average(gradients)
    assert torch.equal(gradients[0], torch.arange(3.0))
    assert group.is_main
    assert group.mean(3) == 3

"""The checking program itself: it must be able to fail."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.parity.check import main, relative_error, run
from tests.parity.fixtures import Fixture

GOLDEN = Path(__file__).parents[1] / "assets" / "golden"


def copy_changed(name: str, key: str, destination: Path) -> Path:
    """A golden file with one value of one tensor moved by a thousandth of the largest."""
    fixture = Fixture(GOLDEN / name)
    tensor = fixture.tensors[key].clone()
    tensor.view(-1)[0] += 1e-3 * tensor.abs().max()
    path = destination / name
    save_file(fixture.tensors | {key: tensor}, path, metadata=fixture.metadata)
    return path


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("dit_tiny.safetensors", "out.x"),
        ("dac_tiny.safetensors", "dec.out.audio"),
        ("schedules.safetensors", "n10_shift3.sigmas"),
        ("siglip_tiny.safetensors", "out.pooled"),
    ],
)
def test_a_changed_expectation_fails(name: str, key: str, tmp_path: Path) -> None:
    passed, line = run(copy_changed(name, key, tmp_path))
    assert not passed
    assert "over the limit" in line


def test_a_changed_weight_fails(tmp_path: Path) -> None:
    path = copy_changed("dit_tiny.safetensors", "weights.single_blocks.0.linear1.bias", tmp_path)
    assert not run(path)[0]


def test_error_of_other_shapes_and_nan_is_infinite() -> None:
    assert relative_error(torch.zeros(2), torch.zeros(3)) == float("inf")
    assert relative_error(torch.tensor([float("nan")]), torch.ones(1)) == float("inf")


@pytest.mark.parametrize("arguments", [[], ["/nowhere"]])
def test_wrong_usage_exits_with_two(arguments: list[str]) -> None:
    assert main(arguments) == 2


def test_a_folder_that_agrees_exits_with_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(GOLDEN / "schedules.safetensors", tmp_path)
    assert main([str(tmp_path)]) == 0
    assert "1 of 1 files pass" in capsys.readouterr().out


def test_unknown_file_fails_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "mystery.safetensors")
    assert main([str(tmp_path)]) == 1
    assert "0 of 1 files pass" in capsys.readouterr().out

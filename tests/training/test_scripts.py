"""Every script of the trainings can be started: a run elsewhere must not end at its imports."""

import importlib
import sys
from pathlib import Path

import pytest

TRAINING = Path(__file__).parents[2] / "training"
SCRIPTS = [path.stem for path in sorted(TRAINING.glob("*.py")) if "__main__" in path.read_text()]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_tells_its_options(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"training.{name}")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    assert "--out" in capsys.readouterr().out

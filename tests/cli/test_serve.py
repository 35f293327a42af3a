"""The environment in which `foley serve` starts the service."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from foley.cli.serve import make_home
from foley.errors import ConfigError
from tests.server import ROOT

RANDOM_USER = 54_321
SCRIPT = f"""
import os
from foley.cli.serve import make_home
os.setuid({RANDOM_USER})
print(make_home())
"""


def open_to_all(folder: Path) -> None:
    """Let other users into a folder of pytest's, which are for root alone."""
    folder.chmod(0o777)
    for parent in folder.parents:
        if parent.stat().st_mode & 0o777 == 0o700 and "pytest-" in str(parent):
            parent.chmod(0o755)


def run_script(environment: dict[str, str]) -> dict[str, str]:
    """Return what `make_home` returns to a user without an account."""
    printed = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert printed.returncode == 0, printed.stderr
    found: dict[str, str] = ast.literal_eval(printed.stdout)
    return found


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user without an account")
def test_a_user_without_an_account_gets_a_home_and_a_name(tmp_path: Path) -> None:
    open_to_all(tmp_path)
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    del environment["HOME"]
    home = tmp_path / f"foley-home-{RANDOM_USER}"
    assert run_script(environment) == {"HOME": str(home), "LOGNAME": f"uid-{RANDOM_USER}"}
    assert home.stat().st_uid == RANDOM_USER
    assert home.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="root alone may not be kept out of a folder")
@pytest.mark.parametrize("home", ["home", "none/of/these"])
def test_a_home_that_cannot_be_written_keeps_all_but_the_store(tmp_path: Path, home: str) -> None:
    open_to_all(tmp_path)
    (tmp_path / "home").mkdir(mode=0o755)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o777)
    tmp_path.chmod(0o755)
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp"), "HOME": str(tmp_path / home)}
    environment.pop("BENTOML_HOME", None)
    store = tmp_path / "tmp" / f"foley-home-{RANDOM_USER}" / "bentoml"
    assert run_script(environment) == {"BENTOML_HOME": str(store)}
    os.chown(tmp_path / "home", RANDOM_USER, RANDOM_USER)
    assert run_script({**environment, "HOME": str(tmp_path / "home")}) == {}
    assert run_script({**environment, "BENTOML_HOME": "/elsewhere"}) == {}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make another user's folder")
def test_a_home_that_somebody_else_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / f"foley-home-{os.getuid()}"
    home.mkdir()
    os.chown(home, RANDOM_USER, RANDOM_USER)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(ConfigError, match="set HOME to a folder of your own"):
        make_home()

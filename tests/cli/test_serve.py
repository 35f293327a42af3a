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


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user without an account")
def test_a_user_without_an_account_gets_a_home_and_a_name(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents:  # pytest's own are for root alone
        if folder.stat().st_mode & 0o777 == 0o700 and "pytest-" in str(folder):
            folder.chmod(0o755)
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    del environment["HOME"]
    printed = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    home = tmp_path / f"foley-home-{RANDOM_USER}"
    assert ast.literal_eval(printed.stdout) == {"HOME": str(home), "LOGNAME": f"uid-{RANDOM_USER}"}
    assert home.stat().st_uid == RANDOM_USER
    assert home.stat().st_mode & 0o777 == 0o700


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

"""The environment in which `foley serve` starts the service."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
    for folder in list(tmp_path.parents)[:2]:
        folder.chmod(0o755)  # pytest's own are for root alone
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    del environment["HOME"]
    printed = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    home = tmp_path / f"foley-home-{RANDOM_USER}"
    assert ast.literal_eval(printed.stdout) == {"HOME": str(home), "LOGNAME": f"uid-{RANDOM_USER}"}
    assert home.stat().st_uid == RANDOM_USER
    assert home.stat().st_mode & 0o777 == 0o700

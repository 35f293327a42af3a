"""The API keys stay with the launcher, which hands them to the processes that it starts."""

import os
import subprocess
import sys

import pytest

from tests.server import ROOT

PR_GET_DUMPABLE = 3


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_forgetting_reaches_what_proc_shows() -> None:
    program = """
import os
from pathlib import Path
from runners.settings import Settings, forget_secrets
before = Path("/proc/self/environ").read_bytes()
settings = Settings()
forget_secrets()
after = Path("/proc/self/environ").read_bytes()
print(b"sk-1" in before, b"sk-1" in after, "FOLEY_API_KEYS" in os.environ, settings.keys)
"""
    environment = {**os.environ, "FOLEY_API_KEYS": "sk-1"}
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert found.stdout.strip() == "True False False ('sk-1',)", found.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_a_protected_process_is_not_dumpable() -> None:
    program = f"""
import ctypes
from runners.process import forbid_tracing
before = ctypes.CDLL(None).prctl({PR_GET_DUMPABLE})
forbid_tracing()
print(before, ctypes.CDLL(None).prctl({PR_GET_DUMPABLE}))
"""
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.split() == ["1", "0"], found.stderr

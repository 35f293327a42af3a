"""The API keys stay with the launcher, which hands them to the processes that it starts."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.server import ROOT, Server

KEY = "sk-secret-key-of-a-test"
PR_GET_DUMPABLE = 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("secrets"), {"FOLEY_API_KEYS": KEY})
    try:
        server.wait_until_ready()
        yield server
    finally:
        assert server.stop() == 0, server.log.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_worker_shows_a_key_in_its_environment(server: Server) -> None:
    workers = [process for process in server.family() if is_worker(process)]
    assert len(workers) >= 3  # API, GPU process, and the fork server
    for process in workers:
        environment = Path(f"/proc/{process.pid}/environ").read_bytes()
        assert KEY.encode() not in environment, process.cmdline()
    status = server.client.get("/v1/models").status_code
    assert (status, authorised(server)) == (401, 200)


def authorised(server: Server) -> int:
    headers = {"Authorization": f"Bearer {KEY}"}
    return server.client.get("/v1/models", headers=headers).status_code


def is_worker(process: psutil.Process) -> bool:
    words = " ".join(process.cmdline())
    return "--service-name" in words or "runners." in words


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

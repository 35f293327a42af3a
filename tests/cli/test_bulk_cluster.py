"""`foley bulk --address`: clusters that are not there, or not there yet."""

import contextlib
import io
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from foley.cli.app import main
from foley.cli.bulk import cluster
from foley.errors import ConnectionFailedError
from runners.process import find_free_port, find_free_ports
from tests.patience import is_within, scale, wait_until
from tests.server import ROOT

# Starts Ray below a path that is a file, until the first attempt has failed.
PROGRAM = """
import sys, threading, time
from pathlib import Path
from rich.console import Console
from foley.cli.bulk.cluster import connect

folder = Path(sys.argv[1])

class Mender(Console):
    def print(self, *parts, **options):
        super().print(*parts, **options)
        if folder.is_file():
            folder.unlink()

if __name__ == "__main__":
    connect("local", Mender(soft_wrap=True))
    import ray
    print("nodes", len(ray.nodes()), flush=True)
    ray.shutdown()
"""

# Of a cluster, whose workers need this package, and of a command that joins it. Ray would take a
# token of the user's home for one of them, and none for the other.
JOINING = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a path that is short enough for Ray's sockets, which that of a test is not."""
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def test_an_address_without_a_cluster_is_told_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "PAUSE_SECONDS", 0.01)
    address = f"127.0.0.1:{find_free_port()}"
    printed = io.StringIO()
    began = time.monotonic()
    with pytest.raises(ConnectionFailedError, match=f"Ray at {address} did not answer in 5"):
        cluster.connect(address, Console(file=printed, soft_wrap=True))
    assert is_within(time.monotonic() - began, 4)
    assert "Connection refused; attempt 2 of 5" in printed.getvalue().replace("[Errno 111] ", "")


def test_a_cluster_that_comes_late_is_reached() -> None:
    port = find_free_port()

    def listen() -> None:
        time.sleep(0.3)
        server.bind(("127.0.0.1", port))
        server.listen()

    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thread = threading.Thread(target=listen)
        with pytest.raises(ConnectionRefusedError):
            cluster._reach(f"127.0.0.1:{port}")
        thread.start()
        thread.join()
        cluster._reach(f"ray://127.0.0.1:{port}")
    cluster._reach("auto")


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_start_of_ray_that_failed_is_tried_again(tmp_path: Path, short_folder: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    folder = short_folder / "ray"
    folder.write_text("a file, below which Ray can make no folder")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(folder)}
    done = subprocess.run(
        [sys.executable, program, folder],
        env=environment,
        capture_output=True,
        text=True,
        timeout=scale(300),
    )
    assert "attempt 2 of 5" in done.stdout, done.stdout + done.stderr
    assert "nodes 1" in done.stdout, done.stdout + done.stderr


@pytest.fixture
def cluster_address(short_folder: Path) -> Iterator[str]:
    """The address of a Ray cluster of this machine, which was started apart from any command."""
    port, client_port = find_free_ports(2)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += ["--node-ip-address", "127.0.0.1", "--port", str(port), "--num-cpus", "2"]
    command += ["--ray-client-server-port", str(client_port), "--include-dashboard", "false"]
    command += ["--temp-dir", str(short_folder), "--disable-usage-stats"]
    command += ["--object-store-memory", str(100 * 2**20)]
    log = short_folder / "head.log"
    with log.open("w") as output:
        head = subprocess.Popen(
            command, env=JOINING, stdout=output, stderr=output, start_new_session=True
        )
        try:
            wait_until(
                lambda: "Ray runtime started" in log.read_text() or head.poll() is not None,
                120,
                what=log.read_text,
            )
            assert head.poll() is None, log.read_text()
            yield f"127.0.0.1:{port}"
        finally:
            below = [head, *psutil.Process(head.pid).children(recursive=True)]
            head.terminate()  # it ends what it started
            with contextlib.suppress(subprocess.TimeoutExpired):
                head.wait(scale(30))
            for process in below:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            head.wait()


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_cluster_that_runs_is_joined_and_left_running(
    tmp_path: Path, cluster_address: str
) -> None:
    rows = [{"duration_seconds": 0.5, "prompt": "rain", "seed": seed} for seed in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "foley.cli.app", "bulk", tmp_path / "rows.jsonl"]
    command += [tmp_path / "out", "--steps", "1", "--preset", "tiny"]
    command += ["--address", cluster_address, "--workers", "1"]
    for options, printed in ((["--limit", "2"], "2 rows done"), ([], "1 row done, 0 failed")):
        done = subprocess.run(
            [*command, *options],
            env=JOINING,
            capture_output=True,
            text=True,
            timeout=scale(300),
        )
        assert done.returncode == 0, done.stderr
        assert "1 workers on 1 machines" in done.stderr
        assert printed in done.stderr
    assert len(list((tmp_path / "out").glob("*.wav"))) == 3
    cluster._reach(cluster_address)


def test_a_cluster_without_ray_is_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    (tmp_path / "rows.jsonl").write_text('{"duration_seconds": 0.5, "prompt": "rain"}\n')
    command = ["foley", "bulk", str(tmp_path / "rows.jsonl"), str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*command, "--address", "127.0.0.1:6379"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 3
    assert "--address needs the extra 'bulk'" in capfd.readouterr().err

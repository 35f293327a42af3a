"""Run the service with the `tiny` preset on a free port of 127.0.0.1, for the other scripts."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from runners.process import find_free_port

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 600.0  # on a busy machine; a service that ends is seen at once
REQUEST_SECONDS = 300.0
STOP_SECONDS = 30.0


class LocalServiceError(Exception):
    """The service did not start or stop; the message is one line for the user."""


@contextlib.contextmanager
def run_service(log: Path) -> Iterator[httpx.Client]:
    """Start the service; yield a client once the service is ready; stop the service at the end.

    Args:
        log: receives the service's output; its folder must exist.

    Raises:
        LocalServiceError: the service does not become ready, or does not stop in time.
    """
    port = find_free_port()
    command = [sys.executable, "-m", "bentoml", "serve", "service:FoleyApi"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--timeout-graceful-shutdown", "10"]
    with tempfile.TemporaryDirectory() as home, log.open("wb") as output:
        environment = {
            **os.environ,
            "FOLEY_PRESET": "tiny",
            "FOLEY_DEVICE": "cpu",
            "FOLEY_GRPC_PORT": "0",
            "BENTOML_HOME": home,  # the usual folder holds counters of other services
            "BENTOML_DO_NOT_TRACK": "True",
        }
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the script only, which then stops the service
        )
        try:
            with httpx.Client(
                base_url=f"http://127.0.0.1:{port}", timeout=REQUEST_SECONDS, trust_env=False
            ) as client:
                _wait_until_ready(client, process, log)
                yield client
        finally:
            _stop(process)


def _wait_until_ready(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            lines = log.read_text(errors="replace").strip().splitlines() or ["it wrote no log"]
            raise LocalServiceError(f"the service ended before it was ready: {lines[-1]}")
        with contextlib.suppress(httpx.TransportError):
            response = client.get("/readyz", timeout=5.0)
            if response.status_code == 200:
                return
            error = response.json()["error"]
            if error["code"] != "not_ready":
                raise LocalServiceError(f"{error['message']}; see {log}")
        time.sleep(0.2)
    raise LocalServiceError(f"the service was not ready after {START_SECONDS:.0f} s; see {log}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()  # BentoML's launcher passes the signal on to its processes
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise LocalServiceError(f"the service did not stop in {STOP_SECONDS:.0f} s") from None

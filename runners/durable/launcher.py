"""Keep one executor running below the service.

    FoleyApi (any process) ── starts, watches ──► runners.durable.executor ── HTTP ──► FoleyApi

Every API process looks for an executor once a second and starts one if there is none. A lock in the
jobs' folder says whether there is one: the kernel drops it with the executor's process.
"""

import asyncio
import contextlib
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import structlog

from foley.processes import end_within
from runners.durable.executor_settings import ExecutorSettings
from runners.process import call_on_stop_signal, find_http_address

log = structlog.get_logger(__name__)

SOURCE_ROOT = Path(__file__).resolve().parents[2]
WATCH_SECONDS = 1.0
MAX_PAUSE_SECONDS = 30.0
SHORT_LIFE_SECONDS = 10.0  # an executor that ends sooner cannot start, and is started ever later
STOP_SECONDS = 3.0
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # to call one


class ExecutorLauncher:
    """Starts the executor of a folder whenever none runs.

    Args:
        lock: file that the executor holds locked.
        num_running: jobs that run at once; 0 for an executor that only keeps house.
        settings: what the executor is told.
    """

    def __init__(self, lock: Path, *, num_running: int, settings: ExecutorSettings) -> None:
        self._lock = lock
        self._options = ["--num-running", str(num_running)]
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch; needs the event loop. SIGTERM and SIGINT end the executor at once.

        Its requests would otherwise be waited for.
        """
        self._watching = asyncio.create_task(self._watch())
        call_on_stop_signal(self.begin_stop)

    def begin_stop(self) -> None:
        """Start no further executor, and ask the one of this process to end."""
        if self._watching is not None:
            self._watching.cancel()
        if self._process is not None:
            self._process.terminate()

    def close(self) -> None:
        """End the executor, if this process has started it."""
        self.begin_stop()
        if self._process is None:
            return
        end_within(self._process, STOP_SECONDS)
        _close_input(self._process)

    async def _watch(self) -> None:
        server = _describe_server()
        pause_seconds = WATCH_SECONDS
        started = time.monotonic()
        while True:
            if self._process is not None and (status := self._process.poll()) is not None:
                log.error("jobs_executor_ended", status=status)
                _close_input(self._process)
                self._process = None
                is_short = time.monotonic() - started < SHORT_LIFE_SECONDS
                pause_seconds = min(2 * pause_seconds, MAX_PAUSE_SECONDS) if is_short else 0.0
                await asyncio.sleep(pause_seconds)
            if self._process is None and self._start_if_missing(server):
                started = time.monotonic()
            await asyncio.sleep(WATCH_SECONDS)

    def _start_if_missing(self, server: str) -> bool:
        """Start an executor unless one runs, in whichever process; returns whether it did."""
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        else:
            command = [sys.executable, "-m", "runners.durable.executor", "--server", server]
            command += self._options
            # The kernel closes its standard input when this process ends; then it ends too.
            self._process = subprocess.Popen(
                command, cwd=SOURCE_ROOT, stdin=subprocess.PIPE, pass_fds=[descriptor]
            )
            assert self._process.stdin is not None
            # Not on the command line, which every user of the machine may read.
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(self._settings.model_dump_json().encode() + b"\n")
                self._process.stdin.flush()
            log.info("jobs_executor_starting", pid=self._process.pid)
            return True
        finally:
            os.close(descriptor)


def _close_input(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()


def _describe_server() -> str:
    """Return the address at which this machine reaches the service."""
    host, port = find_http_address()
    host = ANY_ADDRESS.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

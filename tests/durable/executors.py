"""Executors as processes of their own, as a service starts them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from runners.durable.executor_settings import ExecutorSettings
from tests.patience import wait_for_exit, wait_until
from tests.server import ROOT


@dataclass
class Executor:
    """A process that runs jobs.

    Attributes:
        process: of it.
        log: what it has written.
    """

    process: subprocess.Popen[bytes]
    log: Path

    def wait_for(self, event: str) -> None:
        """Wait until its log has an event."""
        wait_until(lambda: event in self.log.read_text(), 60, what=self.log.read_text)


@contextmanager
def run_executor(
    settings: ExecutorSettings, server: str, *, num_running: int = 2, prefix: tuple[str, ...] = ()
) -> Iterator[Executor]:
    """Yield an executor that runs, and kill it.

    Args:
        settings: what it is told.
        server: address of the API.
        num_running: jobs at once.
        prefix: command that starts it, such as of another network.
    """
    command = [*prefix, sys.executable, "-m", "runners.durable.executor", "--server", server]
    command += ["--num-running", str(num_running)]
    settings.folder.mkdir(exist_ok=True)
    path = settings.folder / "executor.log"
    with path.open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},  # the log is read while it runs
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    assert process.stdin is not None
    process.stdin.write(settings.model_dump_json().encode() + b"\n")
    process.stdin.flush()
    try:
        yield Executor(process, path)
    finally:
        process.kill()
        wait_for_exit(process, 30)
        process.stdin.close()

"""The service as a child process of the queue worker."""

import os
import subprocess
import sys
import threading

import structlog

from foley.processes import end_within
from runners.process import find_free_port

log = structlog.get_logger(__name__)

STOP_SECONDS = 40.0  # longer than the service's own grace for running requests


class ServiceProcess:
    """`foley serve` on a free port of 127.0.0.1. If it ends by itself, this process ends too.

    Attributes:
        url: address of the service.
    """

    def __init__(self) -> None:
        port = find_free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "foley.cli.app", "serve"]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        # In a session of its own it receives no signals of the terminal or the platform, so that
        # running jobs end before the service does.
        self._process = subprocess.Popen(command, start_new_session=True)
        self._stopping = False
        threading.Thread(target=self._watch, name="service-watch", daemon=True).start()

    def stop(self) -> None:
        """Stop the service after its running requests; kill it after `STOP_SECONDS`."""
        self._stopping = True
        self._process.terminate()
        end_within(self._process, STOP_SECONDS)

    def _watch(self) -> None:
        """End this process when the service ends: the platform then starts another worker."""
        status = self._process.wait()
        if not self._stopping:
            log.error("service_ended", exit_status=status)
            os._exit(1)

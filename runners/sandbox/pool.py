"""Run tasks on untrusted clips, each in a process with limits; the client of `fork_server`.

Neither torch nor av is imported here.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import structlog

from foley.errors import ServerError, VideoDecodeError, VideoTooCostlyError, error_of
from runners.sandbox.fork_server import Limits, request_line

log = structlog.get_logger(__name__)

REPLY_BYTES = 1024 * 1024
END_SECONDS = 5.0
COSTLY = "reading the clip takes more {} than allowed; send a shorter clip, or one of fewer pixels"


class Sandbox:
    """Does tasks, a few at once.

    Args:
        limits: of each task.
        environment: of the processes; without secrets, which a hostile clip might find.
        module: the program that forks.
    """

    def __init__(
        self,
        limits: Limits,
        environment: dict[str, str],
        module: str = "runners.sandbox.fork_server",
    ) -> None:
        self._limits = limits
        self._module = module
        self._environment = environment
        # More at once than there are cores would only make each of them later.
        self._slots = asyncio.Semaphore(max(2, os.cpu_count() or 1))
        self._starting = asyncio.Lock()
        self._closed = False
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    async def run(self, task: str, folder: Path, **arguments: Any) -> Any:
        """The outcome of a task of `runners.sandbox.tasks`. Cancelling kills its process.

        Raises:
            VideoTooCostlyError: it took more time or memory than allowed.
            VideoDecodeError: it ended its process, or failed while decoding as no clip should.
            ServerError: it failed otherwise, for want of room on disk for example.
            FoleyError: as the task.
        """
        async with self._slots:
            reply = await self._ask(task, folder, arguments)
            if reply is None:  # the forking process died meanwhile; a new one may be luckier
                reply = await self._ask(task, folder, arguments)
        return _outcome(task, reply or {"bug": "the forking process died twice"})

    async def start(self) -> None:
        """Return when tasks can be done at once; what they need takes seconds to import."""
        await self.run("nothing", Path())

    def close(self) -> None:
        """End the processes."""
        self._closed = True
        if self._control is not None:
            self._control.close()
        if self._server is not None:
            try:
                self._server.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()

    async def _ask(
        self, task: str, folder: Path, arguments: dict[str, Any]
    ) -> dict[str, Any] | None:
        """What a child says, or what is said of it; None when nobody says anything."""
        async with self._starting:
            if self._closed:
                raise ServerError("the service is ending")
            if self._server is None or self._server.poll() is not None:
                self._start()
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                assert self._control is not None
                socket.send_fds(self._control, [b"."], [theirs.fileno()])
            except OSError:
                ours.close()
                return None
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=REPLY_BYTES)
        try:
            with contextlib.suppress(ConnectionError):
                writer.write(request_line(task, folder, self._limits, arguments))
                line = await reader.readline()
                return json.loads(line) if line.endswith(b"\n") else None
            return None
        except asyncio.CancelledError:
            # The child must be dead before the folder in which it writes is removed.
            with contextlib.suppress(OSError, TimeoutError):
                writer.write_eof()
                await asyncio.wait_for(reader.read(), END_SECONDS)
            raise
        finally:
            writer.close()

    def _start(self) -> None:
        if self._control is not None:
            self._control.close()
        self._control, theirs = socket.socketpair()
        command = [sys.executable, "-m", self._module]
        environment = {**self._environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with theirs:
            self._server = subprocess.Popen(command, stdin=theirs.fileno(), env=environment)


def _outcome(task: str, reply: dict[str, Any]) -> Any:
    match reply:
        case {"done": outcome}:
            return outcome
        case {"error": [code, message]}:
            raise error_of(code, message)
        case {"lacks": "disk"}:
            log.error("media_failed", task=task, lacks="disk")
            raise ServerError("the disk is full")
        case {"lacks": what}:
            log.warning("media_limit", task=task, lacks=what)
            raise VideoTooCostlyError(COSTLY.format(what))
        case {"died": exit_code}:
            log.warning("media_process_died", task=task, exit_code=exit_code)
            if exit_code in (-signal.SIGXCPU, -signal.SIGKILL):
                raise VideoTooCostlyError(COSTLY.format("time or memory"))
            raise VideoDecodeError(
                "the clip broke the decoder; send a complete file, such as H.264 in MP4"
            )
    log.error("media_failed", task=task, exception=reply["bug"])
    if task == "decode":
        raise VideoDecodeError(
            "the clip cannot be decoded; send a complete file, such as H.264 in MP4"
        )
    raise ServerError("the result could not be written")

"""Run media tasks on untrusted clips, each in a child process with limits.

This is the client of `runners.sandbox.fork_server`. It imports neither torch nor av.

A child that fails is the clip's fault only if it was decoding the clip, and used too much memory or
CPU time or crashed in FFmpeg. Every other failure is a `ServerError`: an exception that no task
raises on purpose, a full disk, and whatever goes wrong while a result is written, since a clip that
has been decoded is not to blame for that.

A task whose child dies through no fault of the clip is repeated once: after minutes of sampling,
one killed process should not cost the result.
"""

import asyncio
import contextlib
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import structlog

from foley.errors import (
    ServerError,
    StorageFullError,
    VideoDecodeError,
    VideoError,
    VideoTooCostlyError,
    make_error,
)
from foley.processes import end_within
from runners.sandbox.confinement import find_missing_parts
from runners.sandbox.fork_server import NOTHING, SandboxLimits, encode_task
from runners.sandbox.turns import Turns

log = structlog.get_logger(__name__)

DECODE = "decode"  # the task whose cost and crashes depend on the clip alone
MAX_OUTCOME_BYTES = 1024 * 1024
MAX_QUESTIONS = 64  # more than a request has files
END_SECONDS = 5.0
TOO_COSTLY = (
    "reading the clip takes more {} than allowed; send a shorter clip, or one of fewer pixels"
)
# Malformed input that FFmpeg does not survive ends in one of these. SIGKILL is not among them: it
# comes from the kernel when the machine runs out of memory, or from an operator.
CRASH_SIGNALS = frozenset(
    (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
)


class Sandbox:
    """Runs tasks in children of one fork server, a few at a time.

    Args:
        limits: of each child.
        environment: of the fork server and its children. It must hold no secret, since a clip that
            takes over a child could read it.
        module: the fork server's module.
        key_share: largest share of the tasks at one time that one owner may have.
        num_sharing: sandboxes on this machine that are as busy as this one, and share its cores.
    """

    def __init__(
        self,
        limits: SandboxLimits,
        environment: dict[str, str],
        module: str = "runners.sandbox.fork_server",
        key_share: float = 1.0,
        num_sharing: int = 1,
    ) -> None:
        self._limits = limits
        self._module = module
        self._environment = environment
        # More tasks of an owner at a time than there are cores would only delay each of them.
        num_turns = max(2, (os.cpu_count() or 1) // num_sharing)
        self._turns = Turns(num_turns, key_share=key_share)
        self._starting = asyncio.Lock()
        self._closed = False
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    async def run(
        self,
        task: str,
        folder: Path,
        *,
        owner: str = "",
        answer: Callable[[Any], Any] | None = None,
        until: Callable[[], Coroutine[Any, Any, None]] | None = None,
        **arguments: Any,
    ) -> Any:
        """Run a task in a child and return its result. Cancelling kills the child.

        Args:
            task: name of a task of the fork server.
            folder: the request's folder.
            owner: of the request. Owners take turns.
            answer: to the questions of the child, by `runners.sandbox.questions.ask`, or what
                returns one once it is awaited. It gets whatever a child sends that was taken over.
                None if the task asks nothing.
            until: ends the task's turn early, when it returns; the task goes on. For a task that
                waits for others from then on.
            arguments: keyword arguments of the task, as JSON can hold them.

        Raises:
            VideoTooCostlyError: decoding the clip took more CPU time or memory than allowed.
            VideoDecodeError: decoding the clip crashed the child.
            StorageFullError: there was no room for what the task writes.
            ServerError: the task failed for any other reason; the log says which.
            FoleyError: the task raised it on purpose.
        """
        async with self._take_turn_until(owner, until):
            outcome = await self._ask(task, folder, answer, arguments)
            # The fork server died during the task, and another one is started; or the child did.
            if outcome is None or _is_worth_repeating(task, outcome):
                log.warning("media_repeated", task=task, **(outcome or {"died": "fork server"}))
                outcome = await self._ask(task, folder, answer, arguments)
        return _unpack(task, outcome or {"bug": "the fork server died twice during this task"})

    @contextlib.asynccontextmanager
    async def _take_turn_until(
        self, owner: str, until: Callable[[], Coroutine[Any, Any, None]] | None
    ) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as turn:
            await turn.enter_async_context(self._turns.take(owner))
            if until is None:
                yield
                return

            async def end_early() -> None:
                await until()
                await turn.aclose()

            ending = asyncio.create_task(end_early())
            try:
                yield
            finally:
                ending.cancel()
                await asyncio.gather(ending, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def take_turn(self, owner: str) -> AsyncIterator[None]:
        """Hold a turn while the block lasts, for a task that has ended its own early.

        Args:
            owner: of the request.
        """
        async with self._turns.take(owner):
            yield

    async def start(self) -> None:
        """Start the fork server, and return when its imports, which take seconds, are done.

        It logs once which parts of the confinement this machine lacks.
        """
        if not self._limits.is_confined:
            log.warning("sandbox_off")
        elif missing := find_missing_parts():
            log.warning("sandbox_incomplete", missing=missing)
        await self.run(NOTHING, Path())

    def close(self) -> None:
        """End the fork server and its children."""
        self._closed = True
        if self._control is not None:
            self._control.close()
        if self._server is not None:
            end_within(self._server, END_SECONDS)

    async def _ask(
        self,
        task: str,
        folder: Path,
        answer: Callable[[Any], Any] | None,
        arguments: dict[str, Any],
    ) -> dict[str, Any] | None:
        """Return the outcome of a task, or None if the fork server died before there was one."""
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
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=MAX_OUTCOME_BYTES)
        try:
            with contextlib.suppress(ConnectionError):
                writer.write(encode_task(task, folder, self._limits, arguments))
                return await _read_outcome(reader, writer, answer)
            return None
        except asyncio.CancelledError:
            # The child must be dead before the folder in which it writes is removed.
            with contextlib.suppress(OSError, TimeoutError):
                writer.write_eof()
                async with asyncio.timeout(END_SECONDS):
                    await reader.read()
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


async def _read_outcome(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    answer: Callable[[Any], Any] | None,
) -> dict[str, Any] | None:
    """Answer a child's questions until its outcome comes; None if it ends without one."""
    for _ in range(MAX_QUESTIONS + 1):
        line = await reader.readline()
        if not line.endswith(b"\n"):
            return None
        message: dict[str, Any] = json.loads(line)
        if "asks" not in message:
            return message
        if answer is None:
            return {"bug": "the child asked a question"}
        reply = answer(message["asks"])
        if inspect.isawaitable(reply):
            reply = await reply
        writer.write(json.dumps(reply).encode() + b"\n")
    return {"bug": f"the child asked more than {MAX_QUESTIONS} questions"}


def _is_worth_repeating(task: str, outcome: dict[str, Any]) -> bool:
    """Whether the outcome is the death of a child that the clip did not cause.

    A task that used up its CPU time would do so again.
    """
    exit_code = outcome.get("died")
    if exit_code is None or exit_code == -signal.SIGXCPU:
        return False
    return exit_code == -signal.SIGKILL or task != DECODE


def _unpack(task: str, outcome: dict[str, Any]) -> Any:
    """Return the result in an outcome of `fork_server`, or raise its error."""
    match outcome:
        case {"done": result}:
            return result
        case {"error": [code, message]}:
            raise make_error(code, message)
    if task == DECODE and (error := _clip_error(outcome)) is not None:
        log.warning("media_clip_refused", task=task, **outcome)
        raise error
    if outcome == {"exhausted": "disk"}:
        raise StorageFullError()
    log.error("media_failed", task=task, **outcome)
    raise ServerError(f"the media task '{task}' failed; the log says why")


def _clip_error(outcome: dict[str, Any]) -> VideoError | None:
    """Return the error for a failed decoding that the clip caused; None if it did not."""
    match outcome:
        case {"exhausted": "memory"}:
            return VideoTooCostlyError(TOO_COSTLY.format("memory"))
        case {"died": exit_code} if exit_code == -signal.SIGXCPU:
            return VideoTooCostlyError(TOO_COSTLY.format("CPU time"))
        case {"died": exit_code} if -exit_code in CRASH_SIGNALS:
            return VideoDecodeError(
                "the clip broke the decoder; send a complete file, such as H.264 in MP4"
            )
    return None

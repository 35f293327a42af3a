"""A device whose model is in a process of its own.

    LaunchCall ──► Launch    the worker's thread of the device waits for each answer
    WaitCall ──► float
    ForgetCall, ForgetBatchCall ──► no answer

The next action is sent while the GPU computes the one before it, which hides its way there. The
process ends when the pipe is closed, which it also is when this process ends, however that happens.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Self, TypeVar

import structlog

from foley.errors import FoleyError
from foley.processes import end_within
from runners.worker.loading import ModelChoice
from runners.worker.reports import Beginning, DeviceFacts, Launch
from runners.worker.scheduler import Kind

log = structlog.get_logger(__name__)

MODULE = "runners.worker.model_process"
CLOSE_SECONDS = 2.0
SHOW_THREADS = signal.SIGUSR1

ReplyT = TypeVar("ReplyT")


class ProcessStart(NamedTuple):
    """The first message to the process.

    Attributes:
        name: of the device, for the log.
        choice: of the model.
        log_level: the lowest that is logged.
    """

    name: str
    choice: ModelChoice
    log_level: str


class LaunchCall(NamedTuple):
    """Asks for `Lane.launch`.

    Attributes:
        kind: of the action.
        tasks: its requests.
    """

    kind: Kind
    tasks: Mapping[int, Beginning | None]


class WaitCall(NamedTuple):
    """Asks for `Lane.wait`."""


class ForgetCall(NamedTuple):
    """Tells of `Device.forget`.

    Attributes:
        serial: of the request.
    """

    serial: int


class ForgetBatchCall(NamedTuple):
    """Tells of `Lane.forget_batch`."""


class ProcessDevice:
    """A device, and its only lane. Its process begins to load at once.

    The thread that makes it has to live on until `close`: the process dies with that.

    Args:
        name: of the device, as the worker calls it.
        choice: of the model, for the process.
        environment: of the process.

    Attributes:
        name: as given.
        pid: of the process.
    """

    def __init__(self, name: str, choice: ModelChoice, environment: Mapping[str, str]) -> None:
        self.name = name
        self._closing = False
        self._sending = threading.Lock()
        self._pipe, theirs = multiprocessing.Pipe()
        paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with theirs:
            descriptor = theirs.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-m", MODULE, str(descriptor)],
                stdin=subprocess.DEVNULL,
                env={**environment, **paths},
                pass_fds=[descriptor],
            )
        self.pid = self._process.pid
        level = logging.getLevelName(logging.getLogger("runners").getEffectiveLevel())
        self._send(ProcessStart(name, choice, level))

    def start(self, on_loss: Callable[[], None]) -> DeviceFacts:
        """See `Device.start`; waits for what the process has begun."""
        threading.Thread(target=self._watch, args=[on_loss], daemon=True).start()
        return self._receive(DeviceFacts)

    def make_lanes(self, count: int) -> Sequence[Self]:
        """See `Device.make_lanes`; there is one."""
        assert count == 1
        return [self]

    def use(self) -> AbstractContextManager[object]:
        """See `Lane.use`; nothing of the device is in this process."""
        return nullcontext()

    def launch(self, kind: Kind, tasks: Mapping[int, Beginning | None], num_busy: int) -> Launch:
        """See `Lane.launch`."""
        self._send(LaunchCall(kind, tasks))
        return self._receive(Launch)

    def wait(self) -> float:
        """See `Lane.wait`; the clock is that of the machine."""
        self._send(WaitCall())
        return self._receive(float)

    def forget(self, serial: int) -> None:
        """See `Device.forget`; a process that has ended has forgotten it."""
        with contextlib.suppress(OSError):
            self._send(ForgetCall(serial))

    def forget_batch(self) -> None:
        """See `Lane.forget_batch`."""
        with contextlib.suppress(OSError):
            self._send(ForgetBatchCall())

    def show_threads(self) -> None:
        """See `Device.show_threads`; it does so even where a device never finishes."""
        self._process.send_signal(SHOW_THREADS)

    def close(self) -> None:
        """See `Device.close`."""
        self._closing = True
        self._pipe.close()
        end_within(self._process, CLOSE_SECONDS)

    def _watch(self, on_loss: Callable[[], None]) -> None:
        status = self._process.wait()
        if not self._closing:
            log.error("model_process_lost", device=self.name, pid=self.pid, status=status)
            on_loss()

    def _send(self, message: NamedTuple) -> None:
        with self._sending:
            self._pipe.send(message)

    def _receive(self, kind: type[ReplyT]) -> ReplyT:
        reply = self._pipe.recv()
        if isinstance(reply, FoleyError):
            raise reply
        assert isinstance(reply, kind)
        return reply

"""Fork a process with limits for each task: `python -m runners.sandbox.fork_server`.

FFmpeg has read many a hostile file wrongly. Here it meets them in a process that ends with the
task, whatever becomes of it. Libraries are imported once, before the first fork: a fork takes
about 15 ms, importing them over a second.

    API process                 this process                     child
    Sandbox.run -- byte and socket --> fork ------------------> reads the task from the socket,
         <----------------------------------------------------- writes one line of outcome
         shuts its end ---------------> kills the child         (or dies, and this process says so)

Limits of a child: memory beyond what it starts with, CPU seconds, bytes of a file, open files.
"""

import contextlib
import ctypes
import errno
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from foley.errors import FoleyError

MAX_OPEN_FILES = 64  # one more than a task needs at most, several times over
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
MAX_TRACE_CHARACTERS = 4000
# Where the system tells it (Linux), our end is seen to be shut before it is closed.
HANG_UP = getattr(select, "POLLRDHUP", 0)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a child may use.

    Attributes:
        memory_bytes: address space beyond what it starts with.
        cpu_seconds: of all its threads.
        file_bytes: of each file that it writes.
    """

    memory_bytes: int
    cpu_seconds: int
    file_bytes: int

    def apply(self) -> None:
        """Limit this process, for good."""
        for kind, limit in (
            (resource.RLIMIT_CPU, self.cpu_seconds),
            (resource.RLIMIT_FSIZE, self.file_bytes),
            (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_AS, _address_space_bytes() + self.memory_bytes),
        ):
            # macOS refuses some; the others hold.
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(kind, (limit, limit))
        with contextlib.suppress(OSError):  # where memory runs out all the same, it goes first
            Path("/proc/self/oom_score_adj").write_text("1000")


def main() -> None:
    """Serve the process whose socket is our standard input, until it closes it."""
    from runners.sandbox import tasks

    tasks.prepare()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # meant for the whole group: ours ends as tasks end
    gc.collect()
    gc.freeze()  # a collection in a child would touch, and so copy, all pages
    _Server(socket.socket(fileno=0)).run()


class _Server:
    """Forks, and watches the children.

    Args:
        control: brings a byte and a socket for each task.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[int, int] = {}  # file descriptor of a task's socket: process
        self._poller = select.poll()
        self._poller.register(control, select.POLLIN)
        # A child's end wakes `poll` through a pipe, since a signal alone does not.
        self._woken, waker = os.pipe()
        os.set_blocking(waker, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._poller.register(self._woken, select.POLLIN)

    def run(self) -> None:
        """Serve until the other side is gone; then no child is left."""
        while True:
            for descriptor, _ in self._poller.poll():
                if descriptor == self._woken:
                    os.read(self._woken, 4096)
                    self._reap()
                elif descriptor == self._control.fileno():
                    _, passed, _, _ = socket.recv_fds(self._control, 1, 1)
                    if not passed:
                        self._end()
                        return
                    self._fork(passed[0])
                elif descriptor in self._children:
                    self._poller.unregister(descriptor)
                    os.kill(self._children[descriptor], signal.SIGKILL)

    def _fork(self, descriptor: int) -> None:
        pid = os.fork()
        if pid == 0:
            self._become_child(descriptor)
        self._children[descriptor] = pid
        self._poller.register(descriptor, HANG_UP)

    def _become_child(self, descriptor: int) -> NoReturn:
        try:
            _die_with_parent()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._control.close()
            for other in self._children:
                os.close(other)
            _work(socket.socket(fileno=descriptor))
            os._exit(0)
        finally:
            os._exit(1)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                (descriptor,) = (key for key, value in self._children.items() if value == pid)
                del self._children[descriptor]
                with contextlib.suppress(KeyError):
                    self._poller.unregister(descriptor)
                with socket.socket(fileno=descriptor) as connection:
                    if status:
                        _say(connection, {"died": os.waitstatus_to_exitcode(status)})

    def _end(self) -> None:
        for pid in self._children.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _work(connection: socket.socket) -> None:
    """Do one task within its limits, and say what came of it."""
    from runners.sandbox import tasks

    with connection, connection.makefile("rb") as lines:
        asked = json.loads(lines.readline())
        folder = asked["folder"]
        Limits(**asked["limits"]).apply()
        try:
            task = tasks.TASKS[asked["task"]]
            outcome: dict[str, Any] = {"done": task(Path(folder), **asked["arguments"])}
        except FoleyError as error:
            # A caller is told of files by their names: the folder is ours.
            message = str(error).replace(f"{folder}/", "")
            outcome = {"error": (error.code, message)}
            if room := _lacks(error):
                outcome = {"lacks": room}
        except BaseException as error:  # noqa: BLE001 - the process ends here; its outcome is told
            outcome = {"bug": traceback.format_exc()[-MAX_TRACE_CHARACTERS:]}
            if room := _lacks(error):
                outcome = {"lacks": room}
        _say(connection, outcome)


def _lacks(error: BaseException | None) -> str:
    """What the process had too little of: memory, room for its files, disk; or nothing."""
    while error is not None:
        number = getattr(error, "errno", None)
        if isinstance(error, MemoryError) or number == errno.ENOMEM:
            return "memory"
        if "can't allocate memory" in str(error):  # PyTorch's words, in a RuntimeError
            return "memory"
        if number in (errno.ENOSPC, errno.EDQUOT):
            return "disk"
        if number == errno.EFBIG:
            return "room"
        error = error.__cause__ or error.__context__
    return ""


def _say(connection: socket.socket, outcome: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        connection.sendall(json.dumps(outcome).encode() + b"\n")


def _die_with_parent() -> None:
    """Leave nobody to run on when the process that would kill it is itself killed (Linux)."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _address_space_bytes() -> int:
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return 0


def request_line(task: str, folder: Path, limits: Limits, arguments: dict[str, Any]) -> bytes:
    """What a child reads."""
    asked = {"task": task, "folder": str(folder), "limits": asdict(limits), "arguments": arguments}
    return json.dumps(asked).encode() + b"\n"


if __name__ == "__main__":
    main()

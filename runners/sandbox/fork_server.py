"""Fork a confined child process with resource limits for each media task.

Run as `python -m runners.sandbox.fork_server`. FFmpeg has a history of memory-safety bugs on
malformed input, so each clip is decoded in a short-lived child process with resource limits, which
`runners.sandbox.confinement` keeps from other files, processes and the network. The fork server
imports the libraries once, before the first fork: a fork takes about 10 ms, and the
imports take more than a second.

    API process                 fork server                     child
    Sandbox.run -- byte and socket --> fork ------------------> reads the task from the socket,
         <----------------------------------------------------- writes its outcome, one line,
                                                                after its questions, if it has any
         closes its end --------------> kills the child         (or dies: the server writes it)

The limits of a child are its memory beyond what it starts with, its CPU time, the size of each file
that it writes, and the numbers of its open files and of its threads.

An outcome is one JSON object with one of these keys:

    done        what the task returned
    error       code and message of an error that the task raised on purpose
    exhausted   the resource that ran out: memory, file_size or disk
    bug         the traceback of any other exception
    died        the exit code of a child that wrote no outcome; -N for signal N
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
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from foley.errors import FoleyError, OutputError, iterate_causes
from runners.orphans import die_with_parent
from runners.sandbox.confinement import Confinement, list_readable_paths
from runners.sandbox.questions import connect, send
from runners.storage import is_storage_full

NOTHING = "nothing"  # a task that shows that the fork server is ready
MAX_OPEN_FILES = 64  # several times what a task needs
MAX_FURTHER_THREADS = 1024  # of the same user, by a child and by whatever starts beside it
MADV_COLLAPSE = 25  # of <linux/mman.h>
LARGE_PAGE = 2 << 20  # of x86-64, and of aarch64 with small pages of 4 kB
MAX_TRACE_CHARACTERS = 4000
# Linux reports a peer that has shut its sending side down; other systems only a closed peer.
PEER_CLOSED = getattr(select, "POLLRDHUP", 0)
# With one of these an output file fails because of the folder, which no caller chooses.
_FOLDER_ERRNOS = frozenset(
    (errno.EACCES, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EMFILE)
)

Tasks = Mapping[str, Callable[..., Any]]


@dataclass(frozen=True, kw_only=True)
class SandboxLimits:
    """What a child process may use.

    Attributes:
        memory_bytes: address space beyond what the child starts with.
        cpu_seconds: CPU time of all its threads together. SIGXCPU ends the child.
        file_bytes: size of each file that it writes.
        is_confined: whether `runners.sandbox.confinement` applies, as far as the kernel has it.
    """

    memory_bytes: int
    cpu_seconds: int
    file_bytes: int
    is_confined: bool = True

    def apply(self) -> None:
        """Set the resource limits for the current process. They cannot be raised again."""
        memory_bytes = _address_space_bytes() + self.memory_bytes
        for kind, soft, hard in (
            # At the hard limit comes SIGKILL, as from the kernel when the machine lacks memory:
            # one second between the limits tells the two causes apart.
            (resource.RLIMIT_CPU, self.cpu_seconds, self.cpu_seconds + 1),
            (resource.RLIMIT_FSIZE, self.file_bytes, self.file_bytes),
            (resource.RLIMIT_NOFILE, MAX_OPEN_FILES, MAX_OPEN_FILES),
            (resource.RLIMIT_CORE, 0, 0),
            (resource.RLIMIT_AS, memory_bytes, memory_bytes),
            # The kernel counts the threads of the user, all processes together, and does not say
            # how many there are. It says how many there are of all users, which is as many or more.
            (resource.RLIMIT_NPROC, *[_count_threads() + MAX_FURTHER_THREADS] * 2),
        ):
            # macOS refuses some of the limits; the others still hold.
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(kind, (soft, hard))
        # When the machine runs out of memory, the kernel kills this process before the others.
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")


def main(tasks: Tasks) -> None:
    """Serve the process at the other end of the socket on standard input until it closes.

    Args:
        tasks: what children may be asked to do, by name. A task takes the request's folder and
            keyword arguments, and returns what JSON can hold. The caller has imported and warmed up
            everything that a task needs, since a confined child cannot import from everywhere.
    """
    tasks = {NOTHING: lambda _folder: None, **tasks}
    confinement = Confinement(list_readable_paths())
    for number in (signal.SIGINT, signal.SIGTERM):
        # They reach the whole process group. The parent drains its requests, so this process
        # must go on, and it ends when the parent closes the socket.
        signal.signal(number, signal.SIG_IGN)
    gc.collect()
    gc.freeze()  # a collection in a child would write to all pages, and so copy them
    use_large_pages()
    _ForkServer(socket.socket(fileno=0), tasks, confinement).run()


def use_large_pages() -> None:
    """Move the memory of this process into large pages, as far as the kernel has them (Linux 6.1).

    A fork copies an entry for each page, and the end of the child removes them: with small pages,
    20 ms of processor time for 160 MB. A child that writes still copies small pages only.
    """
    with contextlib.suppress(OSError, AttributeError):
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for line in Path("/proc/self/maps").read_text().splitlines():
            places, rights, _, _, file, *name = line.split(maxsplit=5)
            if rights != "rw-p" or file != "0" or name not in ([], ["[heap]"]):
                continue
            start, end = (int(place, 16) for place in places.split("-"))
            first, last = -(-start // LARGE_PAGE), end // LARGE_PAGE
            for number in range(first, last):  # one without memory fails, and stays as it is
                madvise(number * LARGE_PAGE, LARGE_PAGE, MADV_COLLAPSE)


class _ForkServer:
    """Forks a child for each task and reports the children that die.

    Args:
        control: receives one byte and one passed socket for each task.
        tasks: of the children, by name.
        confinement: of the children.
    """

    def __init__(self, control: socket.socket, tasks: Tasks, confinement: Confinement) -> None:
        self._control = control
        self._tasks = tasks
        self._confinement = confinement
        self._children: dict[int, int] = {}  # file descriptor of a task's socket: process id
        self._poller = select.poll()
        self._poller.register(control, select.POLLIN)
        # Python retries `poll` after a signal, so SIGCHLD wakes it through a pipe.
        self._woken, waker = os.pipe()
        os.set_blocking(waker, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._poller.register(self._woken, select.POLLIN)

    def run(self) -> None:
        """Serve until the parent closes the control socket, then kill the children."""
        while True:
            for descriptor, _ in self._poller.poll():
                if descriptor == self._woken:
                    os.read(self._woken, 4096)
                    self._reap()
                elif descriptor == self._control.fileno():
                    _, passed, _, _ = socket.recv_fds(self._control, 1, 1)
                    if not passed:
                        self._kill_children()
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
        self._poller.register(descriptor, PEER_CLOSED)

    def _become_child(self, descriptor: int) -> NoReturn:
        try:
            die_with_parent()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._control.close()
            for other in self._children:
                os.close(other)
            _run_task(socket.socket(fileno=descriptor), self._tasks, self._confinement)
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
                with socket.socket(fileno=descriptor):
                    if status:
                        _send(descriptor, {"died": os.waitstatus_to_exitcode(status)})

    def _kill_children(self) -> None:
        for pid in self._children.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _run_task(connection: socket.socket, tasks: Tasks, confinement: Confinement) -> None:
    """Read one task from the connection, run it within its limits and write its outcome."""
    with connection, connection.makefile("rb") as lines:
        asked = json.loads(lines.readline())
        connect(connection.fileno())
        folder = asked["folder"]
        limits = SandboxLimits(**asked["limits"])
        limits.apply()
        try:
            if limits.is_confined:
                confinement.confine(Path(folder))
            task = tasks[asked["task"]]
            outcome: dict[str, Any] = {"done": task(Path(folder), **asked["arguments"])}
        except BaseException as error:  # noqa: BLE001 - the process ends here; the server logs it
            outcome = _describe_failure(error, folder)
        _send(connection.fileno(), outcome)


def _describe_failure(error: BaseException, folder: str) -> dict[str, Any]:
    """Return the outcome of a task that raised `error`.

    Only errors that a task raises on purpose keep their code. Everything else is a bug, whatever
    clip was being read.
    """
    if resource_name := _exhausted_resource(error):
        return {"exhausted": resource_name}
    if isinstance(error, FoleyError) and not _is_folder_failure(error):
        # A message may name files. The folder is the service's own, so its path is cut off.
        return {"error": (error.code, str(error).replace(f"{folder}/", ""))}
    trace = "".join(traceback.format_exception(error))
    return {"bug": trace[-MAX_TRACE_CHARACTERS:]}


def _exhausted_resource(error: BaseException | None) -> str:
    """Return what ran out: memory, file_size or disk; empty for every other error."""
    if is_storage_full(error):
        return "disk"
    for cause in iterate_causes(error):
        number = getattr(cause, "errno", None)
        if isinstance(cause, MemoryError) or number == errno.ENOMEM:
            return "memory"
        if "can't allocate memory" in str(cause):  # PyTorch's message, in a RuntimeError
            return "memory"
        # safetensors has the number in its text alone.
        if number == errno.EFBIG or f"(os error {errno.EFBIG})" in str(cause):
            return "file_size"
    return ""


def _is_folder_failure(error: FoleyError) -> bool:
    """Whether an output could not be written because of the service's own folder."""
    cause = error.__cause__
    return (
        isinstance(error, OutputError)
        and isinstance(cause, OSError)
        and cause.errno in _FOLDER_ERRNOS
    )


def _send(descriptor: int, outcome: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the caller has left
        send(descriptor, outcome)


def _address_space_bytes() -> int:
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return 0


def _count_threads() -> int:
    """Return the number of threads of all processes and users, 0 where it is not known."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
    return 0


def encode_task(task: str, folder: Path, limits: SandboxLimits, arguments: dict[str, Any]) -> bytes:
    """Return the line of JSON that a child reads.

    Args:
        task: name of a task that the fork server has.
        folder: the request's folder, the only one that the task writes to.
        limits: of the child.
        arguments: keyword arguments of the task, as JSON can hold them.
    """
    asked = {"task": task, "folder": str(folder), "limits": asdict(limits), "arguments": arguments}
    return json.dumps(asked).encode() + b"\n"


if __name__ == "__main__":
    from runners.sandbox.tasks import TASKS, prepare

    prepare()
    main(TASKS)

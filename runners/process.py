"""Find free ports for server processes, act on the signals that stop them, and forbid tracing."""

import asyncio
import contextlib
import ctypes
import faulthandler
import math
import os
import random
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType
from typing import Any

import click
import structlog
import uvicorn

from foley.errors import ConfigError, FoleyError
from runners.orphans import end_with_parent
from runners.stop_signals import START_FAILED

log = structlog.get_logger(__name__)

PR_SET_DUMPABLE = 4  # of <sys/prctl.h>
# After the grace period: enough for the last steps of each process, and less than an orchestrator
# is told to wait before it kills all of them.
LAST_RESORT_SECONDS = 7.0
_PARENT = os.getppid()  # asked once, since after its death another process is the parent
# Linux takes the ports of outgoing connections from above this range. A port from there could be
# taken by a connection of the server itself before the server listens on it.
_PORTS = range(20_000, 32_000)


def forbid_tracing() -> None:
    """Have the kernel refuse debuggers of the same user, core files and reading of /proc (Linux).

    A program that this process starts can be traced again.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0)


def find_http_host() -> str:
    """Return the address on which this process serves HTTP; BentoML hands it only the socket."""
    address = _find_http_address()
    return address[0] if address else "127.0.0.1"


def find_http_address() -> tuple[str, int]:
    """Return the address and the port on which this process serves HTTP.

    Raises:
        ConfigError: BentoML has handed this process no socket.
    """
    address = _find_http_address()
    if address is None:
        raise ConfigError("the address of this service is not known; run it by `bentoml serve`")
    return address


def _find_http_address() -> tuple[str, int] | None:
    context = click.get_current_context(silent=True)
    descriptor = context.params.get("fd") if context else None
    if descriptor is None:
        return None
    with socket.socket(fileno=os.dup(descriptor)) as listener:
        host, port = listener.getsockname()[:2]
    return host, port


def find_free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return different ports of an address that nobody listens on.

    Args:
        count: how many ports.
        host: the address, IPv4 or IPv6.

    Raises:
        OSError: of 100 random ports too few are free.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    free: list[int] = []
    for port in random.sample(_PORTS, 100):
        with socket.socket(family) as tried, contextlib.suppress(OSError):
            tried.bind((host, port))
            free.append(port)
        if len(free) == count:
            return free
    raise OSError(f"of 100 ports of {host}, {len(free)} are free, and {count} are needed")


def find_free_port(host: str = "127.0.0.1") -> int:
    """Return a port of an address that nobody listens on.

    Args:
        host: the address, IPv4 or IPv6.

    Raises:
        OSError: of 100 random ports none is free.
    """
    return find_free_ports(1, host)[0]


@contextlib.contextmanager
def end_service_on_failure() -> Iterator[None]:
    """End the whole service, with one line in the log, if the block fails in one of its processes.

    The launcher would start this process again a few times, and then hold the port without it. It
    ends with the status of a failed start; see `runners.stop_signals`.
    """
    try:
        yield
    except Exception as error:
        context = click.get_current_context(silent=True)
        if context is None or "fd" not in context.params:  # not a child of the launcher
            raise
        is_explained = isinstance(error, FoleyError | OSError)
        log.critical("start_failed", reason=str(error), exc_info=None if is_explained else error)
        with contextlib.suppress(ProcessLookupError):
            os.kill(_PARENT, START_FAILED)
            os.kill(_PARENT, signal.SIGTERM)
        os._exit(1)  # the server around this code would add tracebacks


def end_with_launcher() -> None:
    """Have this process end in order if its launcher is killed; the launcher itself does nothing.

    Nobody else would end it, and it would hold the service's port and the model.
    """
    context = click.get_current_context(silent=True)
    if context is not None and "fd" in context.params:  # a child of the launcher
        # `delay_stop_signal` has its own last resort, which says more, and so comes first.
        end_with_parent(grace_seconds=find_grace_seconds() + 2 * LAST_RESORT_SECONDS)


def find_grace_seconds() -> float:
    """Return how long requests may go on after SIGTERM: the option of `bentoml serve`, or 30."""
    context = click.get_current_context(silent=True)
    given = context.params.get("timeout_graceful_shutdown") if context else None
    return float(given or 30)


def delay_stop_signal(
    drain: Callable[[], Awaitable[float]],
    hasten: Callable[[uvicorn.Server], Awaitable[object]] | None = None,
) -> None:
    """Have SIGTERM and SIGINT reach Uvicorn only after `drain`, in the current event loop.

    The launcher waits for this process for as long as it takes. So the process ends after its grace
    period even if something in it hangs; see `end_forcibly`.

    Outside the main thread, which alone can install handlers, nothing happens.

    Args:
        drain: called at the first signal; returns the seconds in which Uvicorn must end. A SIGINT
            after that reaches Uvicorn at once.
        hasten: called then, to end the connections for which Uvicorn waits.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[None]] = []

    async def drain_and_pass_on(number: int, before: Any) -> None:
        try:
            left_seconds = await drain()
            # Uvicorn would allow the whole grace period from now on.
            if isinstance(server := getattr(before, "__self__", None), uvicorn.Server):
                server.config.timeout_graceful_shutdown = max(1, math.ceil(left_seconds))
        finally:
            if callable(before):
                before(number, None)
        if server is not None and hasten is not None:
            await hasten(server)

    def begin(number: int, before: Any) -> None:
        if not tasks:
            seconds = find_grace_seconds() + LAST_RESORT_SECONDS
            last_resort = threading.Timer(seconds, end_forcibly, [loop])
            last_resort.daemon = True  # it does not keep a process that ends in time
            last_resort.start()
            tasks.append(asyncio.create_task(drain_and_pass_on(number, before)))
        elif number == signal.SIGINT and callable(before):
            before(number, None)

    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)

        def handle(number: int, _frame: FrameType | None, before: object = before) -> None:
            loop.call_soon_threadsafe(begin, number, before)

        signal.signal(number, handle)


def end_forcibly(loop: asyncio.AbstractEventLoop) -> None:
    """End this process with status 1, and write what it was waiting for; from any thread.

    Its files are left, and removed at the next start.

    Args:
        loop: of the process.
    """
    with contextlib.suppress(RuntimeError):  # the loop goes on meanwhile
        waiting = sorted(_describe(task) for task in asyncio.all_tasks(loop))
        log.critical("end_forced", tasks=waiting)
    faulthandler.dump_traceback()
    os._exit(1)


def _describe(task: asyncio.Task[Any]) -> str:
    """Return the names of the coroutines of a task, each of which waits for the next."""
    names: list[str] = []
    awaited: Any = task.get_coro()
    while (name := getattr(awaited, "__qualname__", "")) and len(names) < 20:
        frame = getattr(awaited, "cr_frame", None)
        names.append(name if frame is None else f"{name}:{frame.f_lineno}")
        awaited = getattr(awaited, "cr_await", None)
    return " > ".join(names)


def call_on_stop_signal(begin_stop: Callable[[], object]) -> None:
    """Have the current event loop call `begin_stop` on SIGTERM or SIGINT.

    The server around us waits for its own open connections first, without a limit of ours, and runs
    shutdown hooks only then. The handlers that are installed already still run. Outside the main
    thread, which alone can install handlers, nothing happens.

    Args:
        begin_stop: must return at once.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)

        def handle(number: int, frame: FrameType | None, before: object = before) -> None:
            loop.call_soon_threadsafe(begin_stop)
            if callable(before):
                before(number, frame)

        signal.signal(number, handle)

"""Find free ports for server processes, act on the signals that stop them, and forbid tracing."""

import asyncio
import contextlib
import ctypes
import os
import random
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType

import click

from foley.errors import ConfigError

PR_SET_DUMPABLE = 4  # of <sys/prctl.h>
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

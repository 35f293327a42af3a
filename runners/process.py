"""Ports for servers that are started as processes, and the signals that end them."""

import asyncio
import contextlib
import random
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType

# Below those that Linux gives to whoever connects or asks for any: a port that it gave to us and
# that we let go can be taken by the server's own connections before the server listens on it.
_PORTS = range(20_000, 32_000)


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Ports of this address that nobody listens on, each another."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    free: list[int] = []
    for port in random.sample(_PORTS, 100):
        with socket.socket(family) as tried, contextlib.suppress(OSError):
            tried.bind((host, port))
            free.append(port)
        if len(free) == count:
            return free
    raise OSError(f"of 100 ports of {host}, {len(free)} are free, and {count} are wanted")


def free_port(host: str = "127.0.0.1") -> int:
    """A port of this address that nobody listens on."""
    return free_ports(1, host)[0]


def on_end_asked(begin: Callable[[], object]) -> None:
    """Have `begin` called in this event loop on SIGTERM or SIGINT, beside what is done already.

    The server around us first waits for its own connections, which takes as long as they like, and
    only then runs shutdown hooks. Outside the main thread, where no signals come, nothing happens.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)

        def heed(number: int, frame: FrameType | None, before: object = before) -> None:
            loop.call_soon_threadsafe(begin)
            if callable(before):
                before(number, frame)

        signal.signal(number, heed)

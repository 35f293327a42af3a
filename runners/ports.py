"""Free ports for servers that are started as processes."""

import contextlib
import random
import socket

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

"""Ports for servers that tests start."""

import random
import socket

# Below those that Linux gives to whoever connects or asks for any: a port that it gave to us and
# that we let go was taken by the server's own connections before the server listened on it.
_PORTS = range(20_000, 32_000)


def free_port(host: str = "127.0.0.1") -> int:
    """A port of this address that nobody listens on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in random.sample(_PORTS, 100):
        with socket.socket(family) as tried:
            try:
                tried.bind((host, port))
            except OSError:
                continue
            return port
    raise OSError(f"none of 100 ports of {host} is free")

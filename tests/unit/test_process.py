from pathlib import Path

from runners.process import find_free_port


def test_a_free_port_is_none_that_connections_get() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(find_free_port(host) < first for host in ("127.0.0.1", "::1") for _ in range(20))

"""Health for load balancers: 204 while the service loads, then 200, or 503."""

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from runners.process import find_free_port
from tests.patience import Deadline, is_within, scale, wait_for_exit, wait_until
from tests.server import Server

PATH = "/health/check"


def events(server: Server, name: str) -> list[dict[str, Any]]:
    """The log's lines of one event."""
    lines = [json.loads(x) for x in server.log.read_text().splitlines() if x.startswith("{")]
    return [line for line in lines if line["event"] == name]


def statuses_until(server: Server, urls: list[str], last: int) -> list[set[int]]:
    """The statuses of each address, until each has answered with `last`."""
    seen: list[set[int]] = [set() for _ in urls]
    deadline = Deadline(90)
    with httpx.Client(trust_env=False, timeout=scale(5)) as client:
        while not all(last in statuses for statuses in seen):
            assert not deadline.is_over(), (seen, server.log.read_text())
            for url, statuses in zip(urls, seen, strict=True):
                try:
                    response = client.get(url)
                except httpx.TransportError:  # it does not listen yet
                    continue
                statuses.add(response.status_code)
                if response.status_code < 400:
                    assert response.content == b""
            time.sleep(0.02)
    return seen


def test_the_load_balancer_sees_loading_then_ready_on_both_ports(tmp_path: Path) -> None:
    port = find_free_port()
    server = Server(
        tmp_path,
        {
            "FOLEY_HEALTH_PORT": str(port),
            "FOLEY_HEALTH_PATH": PATH,
            "FOLEY_API_KEYS": "a-key",  # a load balancer has none
            "FOLEY_API_WORKERS": "2",
            "FOLEY_CONTAINER_STARTED": str(time.time() - 100),
        },
    )
    try:
        urls = [f"http://127.0.0.1:{server.port}{PATH}", f"http://127.0.0.1:{port}{PATH}"]
        assert statuses_until(server, urls, 200) == [{204, 200}, {204, 200}]
        other = httpx.get(f"http://127.0.0.1:{port}/v1/models", trust_env=False)
        assert other.status_code == 404  # this port has no other path
        assert PATH in httpx.get(f"http://127.0.0.1:{server.port}/docs.json").json()["paths"]
        wait_until(  # one line of each worker
            lambda: len(events(server, "service_ready")) == 2, what=server.log.read_text
        )
    finally:
        assert server.stop() == 0
    for event in events(server, "service_ready"):
        seconds = event["seconds_since_start"]
        assert seconds["api"] > 0
        assert is_within(seconds["api"], 90)
        assert seconds["container"] > 100
        assert is_within(seconds["container"] - 100, 100)
    asked = [event["path"] for event in events(server, "request")]
    assert PATH not in asked  # no line for each probe


@pytest.mark.parametrize("path", ["ping", "/a b", "/{x}"])
def test_a_health_path_with_other_characters_is_refused(path: str, tmp_path: Path) -> None:
    server = Server(tmp_path, {"FOLEY_HEALTH_PATH": path})
    assert wait_for_exit(server.process, 30) != 0
    assert "health_path" in server.log.read_text()

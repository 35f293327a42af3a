"""Health for load balancers: 204 while the service loads, then 200, or 503."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.keyed import HEALTH_PATH, KeyedStart
from tests.patience import is_within, wait_for_exit, wait_until
from tests.server import Server


def events(server: Server, name: str) -> list[dict[str, Any]]:
    """The log's lines of one event."""
    lines = [json.loads(x) for x in server.log.read_text().splitlines() if x.startswith("{")]
    return [line for line in lines if line["event"] == name]


def test_the_load_balancer_sees_loading_then_ready_on_both_ports(
    keyed_server: Server, keyed_start: KeyedStart
) -> None:
    """A load balancer has no key."""
    server = keyed_server
    assert keyed_start.http == ({204, 200}, {204, 200})
    address = f"http://127.0.0.1:{keyed_start.port}"
    assert httpx.get(f"{address}/v1/models", trust_env=False).status_code == 404  # one path only
    assert HEALTH_PATH in server.client.get("/docs.json").json()["paths"]
    wait_until(  # one line of each worker
        lambda: len(events(server, "service_ready")) == 2, what=server.log.read_text
    )
    for event in events(server, "service_ready"):
        seconds = event["seconds_since_start"]
        assert seconds["api"] > 0
        assert is_within(seconds["api"], 90)
        assert seconds["container"] > 100
        assert is_within(seconds["container"] - 100, 100)
    asked = [event["path"] for event in events(server, "request")]
    assert HEALTH_PATH not in asked  # no line for each probe


@pytest.mark.parametrize("path", ["ping", "/a b", "/{x}"])
def test_a_health_path_with_other_characters_is_refused(path: str, tmp_path: Path) -> None:
    server = Server(tmp_path, {"FOLEY_HEALTH_PATH": path})
    assert wait_for_exit(server.process, 30) != 0
    assert "FOLEY_HEALTH_PATH" in server.log.read_text()

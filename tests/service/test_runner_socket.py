"""The socket of the GPU process takes JSON and runs no pickle."""

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.patience import scale
from tests.server import Server

PICKLE = "application/vnd.bentoml+pickle"


class MakeFolder:
    """A value whose pickle makes a folder when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def runner(server: Server) -> Iterator[httpx.Client]:
    """Return a client of the socket on which the GPU process listens."""
    addresses = {
        connection.laddr
        for process in server.family()
        for connection in process.net_connections(kind="unix")
        if connection.laddr.endswith(".sock")
    }
    for address in sorted(addresses):
        transport = httpx.HTTPTransport(uds=address)
        with httpx.Client(
            transport=transport, base_url="http://runner", timeout=scale(20)
        ) as client:
            if is_runner(client):
                yield client
                return
    raise AssertionError(f"none of {addresses} is the runner's socket")


def is_runner(client: httpx.Client) -> bool:
    try:
        return client.post("/cancel", json={"request_id": "absent"}).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.parametrize(
    "headers",
    [
        [("content-type", PICKLE)],
        [("content-type", f"{PICKLE} ; a=b")],
        [("Content-Type", PICKLE), ("content-type", "application/json")],
        [("content-type", "application/json"), ("content-type", PICKLE)],
        [("content-type", "multipart/form-data; boundary=x")],
    ],
)
@pytest.mark.parametrize("path", ["/cancel", "/status", "/generate"])
def test_a_pickle_is_refused_and_not_read(
    runner: httpx.Client, tmp_path: Path, path: str, headers: list[tuple[str, str]]
) -> None:
    body = pickle.dumps(MakeFolder(tmp_path / "made"))
    assert runner.post(path, content=body, headers=headers).status_code == 415
    assert not (tmp_path / "made").exists()


def test_json_is_answered_as_json(runner: httpx.Client) -> None:
    answer = runner.post("/status", json={})
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.json()["preset"] == "tiny"


@pytest.mark.long
def test_a_generation_passes_through_the_socket(server: Server, real_clip: bytes) -> None:
    answer = server.generate(real_clip, trim="true", num_inference_steps=2, seed=2**53 + 1)
    assert answer.status_code == 200, answer.text

"""The executor's connection to the API, against a real server."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from foley.client import transport as client_transport
from runners.durable import attempts
from runners.durable.attempts import JobRunner, ProgressNotes
from runners.durable.files import JobFiles
from runners.durable.queue import JobQueue
from runners.durable.request import JobOptions, JobRequest
from runners.durable.secret import make_job_key
from runners.durable.transport import AiohttpTransport
from tests.durable.api import Api, serve_api
from tests.durable.receiver import serve_handler
from tests.patience import scale, wait_until


class Server:
    """What was asked of it."""

    def __init__(self) -> None:
        self.url = ""
        self.connections: set[tuple[str, int]] = set()
        self.bodies: list[bytes] = []
        self.left = threading.Event()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            server.connections.add(self.client_address)
            server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"5\r\nfirst\r\n")
            if self.path == "/endless":
                with contextlib.suppress(OSError):
                    while self.rfile.read(1):
                        pass
                server.left.set()
                self.close_connection = True
                return
            if self.path == "/broken":
                self.close_connection = True
                return
            self.wfile.write(b"4\r\nlast\r\n0\r\n\r\n")

        def log_message(self, *_: object) -> None:
            pass

    with serve_handler(Answers, "127.0.0.1") as port:
        server.url = f"http://127.0.0.1:{port}"
        yield server


def list_connections(url: str) -> list[object]:
    """Return the connections of this process to a server."""
    port = httpx.URL(url).port
    found = psutil.Process().net_connections("tcp")
    return [one for one in found if one.raddr and one.raddr.port == port]


def open_client(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, transport=AiohttpTransport())


def test_requests_share_a_connection_although_no_body_is_read_to_its_end(server: Server) -> None:
    async def ask() -> None:
        async with open_client(server.url) as client:
            for number in range(3):
                form = {"data": {"n": str(number)}, "files": {"clip": b"x" * 200_000}}
                async with client.stream("POST", "/", **form) as response:  # type: ignore[arg-type]
                    assert await anext(response.aiter_bytes()) in (b"first", b"firstlast")

    asyncio.run(ask())
    assert len(server.connections) == 1
    assert [body.count(b"x" * 200_000) for body in server.bodies] == [1, 1, 1]


def test_a_request_that_is_cancelled_is_left(server: Server) -> None:
    async def ask() -> None:
        async with open_client(server.url) as client:

            async def read() -> None:
                async with client.stream("POST", "/endless", content=b"1") as response:
                    begun.set()
                    async for _ in response.aiter_bytes():
                        pass

            begun = asyncio.Event()
            reading = asyncio.create_task(read())
            await begun.wait()
            reading.cancel()
            await asyncio.wait([reading])
            assert reading.cancelled()
            assert await asyncio.to_thread(server.left.wait, 20)

    asyncio.run(ask())


def test_errors_are_those_of_httpx(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        unused = f"http://127.0.0.1:{taken.getsockname()[1]}"

    async def ask(url: str, path: str = "/", **settings: float) -> None:
        async with open_client(url) as client:
            await client.post(path, content=b"1", **settings)  # type: ignore[arg-type]

    with pytest.raises(httpx.ConnectError, match="Cannot connect"):
        asyncio.run(ask(unused))
    with pytest.raises(httpx.ReadError):
        asyncio.run(ask(server.url, "/broken"))
    with pytest.raises(httpx.ReadTimeout):
        asyncio.run(ask(server.url, "/endless", timeout=0.2))


@pytest.mark.parametrize("where", ["upload", "events", "file", "cut"])
def test_a_job_is_tried_again_when_the_service_falls_silent_or_breaks_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """As one that was frozen: its connections stay open, and nothing comes or is taken."""
    monkeypatch.setattr(client_transport, "READ_TIMEOUT_SECONDS", scale(0.3))
    monkeypatch.setattr(attempts, "FIRST_PAUSE_SECONDS", 0.01)
    files = JobFiles(tmp_path)
    job_id = "0" * 32
    with files.receive() as folder:
        # More than the kernel takes for somebody who does not read.
        (folder / "clip").write_bytes(bytes(16_000_000))
        request = JobRequest.settle(JobOptions(seed=7), folder / "clip")
        files.accept(folder, job_id, request)
    notes = ProgressNotes()

    async def run(api: Api, queue: JobQueue) -> dict[str, Any]:
        runner = JobRunner(api.url, b"", files, queue, notes)
        try:
            async with asyncio.timeout(scale(10)):
                return await runner.run(job_id, "", request)
        finally:
            api.closed.set()
            for client in runner._clients.values():
                await client.close()
            await asyncio.to_thread(wait_until, lambda: not list_connections(api.url))

    with serve_api() as api, closing(JobQueue(files.database, max_waiting=9)) as queue:
        api.stalls = [where]
        result = asyncio.run(run(api, queue))
        assert not api.stalls
    assert api.keys == {make_job_key(b"", "")}  # also where the API needs none
    assert files.find_file(job_id, "foley-1.wav", result).read_text() == "7"

"""The executor's connection to the API, against a real server."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import httpx
import pytest

from runners.durable.transport import AiohttpTransport
from tests.durable.receiver import serve_handler


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

"""Connections of HTTP, on the server that BentoML makes: uvicorn with its default protocol."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from runners.http import connection
from runners.http.connection import end_connections, use_bounded_connections
from tests.patience import scale

DEADLINE_SECONDS = 0.5
MAX_HEAD_BYTES = 65_536
H2C = (
    b"POST / HTTP/1.1\r\nHost: me\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\nContent-Length: 4\r\n\r\nclip"
)
GET = b"GET / HTTP/1.1\r\nHost: me\r\n\r\n"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the body."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextlib.asynccontextmanager
async def connected(uvicorn_server: uvicorn.Server | None = None) -> AsyncIterator[Streams]:
    use_bounded_connections()
    config = uvicorn.Config(echo, lifespan="off", log_config=None)
    config.load()
    state = (uvicorn_server or uvicorn.Server(config)).server_state
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: config.http_protocol_class(config=config, server_state=state, app_state={}),
        "127.0.0.1",
    )
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    try:
        yield reader, writer
    finally:
        writer.close()
        server.close()


def talk(conversation: Callable[[Streams], Awaitable[bytes]]) -> bytes:
    async def run() -> bytes:
        async with connected() as streams:
            return await asyncio.wait_for(conversation(streams), scale(10))

    return asyncio.run(run())


def test_a_large_head_is_refused_while_it_is_read() -> None:
    async def send_too_much(streams: Streams) -> bytes:
        reader, writer = streams
        # To the last byte that is allowed and one more: what is left unread would break the answer.
        writer.write(b"GET / HTTP/1.1\r\nHost: me\r\nX-Long: ".ljust(MAX_HEAD_BYTES + 1, b"a"))
        return await reader.read()

    assert talk(send_too_much).startswith(b"HTTP/1.1 400")


def test_an_offer_of_a_websocket_is_served_as_a_request() -> None:
    """Nothing here speaks it, and the checks of requests would not see it."""

    async def offer(streams: Streams) -> bytes:
        reader, writer = streams
        writer.write(
            b"GET / HTTP/1.1\r\nHost: me\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        return await reader.readuntil(b"\r\n\r\n")

    assert talk(offer).startswith(b"HTTP/1.1 200")


def test_an_offer_of_http2_is_served_with_its_body() -> None:
    async def offer(streams: Streams) -> bytes:
        reader, writer = streams
        writer.write(H2C)
        return await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(4)

    answer = talk(offer)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"clip")


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost:", GET + b"GET / HT"])
def test_a_head_that_does_not_come_ends_the_connection(
    begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", DEADLINE_SECONDS)

    async def wait(streams: Streams) -> bytes:
        reader, writer = streams
        writer.write(begun)
        return await reader.read()  # until the server closes

    assert talk(wait).count(b"200 OK") == begun.count(GET)


def test_bodies_and_kept_connections_outlast_the_deadline_of_heads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", DEADLINE_SECONDS)

    async def pause(streams: Streams) -> bytes:
        reader, writer = streams
        writer.write(b"POST / HTTP/1.1\r\nHost: me\r\nContent-Length: 4\r\n\r\ncl")
        await asyncio.sleep(2 * DEADLINE_SECONDS)
        writer.write(b"ip")
        await reader.readuntil(b"clip")
        await asyncio.sleep(2 * DEADLINE_SECONDS)
        writer.write(GET)
        return await reader.readuntil(b"\r\n\r\n")

    assert talk(pause).startswith(b"HTTP/1.1 200")


def test_connections_are_kept_longer_than_proxies_keep_them() -> None:
    assert connection.KEEP_ALIVE_SECONDS > 75


def end(conversation: Callable[[Streams], Awaitable[bytes]]) -> bytes:
    """Talk with a server that is to end, until it has no connection any more."""

    async def run() -> bytes:
        server = uvicorn.Server(uvicorn.Config(echo))
        async with connected(server) as streams, asyncio.timeout(scale(10)):
            begun = await conversation(streams)
            assert server.server_state.connections
            ending = asyncio.create_task(end_connections(server))
            while server.server_state.connections:
                await asyncio.sleep(0.02)
            ending.cancel()
            return begun

    return asyncio.run(run())


def test_a_caller_who_reads_nothing_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "STALL_SECONDS", 0.3)

    async def read_nothing(streams: Streams) -> bytes:
        _, writer = streams
        size = 8_000_000  # more than the kernel keeps for a connection
        writer.write(b"POST / HTTP/1.1\r\nHost: me\r\nContent-Length: %d\r\n\r\n" % size)
        writer.write(bytes(size))
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await writer.drain()
        return b""

    end(read_nothing)


def test_a_connection_that_was_not_asked_to_close_does_not_hold_up_the_end() -> None:
    async def keep(streams: Streams) -> bytes:
        reader, writer = streams
        writer.write(GET)
        return await reader.readuntil(b"\r\n\r\n")

    assert end(keep).startswith(b"HTTP/1.1 200")

"""The forwarding to the page's process, with a process that does not answer."""

import asyncio
import contextlib
import fcntl
from pathlib import Path

import pytest
from starlette.types import Message

from foley.errors import EndingError, NotReadyError
from runners.jobs.ending import Ending
from runners.page.proxy import PageProxy
from tests.page.loops import run_apart
from tests.patience import scale

SCOPE = {
    "type": "http",
    "method": "GET",
    "path": "/ui/",
    "raw_path": b"/ui/",
    "query_string": b"",
    "headers": [],
}


async def receive() -> Message:
    """Wait: the caller sends nothing more and does not leave."""
    await asyncio.Event().wait()
    raise AssertionError


async def send(message: Message) -> None:
    """Take nothing: the proxy has no answer to give."""
    raise AssertionError(message)


def test_a_page_that_does_not_answer_does_not_delay_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runners.page.proxy.STOP_SECONDS", 0.1)

    async def call() -> None:
        asked, left = asyncio.Event(), asyncio.Event()

        async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            asked.set()
            await reader.read()
            writer.close()
            left.set()

        async with await asyncio.start_unix_server(say_nothing, tmp_path / "page.sock"):
            proxy = PageProxy(tmp_path, prefix="/ui", ending=Ending(30))
            request = asyncio.create_task(proxy(SCOPE, receive, send))
            await asyncio.wait_for(asked.wait(), scale(20))
            assert not request.done()
            proxy._stopping.set()
            with pytest.raises(NotReadyError, match="ending"):
                await asyncio.wait_for(request, scale(20))
            await asyncio.wait_for(left.wait(), scale(20))

    run_apart(call())


def test_a_page_that_is_killed_before_it_answers_is_starting_again(tmp_path: Path) -> None:
    async def call() -> None:
        async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.close()

        proxy = PageProxy(tmp_path, prefix="/ui", ending=Ending(30))
        with (tmp_path / "page.lock").open("wb") as lock:  # as if another process had started it
            fcntl.flock(lock, fcntl.LOCK_EX)
            async with await asyncio.start_unix_server(end, tmp_path / "page.sock"):
                with pytest.raises(NotReadyError, match="the page is starting"):
                    await proxy(SCOPE, receive, send)

    run_apart(call())


def test_a_generation_ends_with_its_error_and_the_tab_is_open_until_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runners.page.proxy.LAST_EVENT_SECONDS", scale(10))
    ending = Ending(scale(1))
    proxy = PageProxy(tmp_path, prefix="/ui", ending=ending)
    (tmp_path / "page-events" / "of a killed process").touch()

    async def call() -> None:
        async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\n\r\nbegun ")
            if b"queue/data" in head:  # as when the service has told that it cut the work off
                with contextlib.suppress(EndingError):
                    await ending.wait_for_cut_off()
                assert "alive" in open_streams
                writer.write(b"the service is ending")
                await writer.drain()
            else:
                await reader.read()
            writer.close()
            ended.release()

        async def read(name: str, path: str) -> bytes:
            open_streams.add(name)
            body = b""

            async def send(message: Message) -> None:
                nonlocal body
                body += message.get("body", b"")
                begun[name].set() if body else None

            await proxy(SCOPE | {"path": path, "raw_path": path.encode()}, receive, send)
            open_streams.discard(name)
            return body

        open_streams: set[str] = set()
        ended = asyncio.Semaphore(0)
        begun = {"alive": asyncio.Event(), "events": asyncio.Event()}
        async with await asyncio.start_unix_server(stream, tmp_path / "page.sock"):
            alive = asyncio.create_task(read("alive", "/ui/gradio_api/heartbeat/tab"))
            events = asyncio.create_task(read("events", "/ui/gradio_api/queue/data"))
            await asyncio.wait_for(asyncio.gather(*(e.wait() for e in begun.values())), scale(20))
            proxy._stopping.set()
            await ending.drain()
            assert await asyncio.wait_for(events, scale(5)) == b"begun the service is ending"
            assert await asyncio.wait_for(alive, scale(5)) == b"begun "
            for _ in range(2):
                await asyncio.wait_for(ended.acquire(), scale(20))

    run_apart(call())

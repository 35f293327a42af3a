"""The forwarding to the page's process, with a process that does not answer."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from starlette.types import Message

from foley.errors import NotReadyError
from runners.page.proxy import PageProxy
from tests.patience import scale


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

        async def receive() -> Message:
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Message) -> None:
            raise AssertionError(message)

        async with await asyncio.start_unix_server(say_nothing, tmp_path / "page.sock"):
            proxy = PageProxy(tmp_path, prefix="/ui")
            scope = {
                "type": "http",
                "method": "GET",
                "raw_path": b"/ui/",
                "query_string": b"",
                "headers": [],
            }
            request = asyncio.create_task(proxy(scope, receive, send))
            await asyncio.wait_for(asked.wait(), scale(20))
            assert not request.done()
            proxy._stopping.set()
            with pytest.raises(NotReadyError, match="ending"):
                await asyncio.wait_for(request, scale(20))
            await asyncio.wait_for(left.wait(), scale(20))

    with ThreadPoolExecutor(1) as pool:  # the browser's event loop may run in this thread
        pool.submit(lambda: asyncio.run(call())).result()

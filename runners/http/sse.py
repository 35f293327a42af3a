"""Server-sent events: the response to one request, sent while it is worked on.

Source: HTML Living Standard, 9.2 "Server-sent events".
"""

import asyncio
import json
from typing import Any

from starlette.types import Send

MEDIA_TYPE = "text/event-stream"
KEEP_ALIVE_SECONDS = 10.0
KEEP_ALIVE = b": keep-alive\n\n"


def encode_event(name: str, data: dict[str, Any]) -> bytes:
    """Return an event as it is sent.

    Args:
        name: of the event.
        data: JSON object.
    """
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


class EventStream:
    """A queue of events between the work on a request and its HTTP response.

    The queue has no limit of its own: a request has one event for each solver step, at most a few
    hundred small ones.

    Attributes:
        begun: whether it has had an event.
    """

    def __init__(self) -> None:
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._changed = asyncio.Event()
        self.begun = False

    def put(self, name: str, data: dict[str, Any]) -> None:
        """Add an event without waiting for the caller to read it.

        Args:
            name: of the event.
            data: JSON object.
        """
        self._queue.put_nowait(encode_event(name, data))
        self.begun = True
        self._changed.set()

    def close(self) -> None:
        """End the stream after the events that were added so far."""
        self._queue.put_nowait(None)
        self._changed.set()

    async def wait_until_begun(self) -> bool:
        """Wait for the first event; returns False if the stream is closed without one."""
        await self._changed.wait()
        return self.begun

    async def send_to(self, send: Send) -> None:
        """Send the response: its head, the events until the end, and comments while there is none.

        Args:
            send: of the ASGI connection.
        """
        headers = {"content-type": MEDIA_TYPE, "cache-control": "no-store"}
        headers["x-accel-buffering"] = "no"  # proxies would hold events back
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        block: bytes | None = b""
        while block is not None:
            try:
                async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                    block = await self._queue.get()
            except TimeoutError:
                block = KEEP_ALIVE
            more = block is not None
            await send({"type": "http.response.body", "body": block or b"", "more_body": more})

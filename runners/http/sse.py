"""Server-sent events: the answer to one request, told as it comes about."""

import asyncio
import json
from typing import Any

from starlette.types import Send

MEDIA_TYPE = "text/event-stream"
KEEP_ALIVE_SECONDS = 10.0
KEEP_ALIVE = b": keep-alive\n\n"


class EventStream:
    """Events in the order in which they are told."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[bytes | None] = asyncio.Queue()

    def tell(self, event: str, data: dict[str, Any]) -> None:
        """Say something; never waits for the caller to read it."""
        self._waiting.put_nowait(f"event: {event}\ndata: {json.dumps(data)}\n\n".encode())

    def end(self) -> None:
        """Say that nothing follows."""
        self._waiting.put_nowait(None)

    async def send_to(self, send: Send) -> None:
        """Send what is told until the end, and a comment whenever nothing was said for a while."""
        headers = {"content-type": MEDIA_TYPE, "cache-control": "no-store"}
        headers["x-accel-buffering"] = "no"  # proxies would hold events back
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        block: bytes | None = b""
        while block is not None:
            try:
                block = await asyncio.wait_for(self._waiting.get(), KEEP_ALIVE_SECONDS)
            except TimeoutError:
                block = KEEP_ALIVE
            more = block is not None
            await send({"type": "http.response.body", "body": block or b"", "more_body": more})

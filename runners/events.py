"""Server-sent events: the answer to one request, told as it comes about."""

import asyncio
import json
import time
from typing import Any

from starlette.types import Send

from runners.messages import Update

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


class Pace:
    """How long the rest of the steps will take, by the rate of those before."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None  # step, and when

    def described(self, update: Update) -> dict[str, Any]:
        """The update as callers see it, with `seconds_left` of its stage where that is known."""
        told = update.model_dump(exclude_none=True)
        if update.step is None or update.num_steps is None:
            return told
        now = time.monotonic()
        if self._first is None or update.step <= self._first[0]:
            self._first = (update.step, now)
            return told
        step, since = self._first
        seconds_a_step = (now - since) / (update.step - step)
        return told | {"seconds_left": round(seconds_a_step * (update.num_steps - update.step), 3)}

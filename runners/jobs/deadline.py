"""How long a request is worked on: until its time is up, or its caller leaves."""

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

from starlette.types import Receive

from foley.errors import CancelledRequestError
from runners import tracing

T = TypeVar("T")


class Deadline:
    """Seconds that a request spent in each stage, and has left."""

    def __init__(self, limit_seconds: float) -> None:
        self.limit_seconds = limit_seconds
        self.seconds: dict[str, float] = {}
        self._started = time.monotonic()

    @property
    def left_seconds(self) -> float:
        """Seconds until the limit."""
        return max(0.0, self._started + self.limit_seconds - time.monotonic())

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is inside."""
        started = time.monotonic()
        with tracing.span(name):
            yield
        self.seconds[name] = time.monotonic() - started

    def with_total(self) -> dict[str, float]:
        """The stages in order, and the whole."""
        return {**self.seconds, "total": time.monotonic() - self._started}


async def run_until_cancelled(
    work: Coroutine[Any, Any, T], *cancel_signals: Coroutine[Any, Any, str]
) -> T:
    """The result of `work`, which is cancelled as soon as one of `cancel_signals` returns a reason.

    Raises:
        CancelledRequestError: with that reason.
    """
    working = asyncio.ensure_future(work)
    leaving = [asyncio.ensure_future(one) for one in cancel_signals]
    try:
        await asyncio.wait([working, *leaving], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise CancelledRequestError(next(one.result() for one in leaving if one.done()))
        return working.result()
    finally:
        for task in (working, *leaving):
            task.cancel()
        await asyncio.gather(working, *leaving, return_exceptions=True)


async def disconnected(receive: Receive) -> str:
    """Returns, with the reason, when the caller is gone; once the body of its request is read."""
    while (await receive())["type"] != "http.disconnect":
        pass
    return "the caller left"

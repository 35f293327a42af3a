"""The time limit of a request, and the other reasons to stop working on it."""

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

from foley.errors import CancelledRequestError
from runners import tracing

T = TypeVar("T")


class Deadline:
    """The time that a request has left, and the time that each stage took.

    Args:
        limit_seconds: from now on, more than 0.

    Attributes:
        limit_seconds: of the request.
        seconds: of each stage that has ended, by name, in order.
    """

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
        """Measure a stage of the request, and trace it.

        Args:
            name: of the stage; `seconds` gets it when the block ends without an error.
        """
        started = time.monotonic()
        with tracing.start_span(name):
            yield
        self.seconds[name] = time.monotonic() - started

    def with_total(self) -> dict[str, float]:
        """Return the seconds of the stages in order, and `total`, those since the start."""
        return {**self.seconds, "total": time.monotonic() - self._started}


async def run_until_cancelled(
    work: Coroutine[Any, Any, T], *cancel_signals: Coroutine[Any, Any, str]
) -> T:
    """Await `work`; cancel it when any of `cancel_signals` fires.

    Args:
        work: awaited to its end, also after it was cancelled.
        cancel_signals: each returns the reason to cancel.

    Raises:
        CancelledRequestError: with that reason.
    """
    working = asyncio.ensure_future(work)
    waiting = [asyncio.ensure_future(signal) for signal in cancel_signals]
    try:
        await asyncio.wait([working, *waiting], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise CancelledRequestError(next(task.result() for task in waiting if task.done()))
        return working.result()
    finally:
        for task in (working, *waiting):
            task.cancel()
        await asyncio.gather(working, *waiting, return_exceptions=True)

"""The time limit of a request, and the other reasons to stop working on it."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

from foley.errors import CancelledRequestError
from runners import tracing

T = TypeVar("T")


class Deadline:
    """The time that a request has left, and the time that each stage took.

    Args:
        limit_seconds: from now on, more than 0.
        most_seconds: that the limit may be extended to; none where None.

    Attributes:
        limit_seconds: of the request.
        seconds: of each stage that has ended, by name, in order.
    """

    def __init__(self, limit_seconds: float, most_seconds: float | None = None) -> None:
        self.limit_seconds = limit_seconds
        self._most_seconds = math.inf if most_seconds is None else most_seconds
        self._enforced: dict[asyncio.Timeout, float] = {}  # and their further seconds
        self.seconds: dict[str, float] = {}
        self._started = time.monotonic()

    @property
    def left_seconds(self) -> float:
        """Seconds until the limit."""
        return max(0.0, self._started + self.limit_seconds - time.monotonic())

    @contextlib.asynccontextmanager
    async def enforce(self, further_seconds: float = 0.0) -> AsyncIterator[None]:
        """Cancel the block at the limit, also if it is extended meanwhile.

        Args:
            further_seconds: after the limit.

        Raises:
            TimeoutError: the limit has passed.
        """
        async with asyncio.timeout(self.left_seconds + further_seconds) as timeout:
            self._enforced[timeout] = further_seconds
            try:
                yield
            finally:
                del self._enforced[timeout]

    def extend(self, limit_seconds: float) -> None:
        """Raise the limit, because the request turns out to be a larger one.

        Args:
            limit_seconds: from the start; less than the limit changes nothing.
        """
        limit_seconds = min(limit_seconds, self._most_seconds)
        if limit_seconds <= self.limit_seconds:
            return
        self.limit_seconds = limit_seconds
        now = asyncio.get_running_loop().time()
        for timeout, further_seconds in self._enforced.items():
            if not timeout.expired():
                timeout.reschedule(now + self.left_seconds + further_seconds)

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

"""The end of an API process after SIGTERM: new work is refused, and accepted work may end.

    signal ── accepted work goes on ──► cut-off: what is left gets `ending` ──► the server ends
           └─ probes are answered, new work gets `ending` ─────────────────┘

Uvicorn stops accepting connections as soon as it learns of the signal. The launcher keeps the port
open, so that probes and callers would wait there without an answer. So it learns of it afterwards.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator

import structlog

from foley.errors import EndingError

log = structlog.get_logger(__name__)

LAST_SECONDS = 5.0  # from the cut-off to the end of the grace period
POLL_SECONDS = 0.05


def find_last_seconds(grace_seconds: float) -> float:
    """Return how long before the end of the grace period work is cut off.

    Args:
        grace_seconds: above 0.
    """
    return min(LAST_SECONDS, grace_seconds / 5)


class Ending:
    """Whether this process is to end, and the work that it has accepted.

    Args:
        grace_seconds: from the signal to the end of the process, above 0. The last fifth of it, but
            no more than `LAST_SECONDS`, is for the last answers.
    """

    def __init__(self, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        self._active: Counter[str] = Counter()
        self._has_begun = False
        self._cut_off = asyncio.Event()

    def check(self) -> None:
        """Return if new work is taken.

        Raises:
            EndingError: it is not.
        """
        if self._has_begun:
            raise EndingError(
                "the service is ending and takes no new work; send the request again later"
            )

    @contextlib.contextmanager
    def accept_work(self, name: str) -> Iterator[None]:
        """Count the block as accepted work, for which the process waits.

        Args:
            name: of the work, for the log; need not be unique.

        Raises:
            EndingError: as `check`.
        """
        self.check()
        self._active[name] += 1
        try:
            yield
        finally:
            self._active[name] -= 1
            self._active += Counter()  # leaves out what has ended

    async def wait_for_cut_off(self) -> str:
        """Run beside accepted work, as a signal of `run_until_cancelled`, until its time is over.

        Raises:
            EndingError: always, then.
        """
        await self._cut_off.wait()
        raise EndingError(
            "the service is ending, and the request was not done in time; send it again later"
        )

    async def drain(self) -> float:
        """Refuse new work, and wait until accepted work has ended or was cut off.

        Returns:
            the seconds that are left of the grace period, 0 or more.
        """
        started, self._has_begun = time.monotonic(), True
        last_seconds = find_last_seconds(self._grace_seconds)
        if self._active:
            log.info("ending_waits", work=sorted(self._active.elements()))
        await self._wait_until_idle(started + self._grace_seconds - last_seconds)
        if self._active:
            log.warning("ending_cut_off", work=sorted(self._active.elements()))
        self._cut_off.set()
        await self._wait_until_idle(time.monotonic() + last_seconds / 2)
        return max(0.0, started + self._grace_seconds - time.monotonic())

    async def _wait_until_idle(self, stop: float) -> None:
        while self._active and time.monotonic() < stop:
            await asyncio.sleep(POLL_SECONDS)

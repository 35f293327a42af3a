"""Time limits that grow with the load of the machine.

A test waits for an event and gives up after a limit. The limits in the tests are those for a quiet
machine of two cores. They are multiplied by how much slower the machine is at the moment.

    wait_until(path.exists)                         wait for an event
    wait_for_exit(process)                          wait for the end of a process
    deadline = Deadline(20)                         a loop that does more than wait
    queue.get(timeout=scale(20))                    a limit that another function takes
    assert is_within(time.monotonic() - started, 2) a limit that is the subject of the test
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

# Starting a process, importing and computing: what the tests' servers and commands do.
WORK = "import asyncio, json\nfor number in range(2_000_000): number * number % 7"
WORK_SECONDS = 0.33  # measured on a quiet machine: 0.30 to 0.33 s
# A request to a server passes through several processes, each of which waits for a core.
SEVERAL_PROCESSES = 2
MAX_SLOWDOWN = 20.0
MAX_AGE_SECONDS = 60.0
POLL_SECONDS = 0.02

# How long each test that kills processes all the while goes on, where `make soak` runs it.
SOAK_SECONDS = float(os.environ.get("SOAK_SECONDS", "3600"))

T = TypeVar("T")


class _Latest:
    """The latest measurement."""

    slowdown = 1.0
    measured = -float("inf")  # when, on the monotonic clock


def slowdown(max_age_seconds: float = MAX_AGE_SECONDS) -> float:
    """Return how many times slower the machine is than a quiet one, from 1 to 20.

    Args:
        max_age_seconds: use the latest measurement if it is no older; 0 measures now.
    """
    if time.monotonic() - _Latest.measured > max_age_seconds:
        started = time.monotonic()
        subprocess.run([sys.executable, "-I", "-c", WORK], check=True)
        _Latest.measured = time.monotonic()
        waited_share = (_Latest.measured - started) / WORK_SECONDS - 1
        _Latest.slowdown = min(MAX_SLOWDOWN, 1 + SEVERAL_PROCESSES * max(0.0, waited_share))
    return _Latest.slowdown


def scale(seconds: float) -> float:
    """Return the limit of `seconds` on a quiet machine, as it is on this machine now."""
    return seconds * slowdown()


class Deadline:
    """A limit in seconds from now, for a loop that waits for an event.

    The machine is measured again before the limit counts as passed, since load may have come after
    the wait began.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._started = time.monotonic()
        self._allowed = seconds

    def is_over(self) -> bool:
        """Whether the limit has passed."""
        if time.monotonic() - self._started < self._allowed:
            return False
        self._allowed = max(self._allowed, self._seconds * slowdown(max_age_seconds=1))
        return time.monotonic() - self._started > self._allowed


def is_within(elapsed_seconds: float, limit_seconds: float) -> bool:
    """Whether something that has taken so long has kept its limit, under the machine's load.

    Args:
        elapsed_seconds: what it took.
        limit_seconds: what it may take on a quiet machine.
    """
    if elapsed_seconds < limit_seconds:
        return True
    before = slowdown()  # the load may end with what is measured
    return elapsed_seconds < limit_seconds * max(before, slowdown(max_age_seconds=0))


def wait_until(condition: Callable[[], T], seconds: float = 20, *, what: object = "") -> T:
    """Call `condition` until it returns something true, and return that.

    Args:
        condition: asked every 20 ms.
        seconds: limit on a quiet machine.
        what: what the failure is to say; called if it can be.

    Raises:
        AssertionError: the limit has passed.
    """
    deadline = Deadline(seconds)
    while not (found := condition()):
        assert not deadline.is_over(), what() if callable(what) else what
        time.sleep(POLL_SECONDS)
    return found


def wait_for_exit(process: subprocess.Popen[Any], seconds: float = 30) -> int:
    """Wait for the end of a process and return its exit status.

    Args:
        process: a child of this process.
        seconds: limit on a quiet machine.

    Raises:
        AssertionError: it is still running after the limit.
    """
    wait_until(lambda: process.poll() is not None, seconds, what=f"{process.args} goes on")
    status: int = process.returncode
    return status

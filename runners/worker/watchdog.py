"""End a GPU process that no longer answers, so that it is started again from outside.

Two things can hang: the event loop, when something keeps Python's lock, and an engine, when a
device never finishes. Nothing in the process could serve a request after that.
"""

import asyncio
import faulthandler
import time
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from runners.worker.worker import Worker

log = structlog.get_logger(__name__)

SHOW_SECONDS = 0.2  # in which the processes of devices write where they are
BEATS = 10  # in the time that the process may be silent


async def watch(worker: "Worker", *, silent_seconds: float, action_seconds: float) -> None:
    """Watch until cancelled, from the moment on at which the model is ready.

    If the event loop stands still, a thread without Python's lock writes where each thread is to
    standard error, and ends the process with status 1. Loading is not watched, because libraries
    keep the lock for as long as they like while they are imported.

    Args:
        worker: of this process.
        silent_seconds: how long the event loop may stand still.
        action_seconds: how long one piece of the model's work may take.
    """
    try:
        while True:
            if worker.status.state == "ready":
                busy_seconds = worker.measure_longest_action(time.monotonic())
                if busy_seconds > action_seconds:
                    log.error("engine_hangs", seconds=round(busy_seconds))
                    worker.show_threads()
                    await asyncio.sleep(SHOW_SECONDS)
                    faulthandler.dump_traceback_later(0.001, exit=True)
                else:
                    faulthandler.dump_traceback_later(silent_seconds, exit=True)
            await asyncio.sleep(silent_seconds / BEATS)
    finally:
        faulthandler.cancel_dump_traceback_later()

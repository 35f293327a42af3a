"""The moment at which the process is asked to end, which its server tells nobody."""

import asyncio
import signal
import threading
from collections.abc import Callable
from types import FrameType


def on_end_asked(begin: Callable[[], object]) -> None:
    """Have `begin` called in this event loop on SIGTERM or SIGINT, beside what is done already.

    The server around us first waits for its own connections, which takes as long as they like, and
    only then runs shutdown hooks. Outside the main thread, where no signals come, nothing happens.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)

        def heed(number: int, frame: FrameType | None, before: object = before) -> None:
            loop.call_soon_threadsafe(begin)
            if callable(before):
                before(number, frame)

        signal.signal(number, heed)

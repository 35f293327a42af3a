"""Keep a process from outliving the one that has started it."""

import ctypes
import os
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
LOOK_SECONDS = 0.5


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that has started it ends (Linux only)."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def end_with_parent(*, grace_seconds: float) -> None:
    """Send this process SIGTERM once the one that has started it is gone, and later end it anyway.

    The kernel could send the signal too, but when the thread that has started this process ends.
    A thread looks here, since an event loop may be busy.

    Args:
        grace_seconds: within which it ends by itself after the signal.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_seconds)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()

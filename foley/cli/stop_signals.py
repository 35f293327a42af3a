"""The signals that stop a command: Ctrl+C, SIGTERM, and SIGHUP of a terminal that is closed.

A command that is stopped removes what it has not finished, says so in one line, and ends with 128
and the signal's number.
"""

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import NoReturn

from foley.errors import iterate_causes

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """Handles the signals inside its block: at first it ends the process at once.

    A signal that was ignored when the process started stays ignored, as under nohup. In a thread
    that is not the main one it does nothing.
    """

    def __init__(self) -> None:
        self._received = signal.SIGINT
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in _STOP_SIGNALS:
                handler = signal.getsignal(number)
                if handler in (signal.SIG_DFL, signal.default_int_handler):
                    self._before[number] = handler
                    signal.signal(number, self._end)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def interrupt(self) -> None:
        """From here on, raise `KeyboardInterrupt` where the program is."""
        for number in self._before:
            # asyncio replaces this very handler of SIGINT by one that cancels its tasks.
            is_int = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_int else self._interrupt)

    def exit(self) -> NoReturn:
        """Say what has stopped the command, and exit."""
        sys.stderr.flush()
        self._say()
        sys.exit(128 + self._received)

    def _say(self) -> None:
        is_int = self._received == signal.SIGINT
        what = "interrupted" if is_int else f"stopped by {self._received.name}"
        # As one call: a handler may run in the middle of a print.
        os.write(2, f"foley: {what}; no partial file was left\n".encode())

    def _end(self, number: int, frame: FrameType | None) -> None:
        # Nothing has begun. An exception would end in the middle of another module's imports.
        self._received = signal.Signals(number)
        self._say()
        os._exit(128 + number)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number)
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler):
            handler(number, frame)
        else:  # SIGINT is ignored, as in the background of a shell
            raise KeyboardInterrupt


def is_interruption(error: BaseException | None) -> bool:
    """Return whether an error comes from `KeyboardInterrupt`.

    Python makes another error of one that is raised inside a class statement.

    Args:
        error: what ended the command.
    """
    return any(isinstance(cause, KeyboardInterrupt) for cause in iterate_causes(error))

"""The process that has the model, and what is done when it dies.

A row that was in hand when the process died is given to the next process. A row that was in hand
twice is then given to it alone, so that it is known which row it was if the process dies again.
"""

import contextlib
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from foley.bulk import BulkOutcome, BulkReady, BulkStart, BulkTask
from foley.errors import FoleyError, RunnerLostError, ServerError, make_error
from foley.processes import end_within

COMMAND = (sys.executable, "-m", "runners.bulk")
SOURCE_ROOT = Path(__file__).resolve().parents[3]
# Deaths after which a row is worked on alone. The next one is its own fault.
MAX_DEATHS_AMONG_OTHERS = 2
MAX_DEATHS_WITHOUT_OUTCOME = 5
END_SECONDS = 10.0


@dataclass(eq=False)
class _Row:
    """A row that has no outcome yet."""

    task: BulkTask
    outcome: "Future[BulkOutcome]" = field(default_factory=Future)
    deaths: int = 0

    @property
    def is_suspect(self) -> bool:
        return self.deaths >= MAX_DEATHS_AMONG_OTHERS


class StationProcess:
    """Works on rows in another process, which is started again when it dies.

    The process begins to load the model at once. `load` waits for it.

    Args:
        start: which model to load.
        command: of the process.
        environment: of the process; None for that of this one.

    Attributes:
        ready: what the first process answered, once it is loaded.
        num_deaths: how often a process died.
    """

    def __init__(
        self,
        start: BulkStart,
        command: tuple[str, ...] = COMMAND,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._start = start
        self._command = command
        self._environment = environment
        self._lock = threading.Lock()
        self._waiting: deque[_Row] = deque()
        self._in_hand: dict[str, _Row] = {}
        self._deaths_without_outcome = 0
        self._closed = False
        self._is_dead = False  # until another process is ready
        self._failure: FoleyError | None = None
        self.num_deaths = 0
        self.ready = BulkReady()
        self._reader = threading.Thread(target=self._read, name="foley-station", daemon=True)
        self._process = self._launch()

    @property
    def pid(self) -> int:
        """The id of the process that there is now."""
        return self._process.pid

    def load(self) -> None:
        """Return when the model is ready. To be called once, before rows are submitted.

        Raises:
            ServerError: the model cannot be loaded.
        """
        self.ready = _await_ready(self._process)
        self._reader.start()

    def submit(self, task: BulkTask) -> "Future[BulkOutcome]":
        """Return the outcome of a row, which comes later.

        It raises a `ServerError` if the process dies again and again.

        Args:
            task: whose `id` no other row in hand has.
        """
        row = _Row(task)
        with self._lock:
            if self._failure is not None:
                row.outcome.set_exception(self._failure)
                return row.outcome
            self._waiting.append(row)
            self._send()
        return row.outcome

    def hang_up(self) -> None:
        """Let the process end, without waiting for it."""
        with self._lock:
            self._closed = True
            process = self._process
        if not self._reader.ident:
            process.kill()  # it would first load the model
        _close(process.stdin)  # it ends at once, and removes its files

    def close(self) -> None:
        """End the process. Rows in hand are given up, and get no outcome."""
        self.hang_up()
        process = self._process
        end_within(process, END_SECONDS)
        if self._reader.ident:
            self._reader.join(END_SECONDS)
        _close(process.stdout)

    def _launch(self) -> "subprocess.Popen[str]":
        # In a session of its own, so that Ctrl+C reaches only the command, which then ends it.
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            cwd=SOURCE_ROOT,
            env=self._environment,
            start_new_session=True,
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died: its end is read next
            process.stdin.write(self._start.model_dump_json() + "\n")
        return process

    def _send(self) -> None:
        """Give rows to the process. The lock is held."""
        stdin = self._process.stdin
        assert stdin is not None
        while self._waiting and len(self._in_hand) < self.ready.jobs and not self._is_dead:
            is_alone = any(row.is_suspect for row in self._in_hand.values())
            if is_alone or (self._waiting[0].is_suspect and self._in_hand):
                return
            row = self._waiting.popleft()
            self._in_hand[row.task.id] = row
            try:
                stdin.write(row.task.model_dump_json() + "\n")
            except (OSError, ValueError):
                return  # it has died: the reader will see that

    def _read(self) -> None:
        """Read outcomes until the end, and start the process again when it dies."""
        while True:
            assert self._process.stdout is not None
            for line in self._process.stdout:
                if line.endswith("\n"):  # a dying process may leave a part of a line
                    self._take(BulkOutcome.model_validate_json(line))
            with self._lock:
                self._is_dead = True
                if self._closed:
                    return
            try:
                self._restart()
            except FoleyError as error:
                self._give_up(error)
                return

    def _take(self, outcome: BulkOutcome) -> None:
        with self._lock:
            self._deaths_without_outcome = 0
            row = self._in_hand.pop(outcome.id)
            self._send()
        row.outcome.set_result(outcome)

    def _restart(self) -> None:
        status = self._process.wait()
        _close(self._process.stdin)
        _close(self._process.stdout)
        self.num_deaths += 1
        self._deaths_without_outcome += 1
        rows = list(self._in_hand.values())
        lost = []
        for row in rows:
            row.deaths += 1
            # Its results may be there in part, and are its own.
            row.task = row.task.model_copy(update={"replace": True})
            if row.deaths > MAX_DEATHS_AMONG_OTHERS and len(rows) == 1:
                lost.append(row)
        if self._deaths_without_outcome > MAX_DEATHS_WITHOUT_OUTCOME:
            raise ServerError(
                f"the process of the model died {self._deaths_without_outcome} times in a row "
                f"without a result, the last time with status {status}; it may lack memory: try "
                "fewer rows at once with -j"
            )
        process = self._launch()
        with self._lock:
            self._process = process  # so that it can be ended while it loads
            if self._closed:
                process.kill()
        _await_ready(process)
        with self._lock:
            self._is_dead, self._in_hand = False, {}
            kept = [row for row in rows if row not in lost]
            # Suspects go last, since nothing else runs beside one.
            self._waiting.extendleft(row for row in reversed(kept) if not row.is_suspect)
            self._waiting.extend(row for row in kept if row.is_suspect)
            self._send()
        for row in lost:
            error = RunnerLostError(
                f"the process of the model died {row.deaths} times at this row, the last time with "
                f"status {status}"
            )
            row.outcome.set_result(BulkOutcome.from_error(row.task, error, finished=time.time()))

    def _give_up(self, error: FoleyError) -> None:
        with self._lock:
            self._failure = error
            rows = [*self._in_hand.values(), *self._waiting]
        for row in rows:
            row.outcome.set_exception(error)


def _await_ready(process: "subprocess.Popen[str]") -> BulkReady:
    """Return the answer of a process that loads the model.

    Raises:
        ServerError: the model cannot be loaded. The process has ended.
    """
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
    except BaseException:  # Ctrl+C among them
        process.kill()
        process.wait()
        raise
    ready = BulkReady.model_validate_json(line) if line else None
    if ready is not None and ready.error is None:
        return ready
    _close(process.stdin)
    status = process.wait()
    _close(process.stdout)
    if ready is not None and ready.error is not None:
        raise make_error(*ready.error)
    raise ServerError(
        f"the process of the model ended with status {status} before it was ready; what it "
        "wrote above may say why"
    )


def _close(pipe: IO[str] | None) -> None:
    """Close a pipe, whose other end may have died before it read everything."""
    if pipe is not None:
        with contextlib.suppress(OSError):
            pipe.close()

"""A request in the worker: its place, what is known of its session, and its outcome."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Self

from foley.request import GenerationRequest
from foley.types import Stage
from runners import metrics
from runners.handoff import has_piece
from runners.messages import OnPiece, OnProgressUpdate, ProgressUpdate, RunnerRequest, RunnerResult
from runners.worker.reports import Beginning, Report, SessionState
from runners.worker.scheduler import JobSize, Kind, ScheduledJob

# Returns the work of a request with so many frames at 8 and at 25 fps.
ComputeSize = Callable[[GenerationRequest, int, int], JobSize]


@dataclass(eq=False, kw_only=True)
class RunningJob(ScheduledJob):
    """A request that holds a place in the worker.

    Attributes:
        request: as the API sent it.
        on_update: called with each new state of its progress, on a thread of the worker.
        on_piece: called with each piece of its sound that is final, on a thread of the worker.
        outcome: its result or its error, once it has left.
        is_streamed: whether the frames of its long clip come in pieces.
        state: of its session, which its device holds; None until its first action is launched.
        failure: the error with which it leaves early.
        num_retries: of the session, as the scheduler knows them.
    """

    request: RunnerRequest
    on_update: OnProgressUpdate
    on_piece: OnPiece = lambda piece: None
    outcome: "Future[RunnerResult]" = field(default_factory=Future, init=False)
    is_streamed: bool = field(default=False, init=False)
    state: SessionState | None = field(default=None, init=False)
    failure: Exception | None = field(default=None, init=False)
    num_retries: int = field(default=0, init=False)
    _result: RunnerResult | None = field(default=None, init=False)
    _queue_seconds: float = field(default=0.0, init=False)
    _last_update: ProgressUpdate | None = field(default=None, init=False)

    @classmethod
    def create(cls, request: RunnerRequest, on_update: OnProgressUpdate, on_piece: OnPiece) -> Self:
        """Return the job of a request whose time starts now.

        Args:
            request: from the API.
            on_update: called with its progress.
            on_piece: called with the pieces of its sound.
        """
        return cls(
            id=request.id,
            owner=request.owner,
            priority=request.priority,
            deadline=time.monotonic() + request.timeout_seconds,
            request=request,
            on_update=on_update,
            on_piece=on_piece,
        )

    def begin(self) -> Beginning:
        """Return what its device needs to begin it, and note that it waits no longer."""
        self._queue_seconds = time.monotonic() - self.arrived
        metrics.WAIT_SECONDS.labels(self.priority).observe(self._queue_seconds)
        return Beginning(self.request, self.is_streamed)

    @property
    def next_kind(self) -> Kind | None:
        """The kind of its next action; the stages of a long sound come again for each group."""
        return super().next_kind if self.state is None else self.state.next_kind

    @property
    def tokens(self) -> int:
        """Tokens of its next evaluation."""
        return (self.state and self.state.tokens) or super().tokens

    def count_units(self, kind: Kind) -> int:
        """Return the size of its next action of a kind; see `JobSize.count_units`."""
        if kind is Stage.DECODE_AUDIO and self.state is not None:
            return self.state.num_decoded
        return super().count_units(kind)

    @property
    def is_starved(self) -> bool:
        """Whether its next action needs frames that are not there yet."""
        state = self.state
        if not self.is_streamed:
            return False
        if state is not None and not (state.next_kind is Stage.ENCODE and state.awaits_frames):
            return False
        return not has_piece(self.request.path, state.num_read if state else 0)

    @property
    def has_all_frames(self) -> bool:
        """Whether none of its frames are still to come, once it is queued."""
        return not self.is_streamed or (self.state is not None and self.state.counts is not None)

    def measure_frames(self, compute_size: ComputeSize, kind: Kind) -> None:
        """Correct the size of a long clip after an action, before that is counted.

        Args:
            compute_size: of a request with so many frames at 8 and at 25 fps.
            kind: of the action.
        """
        assert self.state is not None
        num_done = self.done[Stage.ENCODE]
        if self.state.counts is not None:
            self.size = compute_size(self.request.options, *self.state.counts)
        # What the clip states about its length need not be true.
        if kind is Stage.ENCODE:
            num_done += 1
        least = num_done if self.state.is_encoded else max(num_done + 1, self.size.num_pieces)
        self.size = replace(self.size, num_pieces=least)
        self.starved = self.is_starved

    def report(self, update: ProgressUpdate) -> None:
        """Report the progress, unless it equals the last report."""
        if update != self._last_update:
            self._last_update = update
            self.on_update(update)

    def report_stage(self, stage: Stage) -> None:
        """Report the session's progress.

        Args:
            stage: the current one; in `SAMPLE`, the report has the step.
        """
        if stage is Stage.SAMPLE:
            assert self.state is not None
            step, num_steps = self.state.step, self.state.num_steps
            self.report(ProgressUpdate(stage=stage, step=step, num_steps=num_steps))
        else:
            self.report(ProgressUpdate(stage=stage))

    def take(self, report: Report) -> None:
        """Take what an action has made of it, and report its progress and finished pieces.

        Args:
            report: without a failure.
        """
        assert report.state is not None
        self.state, self._result = report.state, report.result
        if self.state.num_pieces is not None:
            # Its size was computed for the first device. Another device, with less memory, may
            # encode the clip in more pieces.
            self.size = replace(self.size, num_pieces=self.state.num_pieces)
        for piece in report.pieces:
            self.on_piece(piece)
        if self.state.next_kind is not None and (self.state.step or self.state.tokens):
            self.report_stage(Stage.SAMPLE)

    def note_retry(self) -> bool:
        """Return whether the session has begun to sample again since the last call."""
        before = self.num_retries
        if self.state is not None:
            self.num_retries = self.state.num_retries
        return self.num_retries > before

    def conclude(self) -> None:
        """Set the outcome, after the job has left the scheduler."""
        if not self.outcome.set_running_or_notify_cancel():
            return  # the outcome itself was cancelled
        if self.failure is not None:
            self.outcome.set_exception(self.failure)
        else:
            assert self._result is not None
            # Its last action has been counted since the result was saved.
            timings = {Stage.QUEUE: self._queue_seconds, **self._result.timings}
            update = {"device_seconds": self.device_seconds, "timings": timings}
            self.outcome.set_result(self._result.model_copy(update=update))

"""The worker: load the model on every device, warm it up, and run requests side by side.

    admit, queue ──► Scheduler ──► one thread for each lane: scheduler.next, lane.launch, complete

The event loop of the process stays free for probes and cancellations. A request that is cancelled
or late leaves at once between two pieces of its work, else after the current piece.
"""

import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import structlog

from foley.configs import SYNC_FPS, WHOLE_CLIP_FRAMES
from foley.errors import (
    CancelledRequestError,
    FoleyError,
    NotReadyError,
    RequestTimeoutError,
    ServerError,
)
from foley.request import check_adapter_names
from foley.types import Stage, count_visual
from runners import metrics
from runners.handoff import FrameCounts
from runners.messages import ModelStatus, OnPiece, OnProgressUpdate, ProgressUpdate, RunnerRequest
from runners.worker.reports import Report
from runners.worker.running_job import ComputeSize, RunningJob
from runners.worker.scheduler import Action, Kind, Scheduler

# These import the models' libraries, which takes seconds. They are imported on the thread that
# loads the model.
if TYPE_CHECKING:
    from runners.worker.device import Device, Lane

log = structlog.get_logger(__name__)

Load = Callable[[], "Sequence[Device]"]


class Worker:
    """Runs requests side by side, on all devices.

    Args:
        load: makes the devices; called once, on a thread of the worker.
        capacity: places for requests, at least 1.
        key_share: largest share of them that the requests of one key may hold, above 0.
        exit_process: called when a thread fails for a reason that concerns no single request, or
            the process of a device ends. This process is then started again from outside.
        freeze_gc: called when the models are warm, before the first request.

    Attributes:
        status: of the model.
    """

    def __init__(
        self,
        load: Load,
        *,
        capacity: int,
        key_share: float = 1.0,
        exit_process: Callable[[], None] = lambda: os._exit(1),
        freeze_gc: Callable[[], None] = lambda: None,
    ) -> None:
        self._load = load
        self._capacity = capacity
        self._key_share = key_share
        self._exit_process = exit_process
        self._freeze_gc = freeze_gc
        self._changed = threading.Condition()  # guards the fields below
        self._scheduler: Scheduler[RunningJob] | None = None
        self._compute_size: ComputeSize | None = None
        self._devices: Sequence[Device] = ()
        self._num_busy: list[int] = []  # lanes at work, on each device
        self._ended: list[float] = []  # when each GPU had done the action that was settled last
        self._began: dict[Action[RunningJob], float] = {}  # actions that are being executed
        self._stopping = False
        self.status = ModelStatus(state="loading")
        self._thread = threading.Thread(target=self._run, name="foley-worker", daemon=True)
        self._thread.start()

    def admit(
        self,
        request: RunnerRequest,
        on_update: OnProgressUpdate = lambda update: None,
        on_piece: OnPiece = lambda piece: None,
    ) -> RunningJob:
        """Give a request a place, while its clip is still being decoded.

        Args:
            request: from the API; its time starts now.
            on_update: called with its progress, on a thread of the worker.
            on_piece: called with the pieces of its sound, if it is long, in the same way.

        Raises:
            NotReadyError: the model is not ready, or the worker is stopping.
            ParameterError: the request names an adapter that the model does not have.
            BusyError: all places are taken.
        """
        if self._scheduler is None:
            raise NotReadyError("the model is not ready")
        known = [adapter.name for adapter in self.status.adapters]
        check_adapter_names((use.name for use in request.options.adapters), known)
        self._drop_late()
        with self._changed:
            if self._stopping:
                raise NotReadyError("the model is being stopped")
            job = RunningJob.create(request, on_update, on_piece)
            self._scheduler.reserve(job)
            self._report_positions()
            self._changed.notify_all()  # its deadline may be the next one
        # Cancelling the outcome frees the place as well.
        job.outcome.add_done_callback(lambda _: self.drop(job, _make_cancelled_error()))
        return job

    def queue(self, job: RunningJob, counts: FrameCounts) -> None:
        """Let a request wait for a device, now that its frames are complete.

        A request that has left meanwhile stays away.

        Args:
            job: of `admit`.
            counts: of its frames.
        """
        assert self._scheduler is not None
        assert self._compute_size is not None
        size = self._compute_size(job.request.options, *counts)
        with self._changed:
            if job.dropped:
                return
            self._scheduler.queue(job, size, now=time.monotonic())
            self._report_positions()
            self._changed.notify_all()

    def queue_long(self, job: RunningJob, expected_seconds: float) -> None:
        """Let a request wait for a device, now that the first frames of its long clip are there.

        A request that has left meanwhile stays away.

        Args:
            job: of `admit`.
            expected_seconds: how long the clip may be.
        """
        num_sync = max(WHOLE_CLIP_FRAMES + 1, int(expected_seconds * SYNC_FPS))
        job.is_streamed = True
        job.starved = job.is_starved
        self.queue(job, FrameCounts(count_visual(num_sync), num_sync))

    def feed(self, job: RunningJob) -> None:
        """Go on with a request that waits for frames, if they have come.

        Args:
            job: of `queue_long`, in any state.
        """
        with self._changed:
            if job.starved and not job.is_starved:
                job.starved = False
                self._changed.notify_all()

    def drop(self, job: RunningJob, reason: Exception) -> None:
        """End a request early: at once, or when the current piece of its work is done.

        Args:
            job: of `admit`; one that has left is ignored.
            reason: its outcome, unless it has failed already.
        """
        with self._changed:
            assert self._scheduler is not None
            if job not in self._scheduler.jobs:
                return
            job.failure = job.failure or reason
            if not self._scheduler.drop(job):
                return
            self._forget(job)
            self._report_positions()
            self._changed.notify_all()  # its place and its memory are free
        job.conclude()

    def cancel(self, job_id: str) -> bool:
        """End a request in any state; returns whether there was one.

        Args:
            job_id: the id of its `RunnerRequest`.
        """
        with self._changed:
            jobs = [job for job in self._list_jobs() if job.id == job_id and not job.failure]
        for job in jobs:
            self.drop(job, _make_cancelled_error())
        return bool(jobs)

    def stop(self, timeout_seconds: float) -> None:
        """Cancel all requests and end the threads.

        Args:
            timeout_seconds: how long to wait for the threads at most.
        """
        with self._changed:
            self._stopping = True
            jobs = self._list_jobs()
            self._changed.notify_all()
        for job in jobs:
            self.drop(job, _make_cancelled_error())
        self._thread.join(timeout_seconds)

    def measure_longest_action(self, now: float) -> float:
        """Return for how many seconds the oldest piece of work has been executed; 0 without any.

        It takes no lock, so that a thread that hangs with the lock cannot hold it up.

        Args:
            now: the time on the monotonic clock.
        """
        return max((now - began for began in list(self._began.values())), default=0.0)

    def show_threads(self) -> None:
        """Have the processes of the devices write where their threads are to standard error."""
        for device in self._devices:
            device.show_threads()

    def _forget(self, job: RunningJob) -> None:
        """Have the device of a request that has left free its state."""
        if job.device is not None:
            self._devices[job.device].forget(job.serial)

    def _list_jobs(self) -> tuple[RunningJob, ...]:
        return () if self._scheduler is None else self._scheduler.jobs

    def _drop_late(self) -> None:
        with self._changed:
            assert self._scheduler is not None
            late = self._scheduler.list_late(time.monotonic())
        for job in late:
            self.drop(
                job, RequestTimeoutError("the request took longer than allowed, and was dropped")
            )

    def _report_positions(self) -> None:
        """Report its position to each waiting request, and update the metrics."""
        assert self._scheduler is not None
        num_begun = self._scheduler.num_begun
        metrics.QUEUE_DEPTH.set(len(self._scheduler.jobs) - num_begun)
        metrics.RUNNING.set(num_begun)
        for position, job in enumerate(self._scheduler.waiting, start=num_begun):
            job.report(ProgressUpdate(stage=Stage.QUEUE, queue_position=position))

    def _run(self) -> None:
        try:
            lanes = self._start()
            threads = [
                threading.Thread(target=self._serve, args=lane, name="foley-engine", daemon=True)
                for lane in lanes
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            for device in self._devices:
                device.close()

    def _start(self) -> "list[tuple[Lane, int]]":
        """Load the model; returns the lanes, each with its device's index; none on failure."""
        started = time.monotonic()
        try:
            self._devices = devices = self._load()
            from runners.worker.engine import compute_size

            if self._stopping:
                return []
            facts = [device.start(self._exit_process) for device in devices]
            self._freeze_gc()
            scheduler = Scheduler[RunningJob](
                [fact.budget for fact in facts],
                facts[0].rates,
                capacity=self._capacity,
                key_share=self._key_share,
            )
            lanes = [
                (lane, index)
                for index, (device, fact) in enumerate(zip(devices, facts, strict=True))
                for lane in device.make_lanes(fact.budget.lanes)
            ]
        except Exception as error:
            code = error.code if isinstance(error, FoleyError) else ServerError.code
            log.exception("model_failed", code=code)
            self.status = ModelStatus(state="failed", error_code=code)
            return []
        self._num_busy = [0] * len(devices)
        self._ended = [0.0] * len(devices)
        self._compute_size = partial(compute_size, preset=facts[0].preset, cut=facts[0].cut)
        status = facts[0].status
        self._scheduler, self.status = scheduler, status
        log.info("model_ready", preset=status.preset, seconds=time.monotonic() - started)
        return lanes

    def _serve(self, lane: "Lane", device: int) -> None:
        """Execute the scheduler's actions until the worker stops.

        While a GPU is at work on an action, the next one is launched, so that no time passes
        between them.
        """
        last: _Launched | None = None
        try:
            with lane.use():
                while True:
                    action = self._find_action(lane, device, may_wait=last is None)
                    if action is None and last is None:
                        return
                    before, last = last, None
                    if action is not None:
                        last = self._launch(lane, action)
                    if before is not None:
                        self._settle(before)
                    if last is not None and last.left:
                        self._settle(last)
                        last = None
        except Exception:
            log.exception("engine_failed", device=self._devices[device].name)
            self._exit_process()

    def _find_action(
        self, lane: "Lane", device: int, *, may_wait: bool
    ) -> Action[RunningJob] | None:
        """Return the lane's next action; None when the worker stops, or instead of waiting."""
        assert self._scheduler is not None
        while True:
            self._drop_late()
            with self._changed:
                if self._stopping:
                    return None
                if (action := self._scheduler.next(device)) is not None:
                    self._num_busy[device] += 1
                    if any(job.state is None for job in action.jobs):
                        self._report_positions()
                    if not all(job.executing for job in self._scheduler.jobs):
                        self._changed.notify_all()  # there may be work for another lane
                    return action
                if not may_wait:
                    return None
                lane.forget_batch()
                wait_seconds = self._scheduler.find_next_deadline() - time.monotonic()
                self._changed.wait(None if math.isinf(wait_seconds) else max(0.0, wait_seconds))

    def _launch(self, lane: "Lane", action: Action[RunningJob]) -> "_Launched | None":
        """Begin an action; returns what is still to be settled, None if its device has done it."""
        num_busy = self._num_busy[action.device]
        self._began[action] = started = time.monotonic()
        failures = {job: _report_stage(job, action.kind) for job in action.jobs}
        able = [job for job in action.jobs if failures[job] is None]
        tasks = {job.serial: job.begin() if job.state is None else None for job in able}
        launch = lane.launch(action.kind, tasks, num_busy)
        failures |= {job: _take(job, launch.reports[job.serial]) for job in able}
        if action.kind == Stage.SAMPLE:
            metrics.BATCH_SIZE.observe(len(able))
            metrics.BATCH_TOKENS.observe(action.tokens)
        if launch.memory_bytes is not None:
            name = self._devices[action.device].name
            metrics.GPU_MEMORY.labels(name).set(launch.memory_bytes)
        seconds = time.monotonic() - started
        with self._changed:
            self._num_busy[action.device] -= 1
            left = self._complete(action, failures, seconds if launch.is_done else None)
        if not launch.is_done:
            return _Launched(action, started, lane, left)
        self._end(action, seconds, left)
        return None

    def _settle(self, launched: "_Launched") -> None:
        """Wait until a GPU has done an action, and count the time that it took."""
        action = launched.action
        ended = launched.lane.wait()
        # The GPU did one after the other.
        seconds = ended - max(launched.started, self._ended[action.device])
        self._ended[action.device] = ended
        with self._changed:
            assert self._scheduler is not None
            self._scheduler.correct(action, seconds)
        self._end(action, seconds, launched.left)

    def _end(self, action: Action[RunningJob], seconds: float, left: list[RunningJob]) -> None:
        """Note the time of an action, and end those of its requests that have left."""
        if action.kind == Stage.SAMPLE:
            metrics.STEP_SECONDS.observe(seconds)
        del self._began[action]
        for job in left:
            job.conclude()

    def _complete(
        self,
        action: Action[RunningJob],
        failures: dict[RunningJob, Exception | None],
        seconds: float | None,
    ) -> list[RunningJob]:
        """End an action in the scheduler; returns its requests that have left.

        Its seconds are None where its device is still at work on it.
        """
        assert self._scheduler is not None
        for job, failure in failures.items():
            job.failure = job.failure or failure
            if job.failure is not None:
                self._scheduler.drop(job)
            elif job.is_streamed:
                assert self._compute_size is not None
                job.measure_frames(self._compute_size, action.kind)
        restarted = [job for job in failures if job.note_retry()]
        left = self._scheduler.complete(action, seconds, restarted)
        for job in left:
            self._forget(job)
        if left:
            self._report_positions()
        return left


class _Launched(NamedTuple):
    """An action that a GPU is at work on.

    Attributes:
        action: which.
        started: when it was launched, on the monotonic clock.
        lane: of the GPU.
        left: its requests that have left; they end when it is settled.
    """

    action: Action[RunningJob]
    started: float
    lane: "Lane"
    left: list[RunningJob]


def _report_stage(job: RunningJob, kind: Kind) -> Exception | None:
    """Report what a request begins; returns the error that keeps it from that."""
    try:
        job.report_stage(kind)
    except Exception as error:  # noqa: BLE001 - it becomes the outcome of this request
        return error
    return None


def _take(job: RunningJob, report: Report) -> Exception | None:
    """Take what an action has made of a request; returns the error, if any."""
    if report.failure is not None:
        return report.failure
    try:
        job.take(report)
    except Exception as error:  # noqa: BLE001 - as in `_report_stage`
        return error
    return None


def _make_cancelled_error() -> CancelledRequestError:
    return CancelledRequestError("the request was cancelled")

"""Owns the device: loads the model, warms it up, then runs one request after another.

One thread does all that touches the model, so the event loop of the process stays free to answer
probes and cancellations. A request leaves early when it is cancelled or its time is up: at once
while it waits, at the next step while it runs.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol

import structlog

from foley.configs import Preset
from foley.errors import FoleyError, ServerError
from foley.licences import Licence
from foley.request import GenerationRequest
from foley.types import Generation, VideoFrames
from runners import metrics
from runners.errors import (
    BusyError,
    CancelledRequestError,
    NotReadyError,
    RequestTimeoutError,
)
from runners.exchange import load_frames, save_waveforms
from runners.log import adopt_libraries
from runners.messages import Job, Made, ModelStatus, Stage, Update
from runners.settings import Settings

if TYPE_CHECKING:
    from foley.pipeline import Progress

log = structlog.get_logger(__name__)


class Pipeline(Protocol):
    """The part of `foley.pipeline.FoleyPipeline` that a worker uses."""

    @property
    def preset(self) -> Preset: ...  # noqa: D102
    @property
    def trained(self) -> bool: ...  # noqa: D102
    @property
    def description(self) -> str: ...  # noqa: D102
    @property
    def revision(self) -> str: ...  # noqa: D102
    @property
    def licence(self) -> Licence: ...  # noqa: D102

    def warm_up(self) -> None: ...  # noqa: D102
    def generate(  # noqa: D102
        self,
        frames: VideoFrames,
        request: GenerationRequest,
        on_progress: "Callable[[Progress], None] | None" = None,
    ) -> Generation: ...


OnUpdate = Callable[[Update], None]
STAGES: dict[str, Stage] = {"condition": "conditions", "sample": "sampling", "decode": "sound"}


class _Ticket:
    """A job in the house."""

    def __init__(self, job: Job, on_update: OnUpdate) -> None:
        self.job = job
        self.on_update = on_update
        self.accepted = time.monotonic()
        self.cancelled = threading.Event()
        self.made: Future[Made] = Future()

    def check(self) -> None:
        """Raise if nobody waits for this job any more."""
        if self.cancelled.is_set():
            raise CancelledRequestError("the request was cancelled")
        if time.monotonic() - self.accepted > self.job.timeout_seconds:
            raise RequestTimeoutError("the request took longer than allowed, and was dropped")


class Worker:
    """Runs jobs one after another on one device.

    Args:
        load: makes the pipeline; called once, on the worker's own thread.
        capacity: jobs in the house at once, the running one included.
    """

    def __init__(self, load: Callable[[], Pipeline], *, capacity: int) -> None:
        self._load = load
        self._capacity = capacity
        self._changed = threading.Condition()  # guards the next three
        self._waiting: deque[_Ticket] = deque()
        self._running: _Ticket | None = None
        self._stopping = False
        self.status = ModelStatus(state="loading")
        self._thread = threading.Thread(target=self._run, name="foley-worker", daemon=True)
        self._thread.start()

    def submit(self, job: Job, on_update: OnUpdate = lambda update: None) -> "Future[Made]":
        """The job's outcome, later.

        Args:
            job: what to make.
            on_update: told how far it has come, on the worker's thread.

        Raises:
            NotReadyError: the model is not warm.
            BusyError: `capacity` jobs are in the house.
        """
        if self.status.state != "ready":
            raise NotReadyError("the model is not ready")
        self._end_unwanted()
        ticket = _Ticket(job, on_update)
        with self._changed:
            if len(self._in_house()) >= self._capacity:
                raise BusyError(f"{self._capacity} requests are being worked on; try again later")
            on_update(Update(stage="queued", queue_position=len(self._in_house())))
            self._waiting.append(ticket)
            metrics.QUEUE_DEPTH.set(len(self._waiting))
            self._changed.notify()
        # Whoever cancels the outcome itself frees the place too.
        ticket.made.add_done_callback(lambda _: self._leave_queue(ticket))
        return ticket.made

    def cancel(self, job_id: str) -> bool:
        """Drop a job, waiting or running; False when there is none of that id."""
        with self._changed:
            tickets = [ticket for ticket in self._in_house() if ticket.job.id == job_id]
        for ticket in tickets:
            ticket.cancelled.set()
        self._end_unwanted()
        return bool(tickets)

    def stop(self, timeout_seconds: float) -> None:
        """Drop all jobs and end the thread, waiting for it at most so long."""
        with self._changed:
            self._stopping = True
            for ticket in self._in_house():
                ticket.cancelled.set()
            self._changed.notify()
        self._end_unwanted()
        self._thread.join(timeout_seconds)

    def _in_house(self) -> list[_Ticket]:
        return [*self._waiting, *([self._running] if self._running else [])]

    def _end_unwanted(self) -> None:
        """Give up at once the waiting jobs that were cancelled or whose time is up."""
        with self._changed:
            waiting = list(self._waiting)
        for ticket in waiting:
            try:
                ticket.check()
            except FoleyError as error:
                if self._leave_queue(ticket) and ticket.made.set_running_or_notify_cancel():
                    ticket.made.set_exception(error)

    def _leave_queue(self, ticket: _Ticket) -> bool:
        """Whether the ticket was waiting until now."""
        with self._changed:
            if ticket not in self._waiting:
                return False
            self._waiting.remove(ticket)
            metrics.QUEUE_DEPTH.set(len(self._waiting))
            return True

    def _run(self) -> None:
        pipeline = self._start()
        if pipeline is None:
            return
        while (ticket := self._next()) is not None:
            if ticket.made.set_running_or_notify_cancel():
                self._work(pipeline, ticket)

    def _next(self) -> _Ticket | None:
        """The job that waits longest, waiting for one; None when the worker stops."""
        with self._changed:
            self._running = None
            self._changed.wait_for(lambda: self._waiting or self._stopping)
            if self._stopping:
                return None
            self._running = self._waiting.popleft()
            metrics.QUEUE_DEPTH.set(len(self._waiting))
            return self._running

    def _work(self, pipeline: Pipeline, ticket: _Ticket) -> None:
        metrics.RUNNING.set(1)
        made: Made | None = None
        failure: Exception | None = None
        try:
            made = self._generate(pipeline, ticket)
        except Exception as error:  # noqa: BLE001 - the thread's boundary; whoever waits decides
            failure = error
        # The place is free before the outcome is told: who hears it may send the next job.
        metrics.RUNNING.set(0)
        with self._changed:
            self._running = None
        if made is not None:
            ticket.made.set_result(made)
        else:
            ticket.made.set_exception(failure)

    def _start(self) -> Pipeline | None:
        started = time.monotonic()
        try:
            pipeline = self._load()
            if self._stopping:
                return None
            pipeline.warm_up()
            status = ModelStatus(
                state="ready",
                preset=pipeline.preset.name,
                trained=pipeline.trained,
                description=pipeline.description,
                revision=pipeline.revision,
                licence=pipeline.licence.name,
                territory=pipeline.licence.territory,
            )
        except Exception as error:
            code = error.code if isinstance(error, FoleyError) else ServerError.code
            log.exception("model_failed", code=code)
            self.status = ModelStatus(state="failed", error_code=code)
            return None
        self.status = status
        log.info("model_ready", preset=pipeline.preset.name, seconds=time.monotonic() - started)
        return pipeline

    def _generate(self, pipeline: Pipeline, ticket: _Ticket) -> Made:
        waited_seconds = time.monotonic() - ticket.accepted
        ticket.check()
        job = ticket.job

        def on_progress(progress: "Progress") -> None:
            self._end_unwanted()
            ticket.check()
            stage = STAGES[progress.stage]
            steps = {"step": progress.step, "num_steps": progress.num_steps}
            ticket.on_update(Update(stage=stage, **(steps if stage == "sampling" else {})))

        generation = pipeline.generate(load_frames(job.path), job.request, on_progress)
        ticket.check()
        save_waveforms(generation.waveforms, job.path)
        return Made(
            seeds=generation.seeds,
            sample_rate=generation.sample_rate,
            duration_seconds=generation.duration_seconds,
            timings={"queue": waited_seconds, **generation.timings},
            notices=generation.notices,
        )


def start_worker(settings: Settings) -> Worker:
    """A worker that loads the model which the settings name."""

    def load() -> Pipeline:
        import diffusers.utils.logging
        import transformers.utils.logging

        # These make their handlers when first asked for a logger, and warn while they are imported.
        diffusers.utils.logging.get_logger()
        transformers.utils.logging.get_logger()
        adopt_libraries()
        from foley.doctor import refuse_unfit
        from foley.pipeline import FoleyPipeline

        refuse_unfit(preset=settings.preset, device=settings.device, weights=settings.weights)
        return FoleyPipeline.from_preset(
            settings.preset, device=settings.device, weights=settings.weights
        )

    return Worker(load, capacity=settings.max_concurrency)

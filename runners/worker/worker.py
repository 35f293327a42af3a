"""Owns the devices: loads the model on each, warms up, then works on requests side by side.

    submit ──► Scheduler ──► a thread for each engine: scheduler.next, engine.run, complete

The event loop of the process stays free to answer probes and cancellations. A request leaves early
when it is cancelled or its time is up: at once between two pieces of its work, and after the piece
that is being computed.
"""

import gc
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import structlog

from foley.errors import (
    CancelledRequestError,
    FoleyError,
    NotReadyError,
    RequestTimeoutError,
    ServerError,
)
from foley.types import Stage
from runners import metrics
from runners.handoff import count_frames, load_frames, save_waveforms
from runners.logs import adopt_libraries
from runners.messages import ModelStatus, ProgressUpdate, RunnerRequest, RunnerResult
from runners.settings import Settings
from runners.worker.scheduler import Action, Entry, Kind, Scheduler, Size

# The engine imports the models' libraries, which takes seconds and must come after
# `adopt_libraries`: so it is imported on the thread that loads.
if TYPE_CHECKING:
    from foley.pipeline import FoleyPipeline
    from foley.request import GenerationRequest
    from foley.session import Session
    from runners.worker.engine import Engine

log = structlog.get_logger(__name__)

OnUpdate = Callable[[ProgressUpdate], None]
Load = Callable[[], "Sequence[FoleyPipeline]"]


class RunningJob:
    """A job in the house."""

    def __init__(self, job: RunnerRequest, entry: Entry, on_update: OnUpdate) -> None:
        self.job = job
        self.entry = entry
        self.outcome: Future[RunnerResult] = Future()
        self.session: Session | None = None
        self.failure: Exception | None = None  # why it leaves early
        self.made: RunnerResult | None = None
        self._on_update = on_update
        self._waited_seconds = 0.0
        self._told: ProgressUpdate | None = None

    def begin(self, pipeline: "FoleyPipeline") -> None:
        """Make the session, on the thread that works on it."""
        self._waited_seconds = time.monotonic() - self.entry.arrived
        metrics.WAIT_SECONDS.labels(self.job.priority).observe(self._waited_seconds)
        frames = load_frames(self.job.path)
        # Another device's memory may be short, where clips are cut into more pieces.
        num_pieces = pipeline.num_pieces(len(frames.visual), len(frames.sync))
        self.entry.size = replace(self.entry.size, num_pieces=num_pieces)
        self.session = pipeline.start(frames, self.job.request)

    def tell(self, update: ProgressUpdate) -> None:
        """Report how far it has come, where that is news."""
        if update != self._told:
            self._told = update
            self._on_update(update)

    def tell_stage(self, stage: Stage) -> None:
        """Report that a stage goes on."""
        assert self.session is not None
        if stage is Stage.SAMPLE:
            done, of_so_many = self.session.step, self.session.num_steps
            self.tell(ProgressUpdate(stage=stage, step=done, num_steps=of_so_many))
        else:
            self.tell(ProgressUpdate(stage=stage))

    def keep_result(self, next_place_seconds: float) -> None:
        """Leave the waveforms for the API."""
        assert self.session is not None
        generation = self.session.result()
        save_waveforms(generation.waveforms, self.job.path)
        self.made = RunnerResult(
            seeds=generation.seeds,
            sample_rate=generation.sample_rate,
            duration_seconds=generation.duration_seconds,
            timings={Stage.QUEUE: self._waited_seconds, **generation.timings},
            notices=generation.notices,
            next_place_seconds=next_place_seconds,
        )

    def conclude(self) -> None:
        """Tell what came of it."""
        if not self.outcome.set_running_or_notify_cancel():
            return  # whoever waited has cancelled it
        if self.failure is not None:
            self.outcome.set_exception(self.failure)
        else:
            assert self.made is not None
            self.outcome.set_result(self.made)


class Worker:
    """Works on jobs side by side, on all engines.

    Args:
        load: makes a pipeline for each device; called once, on a thread of the worker's own.
        capacity: jobs in the house at once.
        die: ends the process, when a thread fails for a reason that is no request's: whoever
            started the process starts it again.
        freeze_gc: called when the models are warm, before the first job.
    """

    def __init__(
        self,
        load: Load,
        *,
        capacity: int,
        die: Callable[[], None] = lambda: os._exit(1),
        freeze_gc: Callable[[], None] = lambda: None,
    ) -> None:
        self._load = load
        self._capacity = capacity
        self._die = die
        self._settle = freeze_gc
        self._changed = threading.Condition()  # guards all that follows
        self._scheduler: Scheduler | None = None
        self._size_of: Callable[[GenerationRequest, int, int], Size] | None = None
        self._tickets: dict[Entry, RunningJob] = {}
        self._num_busy: list[int] = []  # engines at work, on each device
        self._stopping = False
        self.status = ModelStatus(state="loading")
        self._thread = threading.Thread(target=self._run, name="foley-worker", daemon=True)
        self._thread.start()

    def submit(
        self, job: RunnerRequest, on_update: OnUpdate = lambda update: None
    ) -> "Future[RunnerResult]":
        """The job's outcome, later.

        Args:
            job: what to make.
            on_update: told how far it has come, on a thread of the worker's.

        Raises:
            NotReadyError: the model is not warm, or the worker stops.
            BusyError: `capacity` jobs are in the house.
        """
        scheduler, size_of = self._scheduler, self._size_of
        if scheduler is None or size_of is None:
            raise NotReadyError("the model is not ready")
        size = size_of(job.request, *count_frames(job.path))
        self._drop_late()
        with self._changed:
            if self._stopping:
                raise NotReadyError("the model is being stopped")
            now = time.monotonic()
            entry = scheduler.submit(
                job.id, size, priority=job.priority, now=now, deadline=now + job.timeout_seconds
            )
            ticket = self._tickets[entry] = RunningJob(job, entry, on_update)
            self._tell_positions()
            self._changed.notify_all()
        # Whoever cancels the outcome itself frees the place too.
        ticket.outcome.add_done_callback(lambda _: self._drop(ticket, _cancelled()))
        return ticket.outcome

    def cancel(self, job_id: str) -> bool:
        """Drop a job, waiting or running; False when there is none of that id."""
        with self._changed:
            tickets = [t for t in self._tickets.values() if t.job.id == job_id and not t.failure]
        for ticket in tickets:
            self._drop(ticket, _cancelled())
        return bool(tickets)

    def stop(self, timeout_seconds: float) -> None:
        """Drop all jobs and end the threads, waiting for them at most so long."""
        with self._changed:
            self._stopping = True
            tickets = list(self._tickets.values())
            self._changed.notify_all()
        for ticket in tickets:
            self._drop(ticket, _cancelled())
        self._thread.join(timeout_seconds)

    def _drop(self, ticket: RunningJob, reason: FoleyError) -> None:
        """Give a job up: at once, or when the piece that is being computed is done."""
        with self._changed:
            if ticket.entry not in self._tickets:
                return
            assert self._scheduler is not None
            ticket.failure = ticket.failure or reason
            if not self._scheduler.drop(ticket.entry):
                return
            self._forget(ticket)
            self._tell_positions()
            self._changed.notify_all()  # its place and its memory are free
        ticket.conclude()

    def _drop_late(self) -> None:
        with self._changed:
            assert self._scheduler is not None
            late = [self._tickets[entry] for entry in self._scheduler.late(time.monotonic())]
        for ticket in late:
            self._drop(
                ticket, RequestTimeoutError("the request took longer than allowed, and was dropped")
            )

    def _forget(self, ticket: RunningJob) -> None:
        del self._tickets[ticket.entry]
        ticket.session = None

    def _tell_positions(self) -> None:
        """Tell the jobs that wait how many go before them; and count."""
        assert self._scheduler is not None
        waiting = self._scheduler.waiting
        num_running = len(self._tickets) - len(waiting)
        metrics.QUEUE_DEPTH.set(len(waiting))
        metrics.RUNNING.set(num_running)
        for position, entry in enumerate(waiting, start=num_running):
            self._tickets[entry].tell(ProgressUpdate(stage=Stage.QUEUE, queue_position=position))

    def _run(self) -> None:
        engines = self._start()
        threads = [
            threading.Thread(target=self._serve, args=engine, name="foley-engine", daemon=True)
            for engine in engines
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _start(self) -> "list[tuple[Engine, int]]":
        """The engines with the index of their device; none when the model cannot be had."""
        started = time.monotonic()
        try:
            pipelines = self._load()
            from runners.worker.calibration import measure
            from runners.worker.engine import Engine, size_of

            if self._stopping:
                return []
            measured = [measure(pipeline) for pipeline in pipelines]
            self._settle()
            scheduler = Scheduler(
                [budget for budget, _ in measured], measured[0][1], capacity=self._capacity
            )
            pipeline = pipelines[0]
            status = ModelStatus(
                state="ready",
                preset=pipeline.preset.name,
                about=pipeline.preset.about,
                num_inference_steps=pipeline.preset.default_steps,
                guidance_scale=pipeline.preset.default_guidance,
                description=pipeline.description,
                revision=pipeline.revision,
                licence=pipeline.licence.name,
                territory=pipeline.licence.territory,
            )
        except Exception as error:
            code = error.code if isinstance(error, FoleyError) else ServerError.code
            log.exception("model_failed", code=code)
            self.status = ModelStatus(state="failed", error_code=code)
            return []
        self._num_busy = [0] * len(pipelines)
        self._size_of = partial(size_of, pipeline=pipeline)
        self._scheduler, self.status = scheduler, status
        log.info("model_ready", preset=pipeline.preset.name, seconds=time.monotonic() - started)
        return [
            (Engine(pipeline), device)
            for device, (pipeline, (budget, _)) in enumerate(zip(pipelines, measured, strict=True))
            for _ in range(budget.lanes)
        ]

    def _serve(self, engine: "Engine", device: int) -> None:
        """Do what the scheduler says until the worker stops."""
        try:
            with engine.device():
                while (action := self._next(engine, device)) is not None:
                    self._execute(engine, action)
        except Exception:
            log.exception("engine_failed", device=str(engine.pipeline.device))
            self._die()

    def _next(self, engine: "Engine", device: int) -> Action | None:
        """The engine's next action, waiting for one; None when the worker stops."""
        assert self._scheduler is not None
        while True:
            self._drop_late()
            with self._changed:
                if self._stopping:
                    return None
                if (action := self._scheduler.next(device)) is not None:
                    self._num_busy[device] += 1
                    if any(self._tickets[entry].session is None for entry in action.entries):
                        self._tell_positions()
                    if not all(entry.executing for entry in self._tickets):
                        self._changed.notify_all()  # perhaps there is work for another engine
                    return action
                engine.rest()
                wait_seconds = self._scheduler.next_deadline() - time.monotonic()
                self._changed.wait(None if math.isinf(wait_seconds) else max(0.0, wait_seconds))

    def _execute(self, engine: "Engine", action: Action) -> None:
        tickets = [self._tickets[entry] for entry in action.entries]
        num_busy = self._num_busy[action.device]
        started = time.monotonic()
        failures = {ticket: self._begin(ticket, engine, action.kind) for ticket in tickets}
        able = [ticket for ticket in tickets if failures[ticket] is None]
        if able:
            sessions = [ticket.session for ticket in able if ticket.session is not None]
            results = engine.run(action.kind, sessions, num_busy)
            failures.update(zip(able, results, strict=True))
        for ticket in able:
            failures[ticket] = failures[ticket] or self._go_on(ticket)
        if any(failures.values()):
            engine.check()
        if action.kind == Stage.SAMPLE:
            metrics.BATCH_TOKENS.observe(action.tokens)
        with self._changed:
            self._num_busy[action.device] -= 1
            gone = self._complete(action, failures, time.monotonic() - started)
        for ticket in gone:
            ticket.conclude()

    def _begin(self, ticket: RunningJob, engine: "Engine", kind: Kind) -> Exception | None:
        """What keeps a job from its next piece."""
        try:
            if ticket.session is None:
                ticket.begin(engine.pipeline)
            ticket.tell_stage(kind)
        except Exception as error:  # noqa: BLE001 - the job's own failure: whoever waits decides
            return error
        return None

    def _go_on(self, ticket: RunningJob) -> Exception | None:
        """Report what was done, and keep the result where that was all."""
        assert ticket.session is not None
        try:
            if ticket.session.stage is None:
                with self._changed:
                    assert self._scheduler is not None
                    seconds = self._scheduler.seconds_to_a_place()
                ticket.keep_result(seconds)
            elif ticket.session.step or ticket.session.stage is Stage.SAMPLE:
                ticket.tell_stage(Stage.SAMPLE)
        except Exception as error:  # noqa: BLE001 - as in `_begin`
            return error
        return None

    def _complete(
        self, action: Action, failures: dict[RunningJob, Exception | None], seconds: float
    ) -> list[RunningJob]:
        """Note that an action was executed; its jobs that have left."""
        assert self._scheduler is not None
        for ticket, failure in failures.items():
            ticket.failure = ticket.failure or failure
            if ticket.failure is not None:
                self._scheduler.drop(ticket.entry)
        gone = [self._tickets[entry] for entry in self._scheduler.complete(action, seconds)]
        for ticket in gone:
            self._forget(ticket)
        if gone:
            self._tell_positions()
        return gone


def _cancelled() -> FoleyError:
    return CancelledRequestError("the request was cancelled")


def start_worker(settings: Settings) -> Worker:
    """A worker that loads the model which the settings name, on every device they name."""

    def load() -> "list[FoleyPipeline]":
        import diffusers.utils.logging
        import transformers.utils.logging

        # These make their handlers when first asked for a logger, and warn while they are imported.
        diffusers.utils.logging.get_logger()
        transformers.utils.logging.get_logger()
        adopt_libraries()
        from foley.hardware.doctor import refuse_unfit
        from foley.pipeline import FoleyPipeline
        from runners.worker.engine import devices_of

        refuse_unfit(preset=settings.preset, device=settings.device, weights=settings.weights)
        return [
            FoleyPipeline.from_preset(
                settings.preset,
                device=str(device),
                weights=settings.weights,
                precision=settings.precision,
                memory=settings.memory,
            )
            for device in devices_of(settings.device)
        ]

    return Worker(load, capacity=settings.max_concurrency, freeze_gc=freeze_gc)


def freeze_gc() -> None:
    """Let the garbage collector pass over all that is there from now on.

    Libraries and a warm model are some half a million objects that stay to the end. A full
    collection walks through all of them, 0.1 s in which the thread that feeds a GPU stands still.
    """
    gc.collect()
    gc.freeze()

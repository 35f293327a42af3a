"""One call of the API to the runner: the events of a request from its admission to its outcome."""

import asyncio
import itertools
from collections.abc import AsyncGenerator
from concurrent.futures import Future

import structlog

from foley.errors import CancelledRequestError, FoleyError, ServerError
from runners.handoff import read_announcement, read_expectation
from runners.jobs.scratch import is_abandoned
from runners.messages import (
    FinishedPiece,
    ProgressUpdate,
    RunnerEvent,
    RunnerRequest,
    RunnerResult,
)
from runners.tracing import JobTrace
from runners.worker.faults import FAULT, translate_error
from runners.worker.running_job import RunningJob
from runners.worker.worker import Worker

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.02  # between two looks for the frames of a request; a look takes microseconds
OWNER_SECONDS = 1.0  # between two checks that the request's API process is alive


async def stream_events(
    worker: Worker, request: RunnerRequest
) -> AsyncGenerator[RunnerEvent, None]:
    """Admit a request and yield its events, from the admission or refusal to the outcome.

    The request holds a place from the first event on. The API then leaves the frames in its folder
    and announces them. Closing the generator ends the request, as do its deadline, the removal of
    its folder and the death of its API process.

    Args:
        worker: runs the request.
        request: from the API.
    """
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[RunnerEvent] = asyncio.Queue()
    trace = JobTrace(request)

    def on_update(update: ProgressUpdate) -> None:
        trace.update(update)
        loop.call_soon_threadsafe(events.put_nowait, RunnerEvent(progress=update))

    def on_piece(piece: FinishedPiece) -> None:
        loop.call_soon_threadsafe(events.put_nowait, RunnerEvent(piece=piece))

    def on_outcome(outcome: Future[RunnerResult]) -> None:
        loop.call_soon_threadsafe(events.put_nowait, _make_last_event(outcome))

    try:
        job = worker.admit(request, on_update, on_piece)
    except FoleyError as error:
        yield RunnerEvent.from_error(error)
        return
    job.outcome.add_done_callback(on_outcome)
    following = asyncio.create_task(_follow(worker, job))
    try:
        yield RunnerEvent(admitted=True)
        while True:
            event = await events.get()
            yield event
            if event.progress is None and event.piece is None:
                return
    finally:
        following.cancel()
        if not job.outcome.done():  # the API closed the stream
            worker.cancel(job.id)
        trace.end(job.outcome)


async def _follow(worker: Worker, job: RunningJob) -> None:
    """Queue a request when it has frames, and end it when the API has given it up."""
    folder = job.request.path
    looks_per_check = round(OWNER_SECONDS / POLL_SECONDS)
    is_queued = False
    try:
        for look in itertools.count(1):
            if not is_queued:
                is_queued = _queue(worker, job)
            elif job.is_streamed:
                worker.feed(job)
            has_all = is_queued and job.has_all_frames
            if not folder.exists() or (
                (has_all or look % looks_per_check == 0) and is_abandoned(folder)
            ):
                break
            await asyncio.sleep(OWNER_SECONDS if has_all else POLL_SECONDS)
    except Exception:
        log.exception("job_failed")
        worker.drop(job, ServerError(FAULT))
    else:
        worker.drop(job, CancelledRequestError("the request was given up"))


def _queue(worker: Worker, job: RunningJob) -> bool:
    """Queue a request if its frames, or the first ones of a long clip, are there."""
    if (counts := read_announcement(job.request.path)) is not None:
        worker.queue(job, counts)
    elif (expected_seconds := read_expectation(job.request.path)) is not None:
        worker.queue_long(job, expected_seconds)
    else:
        return False
    return True


def _make_last_event(outcome: Future[RunnerResult]) -> RunnerEvent:
    if outcome.cancelled():
        return RunnerEvent.from_error(CancelledRequestError("the request was cancelled"))
    error = outcome.exception()
    if error is None:
        return RunnerEvent(result=outcome.result())
    return RunnerEvent.from_error(translate_error(error))

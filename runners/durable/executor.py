"""The process that runs jobs: `python -m runners.durable.executor`.

A service starts it, and ends it by closing its standard input. It has no orderly end: it must
survive SIGKILL anyway, so SIGTERM is the same. The next one takes up what it was working on.

One process at a time holds the folder's lock, so with SQLite every job that is marked as running at
its start was left by a dead one. With PostgreSQL there is one such process for each machine, and
`runners.durable.liveness` says which of them are dead.
"""

import asyncio
import contextlib
import functools
import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Coroutine, Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypeVar

import structlog
from cyclopts import App, Parameter
from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, error

from foley.errors import CancelledRequestError, FoleyError
from runners.durable import uploads
from runners.durable.attempts import JobRunner, ProgressNotes
from runners.durable.bucket_files import AnyFiles
from runners.durable.database import IDLE_TRANSACTION_MS, is_shared, prepare_database
from runners.durable.description import format_message
from runners.durable.executor_settings import ExecutorSettings
from runners.durable.job import JobFailedError, Webhook
from runners.durable.liveness import Liveness, stay_alive
from runners.durable.notifier import Notifier, begin_ended
from runners.durable.queue import APPLICATION, QUEUE, WORKFLOW, JobQueue
from runners.durable.receivers import Receivers
from runners.durable.request import JobRequest
from runners.durable.secret import load_secret
from runners.logs import adopt_libraries, configure_logging
from runners.process import forbid_tracing
from runners.status import public_error

log = structlog.get_logger("runners.durable.executor")  # it runs as __main__, which has no level

EXECUTOR_ID = "embedded"  # with SQLite, where a lock lets one run at a time
# DBOS would derive it from the code, and never finish the jobs of another version of it.
JOBS_VERSION = "jobs-1"
POLL_SECONDS = 0.5  # from a free place to the start of the next job
MAX_SWEEP_SECONDS = 30.0
WATCH_SECONDS = 1.0
MAX_LOOKS = 30  # at a job that is marked as running and is not; one that starts is so for a moment

T = TypeVar("T")


class AtWork:
    """The jobs that this process runs, in its event loop and under the eyes of another thread."""

    def __init__(self) -> None:
        self._tasks: dict[str, set[asyncio.Task[Any]]] = {}
        self._lock = threading.Lock()

    async def run(self, job_id: str, work: Coroutine[Any, Any, T]) -> T:
        """Return what a coroutine does.

        Args:
            job_id: of the job.
            work: on the job.

        Raises:
            CancelledRequestError: `cancel` has ended it.
            Exception: as the coroutine.
        """
        task = asyncio.create_task(work)
        with self._lock:
            self._tasks.setdefault(job_id, set()).add(task)
        try:
            await asyncio.wait([task])
            if task.cancelled():
                raise CancelledRequestError()
            return task.result()
        finally:
            task.cancel()
            with self._lock:
                self._tasks[job_id].remove(task)
                if not self._tasks[job_id]:
                    del self._tasks[job_id]

    def list_ids(self) -> set[str]:
        """Return the ids of the jobs that are run."""
        with self._lock:
            return set(self._tasks)

    def cancel(self, job_ids: Iterable[str]) -> None:
        """End the work on jobs, from any thread.

        Args:
            job_ids: of jobs that may have ended meanwhile.
        """
        with self._lock:
            tasks = [task for job_id in job_ids for task in self._tasks.get(job_id, ())]
        for task in tasks:
            task.get_loop().call_soon_threadsafe(task.cancel)


app = App(name="python -m runners.durable.executor", help_format="plaintext")


@app.default
def main(
    *,
    server: Annotated[str, Parameter(help="Address of the service.")],
    num_running: Annotated[
        int, Parameter(help="Jobs that run at once; with 0 it only sends webhooks and tidies up.")
    ],
) -> None:
    """Run the jobs of a service. Standard input has a line of `ExecutorSettings`, as JSON."""
    configure_logging("info")
    forbid_tracing()  # this process has the secret that signs webhooks
    settings = ExecutorSettings.model_validate_json(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    database, keep_seconds = settings.find_database(), settings.keep_seconds
    files = settings.open_files()
    queue = JobQueue(database, max_waiting=sys.maxsize)
    liveness = None
    executor_id = EXECUTOR_ID
    if is_shared(queue.engine):
        executor_id = uuid.uuid4().hex
        liveness = Liveness(queue.engine, executor_id)
    config: DBOSConfig = {
        "name": APPLICATION,
        "system_database_url": prepare_database(database),
        "serializer": DBOSPortableJSONSerializer(),
        "executor_id": executor_id,
        "application_version": JOBS_VERSION,
        "log_level": "WARNING",
        "enable_otlp": False,
        "notification_listener_polling_interval_sec": 60.0,  # nothing here waits for notifications
        "scheduler_polling_interval_sec": 3600.0,  # and nothing is scheduled
        "sys_db_idle_transaction_timeout_sec": IDLE_TRANSACTION_MS / 1000,
    }
    DBOS(config=config)
    queue.starts.end_late()
    at_work, notes = AtWork(), ProgressNotes()
    require_claim = liveness.require_claim if liveness else None
    runner = JobRunner(server, load_secret(settings.folder), files, queue, notes, require_claim)
    register(runner, files, at_work)
    logging.getLogger("dbos").addFilter(_is_trouble)
    adopt_libraries()
    if liveness is not None:
        liveness.begin()
        threading.Thread(
            target=stay_alive, args=(liveness, DBOS._recover_pending_workflows), daemon=True
        ).start()
    if num_running == 0:
        DBOS.listen_queues([])
    DBOS.launch()
    if num_running:  # what is registered is kept in the database, for all executors
        DBOS.register_queue(
            QUEUE, worker_concurrency=num_running, polling_interval_sec=POLL_SECONDS
        )
    log.info("jobs_ready", num_running=num_running)
    if settings.webhooks.secrets:
        threading.Thread(
            target=send_webhooks, args=(queue, settings, liveness), daemon=True
        ).start()
    threading.Thread(
        target=watch_forever, args=(queue, at_work, notes, executor_id), daemon=True
    ).start()
    sweep_forever(queue, files, keep_seconds)


def register(runner: JobRunner, files: AnyFiles, at_work: AtWork) -> None:
    """Tell DBOS how a job is run.

    Args:
        runner: does the work.
        files: of the jobs.
        at_work: notes the jobs that are run.
    """

    async def run(job_id: str, owner: str, request: dict[str, Any]) -> dict[str, Any]:
        try:
            result = await runner.run(job_id, owner, JobRequest.model_validate(request))
        except CancelledRequestError:
            raise
        except Exception as failure:
            public = public_error(failure)
            if public.redacted:
                log.error("job_failed", job_id=job_id, code=public.code, exc_info=failure)
            else:
                log.info("job_failed", job_id=job_id, code=public.code)
            raise JobFailedError(public.message, public.code) from failure
        with contextlib.suppress(FoleyError):  # a bucket is away, and it is removed later
            await asyncio.to_thread(files.finish, job_id, result)
        log.info("job_succeeded", job_id=job_id)
        return result

    # No step of DBOS: it would write the result twice, and repeating the work changes nothing.
    @DBOS.workflow(name=WORKFLOW)
    async def run_job(job_id: str, owner: str, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return await at_work.run(job_id, run(job_id, owner, request))
        except CancelledRequestError as cancelled:  # by the word for which DBOS writes no outcome
            raise error.DBOSWorkflowCancelledError(f"job {job_id} was cancelled") from cancelled


def send_webhooks(queue: JobQueue, settings: ExecutorSettings, liveness: Liveness | None) -> None:
    """Send webhooks for ever.

    Args:
        queue: of the jobs.
        settings: with a secret.
        liveness: says whose turn it is; None where this process is the only one.
    """

    async def send() -> None:
        describe = functools.partial(describe_end, queue, settings.keep_seconds)
        receivers = Receivers(settings.webhooks)
        notifier = Notifier(
            queue.webhooks, receivers, describe, lambda: liveness is None or liveness.is_first
        )
        await notifier.run_forever()

    asyncio.run(send())


def describe_end(queue: JobQueue, keep_seconds: float, webhook: Webhook) -> str:
    """Return what is sent about a job that has ended.

    Args:
        queue: of the jobs.
        keep_seconds: how long ended jobs are kept.
        webhook: of the job.
    """
    job = queue.find(webhook.owner, webhook.job_id)
    return format_message(job, webhook.root, keep_seconds)


def watch_forever(queue: JobQueue, at_work: AtWork, notes: ProgressNotes, executor_id: str) -> None:
    """Write how far jobs are, end those that were cancelled, and those that were not begun in time.

    This process ends if it has dropped a job. DBOS drops one whose end it cannot write, as on a
    full disk. The next process takes it up.

    Args:
        queue: of the jobs.
        at_work: the jobs that this process runs.
        notes: of their progress.
        executor_id: of this process.
    """
    num_looks: Counter[str] = Counter()
    while True:
        time.sleep(WATCH_SECONDS)
        try:
            queue.starts.end_late()
            begun = at_work.list_ids()  # before the others, or one that begins now would be ended
            running = set(queue.list_running(executor_id))
            at_work.cancel(begun - running)
            dropped = running - at_work.list_ids()
            notes.write(queue)
        except Exception:
            log.exception("jobs_not_watched")
            continue
        num_looks = Counter({job_id: num_looks[job_id] + 1 for job_id in dropped})
        if num_looks and max(num_looks.values()) >= MAX_LOOKS:
            log.error("jobs_dropped", job_ids=sorted(dropped))
            os._exit(1)


def sweep_forever(queue: JobQueue, files: AnyFiles, keep_seconds: float) -> None:
    """Remove jobs that ended long ago, with their files.

    Args:
        queue: of the jobs.
        files: of the jobs.
        keep_seconds: how long ended jobs are kept.
    """
    files.remove_leftovers(queue.list_ids())
    while True:
        before = datetime.now(UTC) - timedelta(seconds=keep_seconds)
        try:
            begin_ended(queue.webhooks, functools.partial(describe_end, queue, keep_seconds))
            for job_id in queue.forget_finished(before):
                files.remove(job_id)
            uploads.remove_old_uploads(files.folder / uploads.FOLDER)
            files.remove_old_copies()
        except Exception:  # such as a full disk, or a database that is away
            log.exception("jobs_not_swept")
        time.sleep(min(keep_seconds / 10, MAX_SWEEP_SECONDS))


def _is_trouble(record: logging.LogRecord) -> bool:
    """Whether DBOS reports more than a job that was cancelled or has failed, which is normal."""
    message = record.getMessage()
    return not (
        message.startswith("Exception encountered in asynchronous workflow")
        or "was cancelled during execution" in message
    )


def _end_with_input() -> None:
    """End this process when standard input is closed."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    app()

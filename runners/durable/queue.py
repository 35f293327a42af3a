"""The queue of jobs, which DBOS keeps in a database. API processes and executors share it.

An API process only reads and writes rows; `runners.durable.executor` runs the jobs.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from dbos import (
    DBOSClient,
    DBOSPortableJSONSerializer,
    EnqueueOptions,
    PortableWorkflowError,
    WorkflowStatus,
)
from sqlalchemy.exc import SQLAlchemyError

from foley.errors import BusyError, ConflictError, NotFoundError
from runners.durable.database import is_shared, open_engine, prepare_database
from runners.durable.job import UNFINISHED, Job, JobFailedError, JobState
from runners.durable.request import JobRequest, find_output
from runners.durable.starts import StartStore
from runners.durable.turns import TurnStore, name_roles
from runners.durable.webhooks import WebhookStore
from runners.status import INTERNAL_CODE, INTERNAL_MESSAGE

APPLICATION = "foley"
QUEUE = "jobs"
WORKFLOW = "run_job"
SECONDS_TO_ROOM = 30.0  # how soon a caller should ask again

_STATE_OF: dict[str, JobState] = {
    "DELAYED": "queued",
    "ENQUEUED": "queued",
    "PENDING": "running",
    "SUCCESS": "succeeded",
    "ERROR": "failed",
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": "failed",
    "CANCELLED": "cancelled",
}
# DBOS lists workflows, and counts none.
_COUNT_WAITING = sa.text("SELECT count(*) FROM workflow_status WHERE status = 'ENQUEUED'")
_COUNT_UNFINISHED = sa.text(
    "SELECT status, count(*) FROM workflow_status "
    "WHERE status IN ('DELAYED', 'ENQUEUED', 'PENDING') GROUP BY status"
)
# SQLite's times have whole seconds here. Among equal ones DBOS takes the rows in their order; those
# of PostgreSQL have milliseconds, and no order.
_COUNT_AHEAD = (
    "SELECT count(*) FROM workflow_status AS other JOIN workflow_status AS job "
    "ON job.workflow_uuid = :job_id WHERE other.status = 'ENQUEUED' "
    "AND (other.priority, other.created_at, other.{order}) "
    "< (job.priority, job.created_at, job.{order})"
)
# Of a job that was never begun. To find any job costs six times as much, most of it for putting the
# question together.
_WAITS_SINCE = sa.text(
    "SELECT created_at FROM workflow_status WHERE workflow_uuid = :job_id "
    "AND status = 'ENQUEUED' AND COALESCE(recovery_attempts, 0) = 0"
)
# DBOS has one statement a job for this, which it puts together each time.
_SET_PROGRESS = (
    "UPDATE workflow_status SET attributes = CAST(:progress AS {kind}) "
    "WHERE workflow_uuid = :job_id"
)
_RUNNING = sa.text(
    "SELECT workflow_uuid FROM workflow_status "
    "WHERE status = 'PENDING' AND executor_id = :executor_id"
)


class JobQueue:
    """All jobs of a database. Its methods read or write the disk, or call the database.

    Args:
        database: file of SQLite, created if missing, or the URL of PostgreSQL.
        max_waiting: how many jobs may wait.
        key_share: largest share of them that one caller may have, above 0; each may have one.

    Attributes:
        engine: of the database.
        webhooks: of the jobs.
        starts: times by which jobs have to be started.
    """

    def __init__(self, database: Path | str, *, max_waiting: int, key_share: float = 1.0) -> None:
        self._max_waiting = max_waiting
        self._max_waiting_of_caller = max(1, int(key_share * max_waiting))
        url = prepare_database(database)
        self.engine = open_engine(url)
        self._client = DBOSClient(
            system_database_url=url,
            # DBOS sets SQLite up for itself, and else the process has one pool of connections.
            system_database_engine=self.engine if is_shared(self.engine) else None,
            serializer=DBOSPortableJSONSerializer(),
            application_name=APPLICATION,
            retry_connection_errors=False,  # a caller is told, and asks again
        )
        order = "workflow_uuid" if is_shared(self.engine) else "rowid"
        self._count_ahead = sa.text(_COUNT_AHEAD.format(order=order))
        kind = "jsonb" if is_shared(self.engine) else "text"
        self._set_progress = sa.text(_SET_PROGRESS.format(kind=kind))
        self.webhooks = WebhookStore(self.engine)
        self.starts = StartStore(self.engine)
        self._turns = TurnStore(self.engine, QUEUE)

    def close(self) -> None:
        """Close the connections."""
        self._client.destroy()
        self.engine.dispose()

    def submit(
        self, owner: str, job_id: str, request: JobRequest, *, caller: str | None = None
    ) -> Job:
        """Add a job, and return it; nothing is added if the queue has one with this id.

        Args:
            owner: see `runners.auth.ApiKeys.owner_of`.
            job_id: of the job.
            request: what to do, whose files are in place.
            caller: whose turn it takes, see `runners.auth.caller_of`; the owner's by default.
        """
        caller = owner if caller is None else caller
        options: EnqueueOptions = {
            "workflow_name": WORKFLOW,
            "queue_name": QUEUE,
            "workflow_id": job_id,
            "workflow_id_reuse_policy": "return-existing",
            "priority": self._turns.choose(caller, request.options.priority),
            "authenticated_user": _name_user(owner),
            "authenticated_roles": name_roles(caller),
        }
        self._client.enqueue(
            options, job_id, owner, request.model_dump(mode="json", exclude_unset=True)
        )
        with self.engine.connect() as connection:
            created_ms = connection.execute(_WAITS_SINCE, {"job_id": job_id}).scalar_one_or_none()
        if created_ms is None:
            return self.find(owner, job_id)
        return Job(
            id=job_id,
            owner=owner,
            state="queued",
            priority=request.options.priority,
            created_ms=created_ms,
            started_ms=None,
            finished_ms=None,
            digest=request.digest,
            progress={},
            error=None,
            result=None,
            has_webhook=request.webhook_url is not None,
            upload_digest=request.upload_digest,
            output=find_output(job_id, request.output),
            start_by=None if request.start_by is None else request.start_by.isoformat(),
            num_starts=0,
        )

    def check_room(self, caller: str) -> None:
        """Return if a further job of a caller may wait.

        Args:
            caller: see `runners.auth.caller_of`.

        Raises:
            BusyError: as many wait as may, of all callers or of this one.
        """
        if self._max_waiting_of_caller < self._max_waiting:
            num_waiting = self._turns.count(caller)
            if num_waiting >= self._max_waiting_of_caller:
                raise _refuse(f"{num_waiting} jobs of this caller wait, its share")
        with self.engine.connect() as connection:
            num_waiting = connection.execute(_COUNT_WAITING).scalar_one()
        if num_waiting >= self._max_waiting:
            raise _refuse(f"{num_waiting} jobs wait, the limit")

    def find(self, owner: str, job_id: str) -> Job:
        """Return a job.

        Args:
            owner: of the job.
            job_id: as the caller sent it; any text.

        Raises:
            NotFoundError: there is none, or it belongs to another owner.
        """
        found = self._client.list_workflows(
            workflow_ids=[job_id], name=WORKFLOW, user=_name_user(owner)
        )
        if not found:
            raise NotFoundError("there is no such job; it may have expired or been deleted")
        return _read_job(found[0])

    def list_jobs(
        self, owner: str, state: JobState | None = None, *, limit: int, offset: int = 0
    ) -> list[Job]:
        """Return jobs of an owner, the newest first.

        Args:
            owner: of the jobs.
            state: of the jobs; None for all.
            limit: how many at most.
            offset: how many of the newest to leave out.
        """
        found = self._client.list_workflows(
            name=WORKFLOW,
            user=_name_user(owner),
            status=[name for name, known in _STATE_OF.items() if state in (None, known)],
            limit=limit,
            offset=offset,
            sort_desc=True,
        )
        return [_read_job(status) for status in found]

    def count_ahead(self, job: Job) -> int:
        """Return how many jobs of all owners are started before one that waits."""
        with self.engine.connect() as connection:
            count: int = connection.execute(self._count_ahead, {"job_id": job.id}).scalar_one()
        return count

    def cancel(self, owner: str, job_id: str) -> Job:
        """Cancel a job in any state, and return it; a finished one stays as it is.

        Raises:
            NotFoundError: as `find`.
        """
        if self.find(owner, job_id).state in UNFINISHED:
            self._client.cancel_workflow(job_id)
        return self.find(owner, job_id)

    def delete(self, owner: str, job_id: str) -> None:
        """Forget a job that has ended.

        Raises:
            NotFoundError: as `find`.
            ConflictError: it waits or runs.
        """
        state = self.find(owner, job_id).state
        if state in UNFINISHED:
            raise ConflictError(f"the job is {state}; cancel it first")
        self._client.delete_workflow(job_id)
        self.webhooks.forget(job_id)
        self.starts.forget(job_id)

    def set_progress(self, progress: Mapping[str, dict[str, Any]]) -> None:
        """Note how far running jobs are.

        Args:
            progress: of each job, by its id.
        """
        rows = [
            {"job_id": job_id, "progress": json.dumps(told)} for job_id, told in progress.items()
        ]
        with self.engine.begin() as connection:
            connection.execute(self._set_progress, rows)

    def forget_finished(self, before: datetime) -> list[str]:
        """Forget the jobs that ended before a time; returns their ids.

        Args:
            before: with its zone.
        """
        found = self._client.list_workflows(
            name=WORKFLOW,
            completed_before=before.isoformat(),
            load_input=False,
            load_output=False,
            limit=500,
        )
        ids = [status.workflow_id for status in found]
        if ids:
            self._client.delete_workflows(ids)
        self.webhooks.forget_ended(before)
        return ids

    def count_unfinished(self) -> dict[str, int] | None:
        """Return how many jobs wait and run, of all owners; None while the database is away."""
        counts: dict[str, int] = dict.fromkeys(UNFINISHED, 0)
        try:
            with self.engine.connect() as connection:
                for status, count in connection.execute(_COUNT_UNFINISHED):
                    counts[_STATE_OF[status]] += count
        except SQLAlchemyError:
            return None
        return counts

    def list_running(self, executor_id: str) -> list[str]:
        """Return the ids of the jobs that are marked as running in an executor."""
        with self.engine.connect() as connection:
            return list(connection.execute(_RUNNING, {"executor_id": executor_id}).scalars())

    def list_ids(self) -> list[str]:
        """Return the ids of all jobs."""
        found = self._client.list_workflows(name=WORKFLOW, load_input=False, load_output=False)
        return [status.workflow_id for status in found]


def _refuse(reason: str) -> BusyError:
    busy = BusyError(f"{reason}; try again later")
    busy.retry_after_seconds = SECONDS_TO_ROOM
    return busy


def _name_user(owner: str) -> str:
    return f"key:{owner}"  # never empty, which would be no filter


def _read_job(status: WorkflowStatus) -> Job:
    state = _STATE_OF[status.status]
    assert status.input is not None
    _, owner, request = status.input["args"]
    assert status.created_at is not None
    return Job(
        id=status.workflow_id,
        owner=owner,
        state=state,
        priority=request["options"]["priority"],
        created_ms=status.created_at,
        started_ms=status.dequeued_at,
        finished_ms=status.completed_at,
        digest=request["digest"],
        progress=(status.attributes or {}) if state in UNFINISHED else {},
        error=_read_error(status) if state == "failed" else None,
        result=status.output,
        has_webhook=request.get("webhook_url") is not None,
        upload_digest=request.get("upload_digest"),
        output=find_output(status.workflow_id, request.get("output")),
        start_by=request.get("start_by"),
        num_starts=status.recovery_attempts or 0,
    )


def _read_error(status: WorkflowStatus) -> tuple[str, str]:
    error = status.error
    if isinstance(error, PortableWorkflowError) and error.name == JobFailedError.__name__:
        return str(error.code), error.message
    return INTERNAL_CODE, INTERNAL_MESSAGE

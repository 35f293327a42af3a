"""Jobs that are worth nothing after a time, unless they were begun by then."""

import json
from datetime import UTC, datetime

import sqlalchemy as sa

from foley.errors import NotStartedError
from runners.durable.database import create_table, insert_if_absent
from runners.durable.job import JobFailedError
from runners.durable.webhooks import read_clock

_STARTS = sa.Table(
    "foley_starts",
    sa.MetaData(),
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("start_by_ms", sa.BigInteger, nullable=False),
)
_BY_TIME = sa.Index("foley_starts_by_time", _STARTS.c.start_by_ms)
# What DBOS writes for a workflow that has raised `JobFailedError`, if it still waits.
_END = sa.text(
    "UPDATE workflow_status SET status = 'ERROR', error = :error, owner_xid = NULL, "
    "queue_name = NULL, updated_at = :now, completed_at = :now "
    "WHERE workflow_uuid = :job_id AND status = 'ENQUEUED'"
)


class StartStore:
    """The times by which jobs have to be started. Its methods read or write the disk.

    Args:
        engine: of the queue's database.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        create_table(engine, _STARTS, [_BY_TIME])

    def add(self, job_id: str, start_by: datetime) -> None:
        """Note the time of a job; nothing happens if it has one.

        Args:
            job_id: of the job.
            start_by: with its zone.
        """
        row = {"job_id": job_id, "start_by_ms": round(1000 * start_by.timestamp())}
        with self._engine.begin() as connection:
            insert_if_absent(connection, _STARTS, row)

    def begin(self, job_id: str) -> None:
        """Note that a job is begun. A job that was begun before may be begun again at any time.

        Args:
            job_id: of the job.

        Raises:
            NotStartedError: its time has passed.
        """
        query = sa.select(_STARTS.c.start_by_ms).where(_STARTS.c.job_id == job_id)
        with self._engine.connect() as connection:
            start_by_ms = connection.execute(query).scalar_one_or_none()
        if start_by_ms is None:
            return
        if start_by_ms <= read_clock():
            raise make_error(start_by_ms)
        self.forget(job_id)

    def end_late(self) -> None:
        """End the jobs that were not begun in time."""
        now = read_clock()
        query = sa.select(_STARTS).where(_STARTS.c.start_by_ms <= now).limit(1000)
        with self._engine.connect() as connection:
            late = connection.execute(query).all()
        if not late:
            return
        rows = [
            {"job_id": job_id, "now": now, "error": _format_error(make_error(start_by_ms))}
            for job_id, start_by_ms in late
        ]
        with self._engine.begin() as connection:
            connection.execute(_END, rows)
            ids = [job_id for job_id, _ in late]
            connection.execute(_STARTS.delete().where(_STARTS.c.job_id.in_(ids)))

    def forget(self, job_id: str) -> None:
        """Forget the time of a job, if it has one."""
        with self._engine.begin() as connection:
            connection.execute(_STARTS.delete().where(_STARTS.c.job_id == job_id))


def make_error(start_by_ms: int) -> NotStartedError:
    """Return the error of a job that was not begun in time.

    Args:
        start_by_ms: Unix time in milliseconds.
    """
    start_by = datetime.fromtimestamp(start_by_ms / 1000, UTC).isoformat(timespec="seconds")
    return NotStartedError(
        f"the job was not started by {start_by}, its start_by; submit it again with a later one, "
        "or with priority interactive"
    )


def _format_error(error: NotStartedError) -> str:
    fields = {"name": JobFailedError.__name__, "message": str(error), "code": error.code}
    return json.dumps(fields)

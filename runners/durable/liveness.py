"""Which executors live, where several machines share one queue.

Each executor notes every second, by the database's clock, that it lives. The others remove the row
of one that was silent for `DEAD_SECONDS`, and take its jobs. An executor that was only slow finds
its row gone before it publishes anything. It then ends itself. DBOS has no such thing.
"""

import os
import time
from collections.abc import Callable

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import SQLAlchemyError

from runners.durable.database import create_table

log = structlog.get_logger(__name__)

BEAT_SECONDS = 1.0
DEAD_SECONDS = 5.0

_EXECUTORS = sa.Table(
    "foley_executors",
    sa.MetaData(),
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("started_at", sa.Double, nullable=False),
    sa.Column("seen_at", sa.Double, nullable=False),
)
_NOW = sa.extract("epoch", sa.func.clock_timestamp())
_JOBS = sa.table("workflow_status", sa.column("status"), sa.column("executor_id"))
# Also those of an executor whose row was removed by one that died before it went on.
_ABANDONED = (
    sa.select(_JOBS.c.executor_id)
    .distinct()
    .where(_JOBS.c.status == "PENDING", _JOBS.c.executor_id.is_not(None))
    .where(_JOBS.c.executor_id.not_in(sa.select(_EXECUTORS.c.id)))
)


class Liveness:
    """One executor among those of a database. Its methods call the database.

    Args:
        engine: of PostgreSQL.
        executor_id: drawn anew at each start.

    Attributes:
        is_first: whether it has lived longest, as far as is known: one of them sends webhooks.
    """

    def __init__(self, engine: sa.Engine, executor_id: str) -> None:
        self._engine = engine
        self._id = executor_id
        self.is_first = False
        create_table(engine, _EXECUTORS)

    def begin(self) -> None:
        """Note that this executor has started; no job may be taken before."""
        row = {"id": self._id, "started_at": _NOW, "seen_at": _NOW}
        with self._engine.begin() as connection:
            connection.execute(_EXECUTORS.insert().values(**row))

    def beat(self) -> bool:
        """Note that this executor lives; returns False if it was held to be dead."""
        change = _EXECUTORS.update().where(_EXECUTORS.c.id == self._id).values(seen_at=_NOW)
        with self._engine.begin() as connection:
            return connection.execute(change).rowcount == 1

    def require_claim(self) -> None:
        """Return if the jobs of this process are still its own, or end the process.

        Raises:
            SQLAlchemyError: the database does not answer.
        """
        if not self.beat():
            log.error("jobs_lost", reason="this process was silent, and others have its jobs")
            os._exit(1)  # before another line of it runs

    def find_abandoned(self) -> list[str]:
        """Remove the executors that were silent, and return those whose jobs nobody runs."""
        silent = _EXECUTORS.c.seen_at < _NOW - DEAD_SECONDS
        first = sa.select(_EXECUTORS.c.id).order_by(_EXECUTORS.c.started_at, _EXECUTORS.c.id)
        with self._engine.begin() as connection:
            connection.execute(_EXECUTORS.delete().where(silent, _EXECUTORS.c.id != self._id))
            self.is_first = connection.execute(first.limit(1)).scalar() == self._id
            return list(connection.execute(_ABANDONED).scalars())


def stay_alive(liveness: Liveness, recover: Callable[[list[str]], object]) -> None:
    """Beat for ever, and hand the jobs of silent executors on.

    Args:
        liveness: of this executor.
        recover: queues the jobs of executors again.
    """
    # After a silence of its own, or of the database, an executor knows nothing about the others.
    beating_since = last = time.monotonic()
    while True:
        try:
            liveness.require_claim()
            now = time.monotonic()
            if now - last > DEAD_SECONDS / 2:
                beating_since = now
            last = now
            if now - beating_since > DEAD_SECONDS and (dead := liveness.find_abandoned()):
                log.warning("jobs_recovered", executors=dead)
                recover(dead)
        except SQLAlchemyError as error:
            liveness.is_first = False
            log.warning("database_away", reason=str(getattr(error, "orig", error)).strip()[:200])
        time.sleep(BEAT_SECONDS)

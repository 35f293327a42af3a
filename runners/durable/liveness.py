"""Which executors live, where several machines share one queue.

Each executor changes its row every second. The others remove a row that they have not seen change
for `DEAD_SECONDS`, by a clock of their own that nobody sets, and take the jobs. An executor that
was only slow finds its row gone before it publishes anything. It then ends itself. DBOS has no such
thing.
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
        # Of each of the others: what its row said, and since when by the monotonic clock.
        self._unchanged: dict[str, tuple[float, float]] = {}
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
        first = sa.select(_EXECUTORS.c.id).order_by(_EXECUTORS.c.started_at, _EXECUTORS.c.id)
        with self._engine.begin() as connection:
            for executor_id, seen_at in self._find_silent(connection):
                is_silent = (_EXECUTORS.c.id == executor_id) & (_EXECUTORS.c.seen_at == seen_at)
                connection.execute(_EXECUTORS.delete().where(is_silent))
            self.is_first = connection.execute(first.limit(1)).scalar() == self._id
            return list(connection.execute(_ABANDONED).scalars())

    def forget_others(self) -> None:
        """Begin to watch the others anew: this process, or the database, was silent itself."""
        self._unchanged.clear()

    def _find_silent(self, connection: sa.Connection) -> list[tuple[str, float]]:
        """Return the others whose rows have not changed for too long, and what these say."""
        now = time.monotonic()
        query = sa.select(_EXECUTORS.c.id, _EXECUTORS.c.seen_at)
        said = {row.id: row.seen_at for row in connection.execute(query) if row.id != self._id}
        before = self._unchanged
        self._unchanged = {
            executor_id: before[executor_id]
            if executor_id in before and before[executor_id][0] == seen_at
            else (seen_at, now)
            for executor_id, seen_at in said.items()
        }
        return [
            (executor_id, seen_at)
            for executor_id, (seen_at, since) in self._unchanged.items()
            if now - since > DEAD_SECONDS
        ]


def stay_alive(liveness: Liveness, recover: Callable[[list[str]], object]) -> None:
    """Beat for ever, and hand the jobs of silent executors on.

    Args:
        liveness: of this executor.
        recover: queues the jobs of executors again.
    """
    last = time.monotonic()
    while True:
        try:
            liveness.require_claim()
            now = time.monotonic()
            if now - last > DEAD_SECONDS / 2:
                liveness.forget_others()
            last = now
            if dead := liveness.find_abandoned():
                log.warning("jobs_recovered", executors=dead)
                recover(dead)
        except SQLAlchemyError as error:
            liveness.is_first = False
            log.warning("database_away", reason=str(getattr(error, "orig", error)).strip()[:200])
        time.sleep(BEAT_SECONDS)

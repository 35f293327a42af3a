"""Whose turn it is among the jobs that wait.

DBOS starts the job with the smallest number first, and of equal ones the oldest. A job's number
says in which round it is started: each caller has one job in a round.
"""

import json

import sqlalchemy as sa

from runners.durable.database import create_index
from runners.messages import Priority

# Numbers of the rounds; DBOS has 1 to 2^31 - 1. Interactive jobs are all started before others.
_ROUNDS: dict[Priority, range] = {
    "interactive": range(1, 2**30),
    "bulk": range(2**30, 2**31 - 1),
}
_INDEX = (
    "CREATE INDEX IF NOT EXISTS foley_turns ON workflow_status (authenticated_roles, priority) "
    "WHERE status = 'ENQUEUED'"
)
_COUNT = sa.text(
    "SELECT count(*) FROM workflow_status "
    "WHERE authenticated_roles = :caller AND status = 'ENQUEUED'"
)
_FIND_ROUNDS = sa.text(
    "SELECT (SELECT min(priority) FROM workflow_status WHERE queue_name = :queue "
    "AND status = 'ENQUEUED' AND priority BETWEEN :first AND :last), "
    "(SELECT max(priority) FROM workflow_status WHERE authenticated_roles = :caller "
    "AND status = 'ENQUEUED' AND priority BETWEEN :first AND :last)"
)


class TurnStore:
    """The turns of callers. Its methods read the disk, or call the database.

    Args:
        engine: of the queue's database.
        queue: its name.
    """

    def __init__(self, engine: sa.Engine, queue: str) -> None:
        self._engine, self._queue = engine, queue
        create_index(engine, _INDEX)

    def choose(self, caller: str, priority: Priority) -> int:
        """Return the number of a caller's next job: the round after that of its last that waits.

        A caller of whom none waits gets the present round, so that it waits for one job of each
        other caller, and not for all of them. Two calls at one moment may choose the same.

        Args:
            caller: see `runners.auth.caller_of`.
            priority: of the job.
        """
        rounds = _ROUNDS[priority]
        limits = {"first": rounds[0], "last": rounds[-1]}
        given = {"queue": self._queue, "caller": json.dumps(name_roles(caller)), **limits}
        with self._engine.connect() as connection:
            present, last = connection.execute(_FIND_ROUNDS, given).one()
        number: int = rounds[0] if present is None else present if last is None else last + 1
        return min(rounds[-1], number)

    def count(self, caller: str) -> int:
        """Return how many jobs of a caller wait."""
        with self._engine.connect() as connection:
            given = {"caller": json.dumps(name_roles(caller))}
            count: int = connection.execute(_COUNT, given).scalar_one()
        return count


def name_roles(caller: str) -> list[str]:
    """Return the roles of a job's user, which say whose turn it takes.

    DBOS keeps them with the job as JSON and asks for none. The user itself will not do, since all
    callers without a key have one.
    """
    return [f"caller:{caller}"]

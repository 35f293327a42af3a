"""The webhooks of jobs: what is to be sent, and what became of it. A table beside the queue's.

A webhook is noted before its job is queued, so a job that ends has it, whatever dies in between.
`runners.durable.notifier` sends them.
"""

import time
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from foley.errors import ConflictError, NotFoundError
from runners.durable.database import create_table, insert_if_absent
from runners.durable.job import Webhook, WebhookState

_WEBHOOKS = sa.Table(
    "foley_webhooks",
    sa.MetaData(),
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("root", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("first_ms", sa.BigInteger, nullable=False),
    sa.Column("next_ms", sa.BigInteger, nullable=False),
    sa.Column("num_tries", sa.Integer, nullable=False),
    sa.Column("last_error", sa.Text, nullable=False),
    sa.Column("ended_ms", sa.BigInteger, nullable=False),
)
_COLUMNS = _WEBHOOKS.c
_DUE = sa.Index("foley_webhooks_due", _COLUMNS.state, _COLUMNS.next_ms)
_JOBS = sa.table("workflow_status", sa.column("workflow_uuid"), sa.column("status"))
_UNFINISHED = ("DELAYED", "ENQUEUED", "PENDING")
MAX_ERROR_CHARACTERS = 300


class WebhookStore:
    """The webhooks of all jobs of a folder. Its methods read or write the disk.

    Args:
        engine: of the queue's database.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        create_table(engine, _WEBHOOKS, [_DUE])

    def add(self, job_id: str, owner: str, url: str, *, host: str, root: str) -> None:
        """Note the webhook of a job; nothing happens if it has one.

        Args:
            job_id: of the job.
            owner: of the job.
            url: of the receiver.
            host: in it.
            root: path below which the caller reached the service.
        """
        row: dict[str, Any] = {"job_id": job_id, "owner": owner, "url": url, "host": host}
        row |= {"root": root, "state": "waiting", "created_ms": read_clock(), "body": ""}
        row |= {"first_ms": 0, "next_ms": 0, "num_tries": 0, "last_error": "", "ended_ms": 0}
        with self._engine.begin() as connection:
            insert_if_absent(connection, _WEBHOOKS, row)

    def find(self, job_ids: Iterable[str]) -> dict[str, Webhook]:
        """Return the webhooks of jobs by the jobs' ids."""
        query = sa.select(_WEBHOOKS).where(_COLUMNS.job_id.in_(list(job_ids)))
        return {webhook.job_id: webhook for webhook in self._read(query)}

    def find_ended(self, limit: int) -> list[Webhook]:
        """Return webhooks that wait for a job which has ended.

        Args:
            limit: how many at most.
        """
        ended = (
            sa.exists()
            .where(_JOBS.c.workflow_uuid == _COLUMNS.job_id)
            .where(_JOBS.c.status.not_in(_UNFINISHED))
        )
        query = sa.select(_WEBHOOKS).where(_COLUMNS.state == "waiting", ended).limit(limit)
        return self._read(query)

    def begin(self, job_id: str, body: str) -> None:
        """Begin to send a webhook that waited.

        Args:
            job_id: of its job.
            body: what is sent at every try.
        """
        now = read_clock()
        values = {"state": "sending", "body": body, "first_ms": now, "next_ms": now}
        self._update(job_id, "waiting", values)

    def give_up(self, webhook: Webhook, reason: str) -> None:
        """Note that a webhook that waited cannot be sent.

        Args:
            webhook: as it was.
            reason: for the caller.
        """
        values = {"state": "failed", "last_error": reason, "ended_ms": read_clock()}
        self._update(webhook.job_id, "waiting", values)

    def find_due(
        self, limit: int, *, without_jobs: Iterable[str], without_hosts: Iterable[str]
    ) -> list[Webhook]:
        """Return webhooks whose next try is due, those first that have waited longest.

        Args:
            limit: how many at most.
            without_jobs: which are left out.
            without_hosts: whose webhooks are left out.
        """
        query = (
            sa.select(_WEBHOOKS)
            .where(
                _COLUMNS.state == "sending",
                _COLUMNS.next_ms <= read_clock(),
                _COLUMNS.job_id.not_in(list(without_jobs)),
                _COLUMNS.host.not_in(list(without_hosts)),
            )
            .order_by(_COLUMNS.next_ms)
            .limit(limit)
        )
        return self._read(query)

    def set_delivered(self, webhook: Webhook) -> None:
        """Note that a try has succeeded."""
        values = {"state": "delivered", "num_tries": webhook.num_tries + 1, "last_error": ""}
        self._update(webhook.job_id, "sending", {**values, "ended_ms": read_clock()})

    def set_failed(self, webhook: Webhook, reason: str, next_ms: int | None) -> None:
        """Note that a try has failed.

        Args:
            webhook: as it was before the try.
            reason: for the caller.
            next_ms: of the next try; None gives up.
        """
        values: dict[str, Any] = {
            "num_tries": webhook.num_tries + 1,
            "last_error": reason[:MAX_ERROR_CHARACTERS],
        }
        if next_ms is None:
            values |= {"state": "failed", "ended_ms": read_clock()}
        else:
            values |= {"next_ms": next_ms}
        self._update(webhook.job_id, "sending", values)

    def resend(self, owner: str, job_id: str) -> Webhook:
        """Send a webhook again at once, under its id, and for a day if need be.

        Args:
            owner: of the job.
            job_id: as the caller sent it; any text.

        Raises:
            NotFoundError: there is none, or its job belongs to another owner.
            ConflictError: its job has not ended.
        """
        webhook = self.find([job_id]).get(job_id)
        if webhook is None or webhook.owner != owner:
            raise NotFoundError("there is no webhook of such a job; it may have expired")
        if webhook.state == "waiting":
            raise ConflictError("the job has not ended, and its webhook is sent when it has")
        now = read_clock()
        state = "sending" if webhook.body else "waiting"
        values = {"state": state, "first_ms": now, "next_ms": now, "num_tries": 0}
        self._update(job_id, webhook.state, values)
        return self.find([job_id]).get(job_id, webhook)

    def list_failed(self, owner: str, *, limit: int, offset: int) -> list[Webhook]:
        """Return webhooks that were given up, the latest first.

        Args:
            owner: of their jobs.
            limit: how many at most.
            offset: how many of the latest to leave out.
        """
        query = (
            sa.select(_WEBHOOKS)
            .where(_COLUMNS.state == "failed", _COLUMNS.owner == owner)
            .order_by(_COLUMNS.ended_ms.desc(), _COLUMNS.job_id)
            .limit(limit)
            .offset(offset)
        )
        return self._read(query)

    def forget(self, job_id: str) -> None:
        """Forget the webhook of a job, if it has one."""
        with self._engine.begin() as connection:
            connection.execute(_WEBHOOKS.delete().where(_COLUMNS.job_id == job_id))

    def forget_ended(self, before: datetime) -> None:
        """Forget webhooks that ended before a time, and those whose job never came to be.

        Args:
            before: with its zone.
        """
        before_ms = round(1000 * before.timestamp())
        is_ended = _COLUMNS.state.in_(("delivered", "failed")) & (_COLUMNS.ended_ms < before_ms)
        is_alone = (
            (_COLUMNS.state == "waiting")
            & (_COLUMNS.created_ms < before_ms)
            & ~sa.exists().where(_JOBS.c.workflow_uuid == _COLUMNS.job_id)
        )
        with self._engine.begin() as connection:
            connection.execute(_WEBHOOKS.delete().where(is_ended | is_alone))

    def _read(self, query: sa.Select[Any]) -> list[Webhook]:
        with self._engine.connect() as connection:
            return [Webhook(**row) for row in connection.execute(query).mappings()]

    def _update(self, job_id: str, state: WebhookState, values: dict[str, Any]) -> None:
        """Change a webhook that is still in a state."""
        change = _WEBHOOKS.update().where(_COLUMNS.job_id == job_id, _COLUMNS.state == state)
        with self._engine.begin() as connection:
            connection.execute(change.values(**values))


def read_clock() -> int:
    """Return the Unix time in milliseconds."""
    return time.time_ns() // 1_000_000

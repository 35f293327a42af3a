"""Send the webhooks of ended jobs, and try again with growing pauses for a day."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable

import structlog
from sqlalchemy.exc import SQLAlchemyError

from runners.durable.job import Webhook
from runners.durable.receivers import Receivers, Refusal
from runners.durable.webhooks import WebhookStore, read_clock

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.5
MAX_SENDING = 64
# A slow receiver holds as many places at most. The others are for receivers that answer.
MAX_SENDING_TO_HOST = 4
MAX_BEGUN = 100
FIRST_PAUSE_SECONDS = 5.0
MAX_PAUSE_SECONDS = 4 * 3600.0
GIVE_UP_SECONDS = 86_400.0
TROUBLE_SECONDS = 5.0

Describe = Callable[[Webhook], str]


class Notifier:
    """Sends webhooks, of which any number may be due.

    Args:
        store: of the webhooks.
        receivers: where they go.
        describe: returns what is sent about a job that has ended, as JSON.
        may_send: whether it is this one's turn, where several processes could send.
    """

    def __init__(
        self,
        store: WebhookStore,
        receivers: Receivers,
        describe: Describe,
        may_send: Callable[[], bool] = lambda: True,
    ) -> None:
        self._store = store
        self._receivers = receivers
        self._describe = describe
        self._may_send = may_send
        self._sending: dict[str, asyncio.Task[None]] = {}
        self._sending_to: Counter[str] = Counter()

    async def run_forever(self) -> None:
        """Send webhooks as they fall due."""
        while True:
            if not self._may_send():
                await asyncio.sleep(POLL_SECONDS)
                continue
            try:
                await asyncio.to_thread(begin_ended, self._store, self._describe)
                due = await asyncio.to_thread(self._find_due)
            except Exception:
                # Such as a full disk. What is due stays due.
                log.exception("webhooks_wait")
                await asyncio.sleep(TROUBLE_SECONDS)
                continue
            for webhook in due:
                if self._sending_to[webhook.host] < MAX_SENDING_TO_HOST:
                    self._start(webhook)
            await self._wait(is_full=len(due) > 0)

    def _find_due(self) -> list[Webhook]:
        busy = [host for host, num in self._sending_to.items() if num >= MAX_SENDING_TO_HOST]
        room = MAX_SENDING - len(self._sending)
        return self._store.find_due(room, without_jobs=list(self._sending), without_hosts=busy)

    def _start(self, webhook: Webhook) -> None:
        self._sending_to[webhook.host] += 1
        task = asyncio.create_task(self._send(webhook))
        self._sending[webhook.job_id] = task

        def end(_task: asyncio.Task[None]) -> None:
            del self._sending[webhook.job_id]
            self._sending_to[webhook.host] -= 1
            self._sending_to += Counter()  # leaves out the hosts without webhooks

        task.add_done_callback(end)

    async def _wait(self, *, is_full: bool) -> None:
        """Wait for the next look: until one has been sent, if more are due, or for a while."""
        if is_full and self._sending:
            tasks = self._sending.values()
            await asyncio.wait(tasks, timeout=POLL_SECONDS, return_when="FIRST_COMPLETED")
        else:
            await asyncio.sleep(POLL_SECONDS)

    async def _send(self, webhook: Webhook) -> None:
        """Try once, and note what became of it."""
        refusal = await self._receivers.send(webhook.url, webhook.message_id, webhook.body)
        try:
            await asyncio.to_thread(self._note, webhook, refusal)
        except Exception:
            log.exception("webhook_not_noted", job_id=webhook.job_id)
            await asyncio.sleep(TROUBLE_SECONDS)  # it is due, and sent again under its id

    def _note(self, webhook: Webhook, refusal: Refusal | None) -> None:
        fields = {"job_id": webhook.job_id, "num_tries": webhook.num_tries + 1}
        if refusal is None:
            self._store.set_delivered(webhook)
            log.info("webhook_delivered", **fields)
            return
        next_ms = None
        if not refusal.is_final:
            next_ms = choose_next(webhook.first_ms, webhook.num_tries + 1, read_clock())
        self._store.set_failed(webhook, refusal.reason, next_ms)
        event = "webhook_given_up" if next_ms is None else "webhook_waits"
        log.warning(event, reason=refusal.reason, **fields)


def begin_ended(store: WebhookStore, describe: Describe) -> None:
    """Write what is sent about the jobs that have ended. After it the jobs may be forgotten.

    Args:
        store: of the webhooks.
        describe: as of `Notifier`.
    """
    while webhooks := store.find_ended(MAX_BEGUN):
        for webhook in webhooks:
            try:
                body = describe(webhook)
            except SQLAlchemyError:  # the database is away, for all of them
                raise
            except Exception:  # a fault of ours in one must not hold up the others
                log.exception("webhook_not_described", job_id=webhook.job_id)
                store.give_up(webhook, "the service could not describe the job")
            else:
                store.begin(webhook.job_id, body)


def choose_next(first_ms: int, num_tries: int, now_ms: int) -> int | None:
    """Return when to try again; None gives up. The last try is a day after the first.

    Args:
        first_ms: when the first try could begin.
        num_tries: that have failed.
        now_ms: the time.
    """
    last_ms = first_ms + round(1000 * GIVE_UP_SECONDS)
    if now_ms >= last_ms:
        return None
    pause_seconds = min(FIRST_PAUSE_SECONDS * 2.0 ** min(num_tries - 1, 30), MAX_PAUSE_SECONDS)
    # Those that failed together must not come back together.
    pause_seconds *= random.uniform(0.9, 1.1)
    return min(now_ms + round(1000 * pause_seconds), last_ms)

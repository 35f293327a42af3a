"""Webhooks, sent to real receivers on loopback."""

import asyncio
import base64
import functools
import itertools
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from standardwebhooks import Webhook as Signer

from foley.client import verify_webhook
from foley.errors import ConflictError, NotFoundError, ParameterError, RequestError
from runners.durable import notifier
from runners.durable.description import format_message
from runners.durable.job import Webhook
from runners.durable.notifier import Notifier, begin_ended, choose_next
from runners.durable.queue import JobQueue
from runners.durable.receivers import Receivers, WebhookSettings
from runners.durable.request import JobOptions, JobRequest
from tests.durable.receiver import SECRET, Receiver, receive_webhooks
from tests.patience import scale

OWNER = "a" * 64
LOOPBACK = WebhookSettings(secrets=(SECRET,), networks=("127.0.0.0/8",))
HOUR_MS = 3_600_000


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[JobQueue]:
    queue = JobQueue(tmp_path / "jobs.sqlite", max_waiting=1000)
    yield queue
    queue.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receive_webhooks() as receiver:
        yield receiver


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(notifier, "POLL_SECONDS", 0.02)


def submit(queue: JobQueue, job_id: str, url: str, *, owner: str = OWNER) -> None:
    options = JobOptions(prompt="rain", webhook_url=url)
    host = url.split("/")[2].split(":")[0]
    queue.webhooks.add(job_id, owner, url, host=host, root="/below")
    queue.submit(owner, job_id, JobRequest.settle(options, None))


def end_job(queue: JobQueue, job_id: str, url: str, *, owner: str = OWNER) -> None:
    submit(queue, job_id, url, owner=owner)
    queue.cancel(owner, job_id)


def describe(queue: JobQueue, webhook: Webhook) -> str:
    return format_message(queue.find(webhook.owner, webhook.job_id), webhook.root, 60.0)


def send_until(
    queue: JobQueue,
    is_done: Callable[[], object],
    settings: WebhookSettings = LOOPBACK,
    *,
    try_seconds: float = 15.0,
) -> None:
    """Send webhooks until something is so."""

    async def send() -> None:
        receivers = Receivers(settings, scale(try_seconds))
        sending = asyncio.create_task(
            Notifier(queue.webhooks, receivers, functools.partial(describe, queue)).run_forever()
        )
        try:
            async with asyncio.timeout(scale(20)):
                while not is_done():
                    assert not sending.done()
                    await asyncio.sleep(0.02)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            await receivers.close()

    asyncio.run(send())


def state(queue: JobQueue, job_id: str) -> Webhook:
    return queue.webhooks.find([job_id])[job_id]


def test_a_webhook_says_what_became_of_the_job_and_is_signed(
    queue: JobQueue, receiver: Receiver
) -> None:
    submit(queue, "1", receiver.url)
    end_job(queue, "2", receiver.url)
    send_until(queue, lambda: state(queue, "2").state == "delivered")
    ((headers, body),) = receiver.got  # none of the job that waits
    job = verify_webhook(SECRET, body, headers)
    assert (job.id, job.state) == ("2", "cancelled")
    message = json.loads(body)
    assert message["type"] == "job.cancelled"
    assert message["data"]["status_url"] == "/below/v1/jobs/2"
    assert headers["webhook-id"] == "msg_2"
    assert state(queue, "1").state == "waiting"


def test_all_tries_have_one_id_and_the_same_body(queue: JobQueue, receiver: Receiver) -> None:
    receiver.statuses = [503, 500]
    end_job(queue, "1", receiver.url)
    send_until(queue, lambda: state(queue, "1").state == "delivered")
    assert {headers["webhook-id"] for headers, _ in receiver.got} == {"msg_1"}
    assert len({body for _, body in receiver.got}) == 1
    assert state(queue, "1").num_tries == len(receiver.got) == 3


def test_a_try_that_was_cut_off_is_made_again_under_its_id(
    queue: JobQueue, receiver: Receiver
) -> None:
    end_job(queue, "1", receiver.url + "hang")
    send_until(queue, lambda: receiver.got)  # it ends like a killed process, without an answer
    assert state(queue, "1").state == "sending"
    send_until(queue, lambda: len(receiver.got) == 2)
    assert {headers["webhook-id"] for headers, _ in receiver.got} == {"msg_1"}


def test_receivers_that_never_answer_hold_up_no_others(queue: JobQueue, receiver: Receiver) -> None:
    for number in range(100):
        end_job(queue, f"slow-{number}", receiver.url + "hang")
    with receive_webhooks("127.0.0.2") as other:
        for number in range(3):
            end_job(queue, f"quick-{number}", other.url)
        send_until(queue, lambda: len(other.got) == 3)
    assert len(receiver.got) == notifier.MAX_SENDING_TO_HOST


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("hang", "did not answer within"),
        ("drip", "did not answer within"),
        ("away", "answered 307"),
    ],
)
def test_a_try_ends_in_time_and_follows_no_redirect(
    queue: JobQueue,
    receiver: Receiver,
    path: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notifier, "FIRST_PAUSE_SECONDS", 600.0)
    end_job(queue, "1", receiver.url + path)
    send_until(queue, lambda: state(queue, "1").last_error, try_seconds=0.2)
    assert reason in state(queue, "1").last_error


def test_an_endless_answer_is_not_read(queue: JobQueue, receiver: Receiver) -> None:
    end_job(queue, "1", receiver.url + "endless")
    send_until(queue, lambda: state(queue, "1").state == "delivered")


def test_a_private_network_is_reached_only_if_it_is_allowed(
    queue: JobQueue, receiver: Receiver
) -> None:
    closed = WebhookSettings(secrets=(SECRET,))
    with pytest.raises(ParameterError, match="not the open internet"):
        closed.check_url(receiver.url)
    assert LOOPBACK.check_url(receiver.url).host == "127.0.0.1"
    named = receiver.url.replace("127.0.0.1", "localhost")
    end_job(queue, "1", named)
    send_until(queue, lambda: state(queue, "1").last_error, closed)
    assert "not the open internet" in state(queue, "1").last_error
    assert not receiver.got


@pytest.mark.parametrize("url", ["ftp://a.test/", "x", "https://", "http://a:b@c.test/", "http://"])
def test_an_address_that_cannot_be_one_is_refused(url: str) -> None:
    with pytest.raises(ParameterError, match="webhook_url: the receiver's address"):
        LOOPBACK.check_url(url)
    with pytest.raises(ParameterError, match="FOLEY_WEBHOOK_SECRET"):
        WebhookSettings().check_url("https://example.com/")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.1:37900/ok", "'127.1' is neither a name nor a whole IP address"),
        ("http://127.0.0.1.:80/ok", "'127.0.0.1.' is neither"),
        ("http://2130706433/", "'2130706433' is neither"),
        ("http://999.1.1.1/", "'999.1.1.1' is neither"),
        ("http://[1::2::3]/", "'1::2::3' is neither"),
        ("http://a..test/", "'a..test' is neither"),
        ("http://.a.test/", "'.a.test' is neither"),
        (f"http://{'a' * 64}.test/", "is neither"),
        ("http://a b.test/", "'a b.test' is neither"),
        ("http://a%31.test/", "'a%31.test' is neither"),
        ("http://a.test/x\r\nHost: b", r"its character 16 is '\\r'; remove it"),
        ("http://a\n.test/", r"its character 9 is '\\n'"),
        ("http://a.test/\tx", r"its character 15 is '\\t'"),
        ("http://a.test/\0", r"its character 15 is '\\x00'"),
    ],
)
def test_an_address_that_no_try_could_reach_is_refused(url: str, words: str) -> None:
    with pytest.raises(ParameterError, match=f"webhook_url: the receiver's address.*{words}"):
        LOOPBACK.check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:37900/a b",
        "https://a.test./",
        "http://my_service:80/",
        "https://m\u00fcnchen.test/\u00fc",
        "http://[::ffff:127.0.0.1]/",
    ],
)
def test_unusual_addresses_that_can_be_reached_are_taken(url: str) -> None:
    assert LOOPBACK.check_url(url).scheme in url


def test_a_webhook_that_was_given_up_is_listed_and_sent_again(
    queue: JobQueue, receiver: Receiver
) -> None:
    receiver.statuses = [410]
    end_job(queue, "1", receiver.url)
    submit(queue, "2", receiver.url)
    store = queue.webhooks
    send_until(queue, lambda: state(queue, "1").state == "failed")
    (failed,) = store.list_failed(OWNER, limit=10, offset=0)
    assert (failed.job_id, failed.last_error) == ("1", "the receiver answered 410")
    assert store.list_failed("b" * 64, limit=10, offset=0) == []
    for owner, job_id in (("b" * 64, "1"), (OWNER, "3")):
        with pytest.raises(NotFoundError):
            store.resend(owner, job_id)
    with pytest.raises(ConflictError, match="has not ended"):
        store.resend(OWNER, "2")
    assert store.resend(OWNER, "1").state == "sending"
    send_until(queue, lambda: state(queue, "1").state == "delivered")
    assert {headers["webhook-id"] for headers, _ in receiver.got} == {"msg_1"}


def test_pauses_grow_and_the_last_try_is_a_day_after_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notifier, "FIRST_PAUSE_SECONDS", 5.0)
    tries = [0]
    while (following := choose_next(0, len(tries), tries[-1])) is not None:
        tries.append(following)
    pauses = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert 4_500 <= pauses[0] <= 5_500
    assert pauses[:10] == sorted(pauses[:10])
    assert max(pauses) <= 4.4 * HOUR_MS
    assert tries[-1] == 24 * HOUR_MS
    assert 12 < len(tries) < 30
    # A service that was stopped for two days still tries once.
    assert choose_next(0, 1, 48 * HOUR_MS) is None


def test_a_webhook_outlives_its_job_until_it_was_delivered(
    queue: JobQueue, receiver: Receiver
) -> None:
    for job_id in "12":
        end_job(queue, job_id, receiver.url)
    queue.delete(OWNER, "1")
    assert queue.webhooks.find("1") == {}
    now = datetime.now(UTC)
    begin_ended(queue.webhooks, functools.partial(describe, queue))
    assert queue.forget_finished(now + timedelta(hours=1)) == ["2"]
    send_until(queue, lambda: state(queue, "2").state == "delivered")
    queue.webhooks.add("3", OWNER, receiver.url, host="127.0.0.1", root="")  # never queued
    queue.forget_finished(now + timedelta(hours=1))
    assert queue.webhooks.find("123") == {}


def test_a_message_that_was_changed_is_refused() -> None:
    for secret in ("whsec_", "nonsense", f"{SECRET},whsec_", SECRET.removeprefix("whsec_")):
        with pytest.raises(ParameterError, match=r"secret: secret number . is malformed"):
            verify_webhook(secret, b"{}", {})
    with pytest.raises(ParameterError, match="secret: is empty"):
        verify_webhook(" , ", b"{}", {})
    with pytest.raises(RequestError, match="its body is no UTF-8"):
        verify_webhook(SECRET, b"\xff", {})
    for headers in (
        {},
        {"webhook-id": "1", "webhook-timestamp": "x", "webhook-signature": "v1,AA=="},
        {"webhook-id": "1", "webhook-timestamp": "1", "webhook-signature": "v1,AA=="},
        {
            "webhook-id": "1",
            "webhook-timestamp": str(datetime.now(UTC).timestamp()),
            "webhook-signature": "v1",
        },
    ):
        with pytest.raises(RequestError, match="the webhook is refused"):
            verify_webhook(SECRET, b"{}", headers)


@pytest.mark.parametrize("signer", [0, 1])
def test_one_of_several_secrets_has_to_have_signed(signer: int) -> None:
    now = datetime.now(UTC)
    body = json.dumps({"data": {"id": "1", "state": "failed", "created_at": now.isoformat()}})
    secrets = [SECRET, f"whsec_{base64.b64encode(bytes(32)).decode()}"]
    signature = Signer(secrets[signer]).sign("1", now, body)
    headers = {
        "webhook-id": "1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": signature,
    }
    assert verify_webhook(",".join(secrets), body, headers).id == "1"
    with pytest.raises(RequestError, match="No matching signature"):
        verify_webhook(secrets[1 - signer], body, headers)


def test_a_job_that_cannot_be_described_holds_up_no_other(
    queue: JobQueue, receiver: Receiver
) -> None:
    for job_id in "12":
        end_job(queue, job_id, receiver.url)

    def describe_one(webhook: Webhook) -> str:
        if webhook.job_id == "1":
            raise RuntimeError("a fault of ours")
        return describe(queue, webhook)

    begin_ended(queue.webhooks, describe_one)
    assert state(queue, "1").state == "failed"
    assert state(queue, "2").state == "sending"
    queue.webhooks.resend(OWNER, "1")
    send_until(queue, lambda: state(queue, "1").state == "delivered")
    assert all(body for _, body in receiver.got)

"""The queue of jobs, without an executor."""

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from foley.errors import (
    BusyError,
    CancelledRequestError,
    ConfigError,
    ConflictError,
    NotFoundError,
    NotStartedError,
)
from runners.durable.attempts import ProgressNotes
from runners.durable.executor import AtWork
from runners.durable.queue import JobQueue
from runners.durable.request import JobOptions, JobRequest
from runners.status import public_error

OWNER = "a" * 64


def make_request(**options: object) -> JobRequest:
    return JobRequest.settle(JobOptions.model_validate(options), None)


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[JobQueue]:
    queue = JobQueue(tmp_path / "jobs.sqlite", max_waiting=3)
    yield queue
    queue.close()


def test_a_job_is_found_by_its_owner_alone(queue: JobQueue) -> None:
    queue.submit(OWNER, "1", make_request(prompt="rain"))
    job = queue.find(OWNER, "1")
    assert (job.id, job.owner, job.state, job.priority) == ("1", OWNER, "queued", "bulk")
    for owner, job_id in (("", "1"), ("b" * 64, "1"), (OWNER, "2"), (OWNER, "%")):
        with pytest.raises(NotFoundError):
            queue.find(owner, job_id)
        with pytest.raises(NotFoundError):
            queue.cancel(owner, job_id)
    assert queue.list_jobs("", limit=10) == []


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": "rain"},
        {
            "prompt": "rain",
            "priority": "interactive",
            "webhook_url": "https://a.test/",
            "output": "s3://bucket/out/",
            "start_by": "2999-12-01T18:00:00.5+01:00",
            "upload": "a" * 32,
        },
    ],
)
def test_a_submitted_job_is_returned_as_it_is_found(
    queue: JobQueue, options: dict[str, object]
) -> None:
    request = make_request(**options)
    assert queue.submit(OWNER, "1", request) == queue.find(OWNER, "1")
    assert queue.submit(OWNER, "1", request) == queue.find(OWNER, "1")
    queue.cancel(OWNER, "1")
    assert queue.submit(OWNER, "1", request) == queue.find(OWNER, "1")
    assert queue.find(OWNER, "1").state == "cancelled"


def test_the_first_request_under_an_id_counts(queue: JobQueue) -> None:
    requests = [make_request(prompt="rain"), make_request(prompt="snow")]
    for request in requests:
        queue.submit(OWNER, "1", request)
    assert queue.find(OWNER, "1").digest == requests[0].digest
    assert len(queue.list_jobs(OWNER, limit=10)) == 1


def test_jobs_are_listed_by_state_in_pages_the_newest_first(queue: JobQueue) -> None:
    for job_id in "123":
        queue.submit(OWNER, job_id, make_request())
    queue.cancel(OWNER, "2")

    def ids(**options: object) -> list[str]:
        return [job.id for job in queue.list_jobs(OWNER, **{"limit": 10, **options})]  # type: ignore[arg-type]

    assert sorted(ids()) == ["1", "2", "3"]
    assert ids(state="cancelled") == ["2"]
    assert sorted(ids(state="queued")) == ["1", "3"]
    assert ids(limit=2) + ids(limit=2, offset=2) == ids()
    created = [job.created_ms for job in queue.list_jobs(OWNER, limit=10)]
    assert created == sorted(created, reverse=True)


def list_in_order(queue: JobQueue) -> str:
    """Return the ids of the jobs that wait, as they will be started."""
    waiting = [job for owner in "ab" for job in queue.list_jobs(owner, "queued", limit=100)]
    return "".join(job.id for job in sorted(waiting, key=queue.count_ahead))


def test_callers_take_turns_however_many_jobs_of_one_wait(queue: JobQueue) -> None:
    for job_id in "1234":
        queue.submit("a", job_id, make_request())
    for job_id in "56":
        queue.submit("b", job_id, make_request())
    assert list_in_order(queue) == "152634"
    for job_id in "125":  # as if they were begun
        queue.cancel("b" if job_id == "5" else "a", job_id)
    queue.submit("b", "7", make_request())
    queue.submit("b", "8", make_request(priority="interactive"))
    queue.submit("a", "9", make_request(priority="interactive"))
    assert list_in_order(queue) == "896374"


def test_turns_are_those_of_addresses_where_there_are_no_keys(queue: JobQueue) -> None:
    for job_id, address in (("1", "a"), ("2", "a"), ("3", "b")):
        queue.submit("", job_id, make_request(), caller=address)
    waiting = sorted(queue.list_jobs("", limit=9), key=queue.count_ahead)
    assert "".join(job.id for job in waiting) == "132"


def test_one_caller_leaves_room_for_others(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path / "jobs.sqlite", max_waiting=5, key_share=0.5)
    for job_id in "12":
        queue.check_room("a")
        queue.submit("a", job_id, make_request())
    with pytest.raises(BusyError, match="2 jobs of this caller wait, its share"):
        queue.check_room("a")
    queue.check_room("b")
    queue.cancel("a", "1")
    queue.check_room("a")
    queue.close()


def test_the_place_in_the_queue_counts_interactive_jobs_first(queue: JobQueue) -> None:
    queue.submit(OWNER, "bulk", make_request())
    queue.submit("", "interactive", make_request(priority="interactive"))
    assert queue.count_ahead(queue.find("", "interactive")) == 0
    assert queue.count_ahead(queue.find(OWNER, "bulk")) == 1


def test_a_full_queue_refuses_and_says_when_to_ask_again(queue: JobQueue) -> None:
    for job_id in "123":
        queue.check_room(OWNER)
        queue.submit(OWNER, job_id, make_request())
    with pytest.raises(BusyError, match="3 jobs wait, the limit") as caught:
        queue.check_room(OWNER)
    assert caught.value.retry_after_seconds
    queue.cancel(OWNER, "1")
    queue.check_room(OWNER)


def test_only_a_job_that_has_ended_is_deleted(queue: JobQueue) -> None:
    queue.submit(OWNER, "1", make_request())
    with pytest.raises(ConflictError, match="the job is queued; cancel it first"):
        queue.delete(OWNER, "1")
    job = queue.cancel(OWNER, "1")
    assert job.state == "cancelled"
    assert job.finished_ms is not None
    assert queue.cancel(OWNER, "1") == job
    queue.delete(OWNER, "1")
    with pytest.raises(NotFoundError):
        queue.find(OWNER, "1")


def test_jobs_that_ended_before_a_time_are_forgotten(queue: JobQueue) -> None:
    for job_id in "12":
        queue.submit(OWNER, job_id, make_request())
    queue.cancel(OWNER, "1")
    now = datetime.now(UTC)
    assert queue.forget_finished(now - timedelta(hours=1)) == []
    assert queue.forget_finished(now + timedelta(hours=1)) == ["1"]
    assert queue.list_ids() == ["2"]


def test_progress_is_told_while_the_job_has_not_ended(queue: JobQueue) -> None:
    queue.submit(OWNER, "1", make_request())
    queue.set_progress({"1": {"stage": "sample", "step": 3}})
    assert queue.find(OWNER, "1").progress == {"stage": "sample", "step": 3}
    assert queue.cancel(OWNER, "1").progress == {}


def test_the_progress_of_all_jobs_is_written_in_one_transaction(queue: JobQueue) -> None:
    notes = ProgressNotes()
    for job_id in "123":
        queue.submit(OWNER, job_id, make_request())
        notes.put(job_id, {"step": 1})
        notes.put(job_id, {"step": 2})
    notes.forget("3")  # it has ended
    commits: list[object] = []
    sa.event.listen(queue.engine, "commit", commits.append)
    notes.write(queue)
    notes.write(queue)
    assert len(commits) == 1
    assert [queue.find(OWNER, job_id).progress for job_id in "123"] == [{"step": 2}] * 2 + [{}]


def test_progress_is_written_later_where_the_database_was_away(queue: JobQueue) -> None:
    notes = ProgressNotes()
    queue.submit(OWNER, "1", make_request())
    notes.put("1", {"step": 1})
    with queue.engine.connect() as connection:
        connection.exec_driver_sql("ALTER TABLE workflow_status RENAME TO away")
        with pytest.raises(SQLAlchemyError):
            notes.write(queue)
        connection.exec_driver_sql("ALTER TABLE away RENAME TO workflow_status")
    notes.write(queue)
    assert queue.find(OWNER, "1").progress == {"step": 1}


def test_work_is_ended_from_another_thread(tmp_path: Path) -> None:
    at_work = AtWork()

    async def work() -> str:
        await asyncio.sleep(60)
        return "never"

    async def run() -> None:
        running = asyncio.create_task(at_work.run("1", work()))
        while at_work.list_ids() != {"1"}:
            await asyncio.sleep(0)
        await asyncio.to_thread(at_work.cancel, ["1", "unknown"])
        with pytest.raises(CancelledRequestError):
            await running
        assert at_work.list_ids() == set()

    asyncio.run(run())


def write_queue(path: Path) -> None:
    queue = JobQueue(path, max_waiting=300)
    for number in range(100):
        queue.submit(OWNER, str(number), make_request(prompt="rain" * 20))
    queue.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def write_other(path: Path, table: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"CREATE TABLE {table} (a)")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:50]), "malformed|not a database"),
        (lambda path: path.write_bytes(path.read_bytes()[:8192]), "malformed"),
        (lambda path: os.truncate(path, path.stat().st_size // 2), "malformed"),
        (lambda path: path.write_bytes(bytes(range(256)) * 40), "not a database"),
        (lambda path: (path.unlink(), path.mkdir()), "it is a folder"),
        (lambda path: (path.unlink(), write_other(path, "cookies")), "it has a table 'cookies'"),
        (lambda path: (path.unlink(), write_other(path, "workflow_status")), "none of a queue"),
    ],
)
def test_a_file_that_is_no_queue_is_named_and_left_as_it_is(
    tmp_path: Path, damage: Callable[[Path], object], reason: str
) -> None:
    path = tmp_path / "jobs.sqlite"
    write_queue(path)
    damage(path)
    before = path.is_file() and path.read_bytes()
    with pytest.raises(ConfigError, match=f"jobs.sqlite is no queue of jobs .*({reason}).*move it"):
        JobQueue(path, max_waiting=3)
    assert (path.is_file() and path.read_bytes()) == before


def test_a_queue_that_cannot_be_opened_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "none" / "jobs.sqlite"
    with pytest.raises(ConfigError, match=r"cannot be used .*unable to open") as missing:
        JobQueue(path, max_waiting=3)
    path = tmp_path / "jobs.sqlite"
    write_queue(path)
    connect = sqlite3.connect
    # As on a disk that is mounted for reading alone.
    monkeypatch.setattr(sqlite3, "connect", lambda path: connect(f"file:{path}?mode=ro", uri=True))
    with closing(connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    with pytest.raises(ConfigError, match=r"cannot be used .*readonly") as unwritable:
        JobQueue(path, max_waiting=3)
    for refusal in (missing, unwritable):
        assert "folder must be readable and writable" in str(refusal.value)
        assert "empty queue" not in str(refusal.value)


def test_the_database_is_for_its_user_alone(queue: JobQueue, tmp_path: Path) -> None:
    for path in tmp_path.glob("jobs.sqlite*"):
        assert path.stat().st_mode & 0o077 == 0, path


def submit_with_start(queue: JobQueue, job_id: str, seconds: float) -> datetime:
    start_by = datetime.now(UTC) + timedelta(seconds=seconds)
    queue.starts.add(job_id, start_by)
    queue.submit(OWNER, job_id, make_request(start_by=start_by))
    return start_by


def test_a_job_that_was_not_begun_in_time_fails_with_its_code(queue: JobQueue) -> None:
    start_by = submit_with_start(queue, "late", -1)
    submit_with_start(queue, "early", 3600)
    queue.starts.end_late()
    late = queue.find(OWNER, "late")
    assert late.state == "failed"
    assert late.error is not None
    code, message = late.error
    assert code == "not_started"
    assert start_by.isoformat(timespec="seconds") in message
    assert late.finished_ms is not None
    assert late.start_by is not None
    assert datetime.fromisoformat(late.start_by) == start_by
    assert queue.find(OWNER, "early").state == "queued"
    assert [job.id for job in queue.list_jobs(OWNER, "failed", limit=10)] == ["late"]


def test_a_job_that_was_begun_in_time_may_be_begun_again_at_any_time(queue: JobQueue) -> None:
    submit_with_start(queue, "1", 3600)
    queue.starts.begin("1")
    queue.starts.add("2", datetime.now(UTC) - timedelta(seconds=1))
    for _ in range(2):
        with pytest.raises(NotStartedError):
            queue.starts.begin("2")
    queue.starts.begin("1")
    queue.starts.end_late()
    assert queue.find(OWNER, "1").state == "queued"


def test_a_cancelled_job_is_not_ended_again(queue: JobQueue) -> None:
    submit_with_start(queue, "1", -1)
    cancelled = queue.cancel(OWNER, "1")
    queue.starts.end_late()
    assert queue.find(OWNER, "1") == cancelled


def test_a_full_database_is_a_full_disk(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "full.sqlite")) as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.execute("PRAGMA max_page_count = 2")
        with pytest.raises(sqlite3.OperationalError) as caught:
            connection.execute("INSERT INTO t VALUES (zeroblob(100000))")
    wrapped = sa.exc.OperationalError("INSERT", {}, caught.value)
    for error in (caught.value, wrapped):
        public = public_error(error)
        assert (public.code, public.status.http) == ("storage_full", 503)
        assert public.retry_after_seconds
    other = sqlite3.OperationalError("database is locked")
    assert public_error(other).code == "internal"


def test_unfinished_jobs_are_counted_by_state(queue: JobQueue) -> None:
    assert queue.count_unfinished() == {"queued": 0, "running": 0}
    for job_id in "123":
        queue.submit(OWNER, job_id, make_request())
    queue.cancel(OWNER, "2")
    with queue.engine.begin() as connection:
        run = "UPDATE workflow_status SET status = 'PENDING' WHERE workflow_uuid = '3'"
        connection.execute(sa.text(run))
    assert queue.count_unfinished() == {"queued": 1, "running": 1}

"""What calls about jobs cost while 10,000 of them wait: processor time, beside that with one."""

import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from runners.durable.database import is_shared
from runners.durable.queue import JobQueue
from runners.durable.request import JobOptions, JobRequest
from tests.postgres import serve_postgres

OWNER = "a" * 64
NUM_WAITING = 10_000
NUM_CALLS = 30
REQUEST = JobRequest.settle(JobOptions(prompt="rain", duration_seconds=1.0), None)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.soak)])
def queue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[JobQueue]:
    if request.param == "sqlite":
        queue = JobQueue(tmp_path / "jobs.sqlite", max_waiting=NUM_WAITING)
        yield queue
        queue.close()
        return
    with serve_postgres() as server:
        queue = JobQueue(server.url, max_waiting=NUM_WAITING)
        yield queue
        queue.close()


def fill(queue: JobQueue) -> str:
    """Have many jobs wait, which are copies of the first; returns the id of the last."""
    series = "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers "
    series += f"WHERE n < {NUM_WAITING - 1})"
    new_id = "'job-' || n"
    with queue.engine.begin() as connection:
        for table in ("workflow_status", "workflow_input"):
            if not sa.inspect(connection).has_table(table):
                continue
            columns = [column["name"] for column in sa.inspect(connection).get_columns(table)]
            changed = {"workflow_uuid": new_id, "created_at": "created_at + n"}
            values = ", ".join(changed.get(name, name) for name in columns)
            connection.execute(
                sa.text(
                    f"INSERT INTO {table} ({', '.join(columns)}) {series} SELECT {values} "
                    f"FROM numbers, {table} WHERE workflow_uuid = 'first'"
                )
            )
        if is_shared(queue.engine):  # as the database does by itself within a minute
            connection.execute(sa.text("ANALYZE"))
    return f"job-{NUM_WAITING - 1}"


def measure(call: Callable[[], object]) -> float:
    """Return the median of what a call takes of a processor, in milliseconds. SQLite runs in it."""
    taken = []
    for _ in range(NUM_CALLS):
        started = time.thread_time()
        call()
        taken.append(1000 * (time.thread_time() - started))
    return statistics.median(taken)


def test_a_long_queue_makes_no_call_slow_and_takes_no_memory(queue: JobQueue) -> None:
    queue.submit(OWNER, "first", REQUEST)
    measure(lambda: queue.find(OWNER, "first"))
    unit = measure(lambda: queue.find(OWNER, "first"))
    last_id = fill(queue)
    last = queue.find(OWNER, last_id)
    assert queue.count_ahead(last) == NUM_WAITING - 1
    assert len(queue.list_jobs(OWNER, "queued", limit=21)) == 21

    def submit() -> None:
        queue.submit(OWNER, uuid.uuid4().hex, REQUEST)

    # A call that read all jobs would take some hundred times the unit.
    calls: dict[str, tuple[Callable[[], object], float]] = {
        "submit": (submit, 10),
        "find": (lambda: queue.find(OWNER, last_id), 5),
        "place": (lambda: queue.count_ahead(last), 30),
        "list": (lambda: queue.list_jobs(OWNER, limit=21), 30),
        "list of a state": (lambda: queue.list_jobs(OWNER, "queued", limit=21), 30),
        "list of none": (lambda: queue.list_jobs(OWNER, "succeeded", limit=21), 30),
        "last page": (lambda: queue.list_jobs(OWNER, limit=21, offset=NUM_WAITING - 50), 30),
    }
    measure(submit)
    before = psutil.Process().memory_info().rss
    taken = {name: measure(call) for name, (call, _) in calls.items()}
    grown = psutil.Process().memory_info().rss - before
    print(f"{unit:.2f} ms", {name: f"{ms:.1f} ms" for name, ms in taken.items()})
    for name, (_, most) in calls.items():
        assert taken[name] < most * unit, (unit, taken)
    assert grown < 10_000_000

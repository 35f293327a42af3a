"""One queue on PostgreSQL and one bucket, for several machines."""

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from foley.errors import ConfigError, ConflictError, NotFoundError, NotReadyError
from foley.storage import open_storage
from runners.durable import liveness
from runners.durable.executor_settings import ExecutorSettings
from runners.durable.job import Job
from runners.durable.liveness import Liveness
from runners.durable.receivers import WebhookSettings
from runners.durable.request import JobOptions, JobRequest
from runners.durable.service import JobService
from runners.settings import Settings
from runners.status import public_error
from tests.durable import versions
from tests.durable.api import serve_api
from tests.durable.executors import run_executor
from tests.patience import is_within, wait_for_exit, wait_until
from tests.postgres import Postgres, serve_postgres
from tests.s3 import serve_bucket

OWNER = "a" * 64


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with serve_bucket() as address:
        yield address


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with serve_postgres() as server:
        yield server


@pytest.fixture
def service(tmp_path: Path, postgres: Postgres, bucket: str) -> Iterator[JobService]:
    service = open_service(tmp_path / "one", postgres, bucket)
    yield service
    for job_id in service.queue.list_ids():
        service.queue.cancel(OWNER, job_id)
        service.delete(OWNER, job_id)
    service.close()


def open_service(folder: Path, postgres: Postgres, bucket: str) -> JobService:
    return JobService(
        Settings(jobs_dir=folder, database_url=postgres.url, results=f"{bucket}/jobs")  # type: ignore[arg-type]
    )


def tell(folder: Path, postgres: Postgres, bucket: str) -> ExecutorSettings:
    return ExecutorSettings(
        folder=folder,
        keep_seconds=3600,
        webhooks=WebhookSettings(),
        database_url=postgres.url,
        results=f"{bucket}/jobs",
    )


def accept(service: JobService, key: str | None = None, clip: bytes = b"", **options: Any) -> Job:
    with service.files.receive() as folder:
        options = {"prompt": "rain", **({} if clip else {"duration_seconds": 1}), **options}
        if clip:
            (folder / "clip").write_bytes(clip)
        request = JobRequest.settle(
            JobOptions.model_validate(options), folder / "clip" if clip else None
        )
        return service.accept(OWNER, folder, request, upload=None, idempotency_key=key, root="")


def list_files(bucket: str, job: Job) -> list[str]:
    return [name.split("/")[0] for name in open_storage(f"{bucket}/jobs/{job.id}").list_sizes()]


def test_two_machines_have_the_same_jobs(
    service: JobService, tmp_path: Path, postgres: Postgres, bucket: str
) -> None:
    other = open_service(tmp_path / "two", postgres, bucket)
    try:
        job = accept(service, "key", clip=b"clip")
        assert accept(other, "key", clip=b"clip").id == job.id
        with pytest.raises(ConflictError):
            accept(other, "key", clip=b"other")
        later = accept(other)
        assert [other.queue.count_ahead(each) for each in (job, later)] == [0, 1]
        assert {each.id for each in service.queue.list_jobs(OWNER, limit=9)} == {job.id, later.id}
        other.queue.cancel(OWNER, job.id)
        assert service.find(OWNER, job.id).state == "cancelled"
        service.delete(OWNER, job.id)
        assert list_files(bucket, job) == []
        with pytest.raises(NotFoundError):
            other.find(OWNER, job.id)
        start_by = datetime.now(UTC) + timedelta(seconds=60)
        late = accept(service, start_by=start_by.isoformat())
        with service.queue.engine.begin() as connection:
            connection.execute(sa.text("UPDATE foley_starts SET start_by_ms = 0"))
        other.queue.starts.end_late()
        assert service.find(OWNER, late.id).state == "failed"
    finally:
        other.close()


def test_a_clip_of_another_request_under_the_same_key_is_not_used(
    service: JobService, bucket: str
) -> None:
    job = accept(service, "key", clip=b"clip")
    service.queue._client.delete_workflow(job.id)  # as if it had been killed before it queued
    with pytest.raises(ConflictError):
        accept(service, "key", clip=b"other")
    assert accept(service, "key", clip=b"clip").id == job.id
    request = JobRequest.model_validate_json(
        open_storage(f"{bucket}/jobs/{job.id}").read("request.json")
    )
    with service.files.open_inputs(job.id, request) as folder:
        assert (folder / "clip").read_bytes() == b"clip"


@pytest.mark.parametrize("clock_change", [-3600, 0, 3600])
def test_an_executor_that_was_silent_is_dead_for_good(
    service: JobService, monkeypatch: pytest.MonkeyPatch, clock_change: int
) -> None:
    """The clock of the database is set meanwhile: what it has said is as much in the future."""
    monkeypatch.setattr(liveness, "DEAD_SECONDS", 0.2)
    ids = [f"{name}{clock_change}" for name in ("first", "second")]
    first, second = (Liveness(service.queue.engine, executor_id) for executor_id in ids)
    first.begin()
    second.begin()
    job = accept(service)
    run = sa.text(f"UPDATE workflow_status SET status = 'PENDING', executor_id = '{ids[0]}'")
    with service.queue.engine.begin() as connection:
        connection.execute(run)
    assert first.beat()
    assert second.find_abandoned() == []
    assert not second.is_first
    set_clock(service, clock_change)
    assert second.find_abandoned() == []
    time.sleep(0.3)
    second.forget_others()  # as after a silence of its own
    assert second.find_abandoned() == []
    time.sleep(0.3)
    assert second.find_abandoned() == ids[:1]
    assert second.find_abandoned() == ids[:1]  # until somebody has recovered its jobs
    assert second.is_first
    assert not first.beat()
    assert second.beat()
    assert service.find(OWNER, job.id).state == "running"


def set_clock(service: JobService, seconds: float) -> None:
    change = sa.text("UPDATE foley_executors SET seen_at = seen_at - :seconds")
    with service.queue.engine.begin() as connection:
        connection.execute(change, {"seconds": seconds})


@pytest.mark.soak
def test_a_frozen_executor_loses_its_jobs_and_publishes_nothing(
    service: JobService, tmp_path: Path, postgres: Postgres, bucket: str
) -> None:
    with ExitStack() as running:
        slow = running.enter_context(serve_api(held=True))
        quick = running.enter_context(serve_api())
        frozen = running.enter_context(
            run_executor(tell(tmp_path / "frozen", postgres, bucket), slow.url)
        )
        frozen.wait_for("jobs_ready")
        job = accept(service, clip=b"clip", seed=7)
        wait_until(lambda: slow.seeds["7"] == 1, 60, what=frozen.log.read_text)
        other = running.enter_context(
            run_executor(tell(tmp_path / "other", postgres, bucket), quick.url)
        )
        other.wait_for("jobs_ready")
        frozen.process.send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        slow.released.set()  # its answer waits for it
        wait_until(
            lambda: service.find(OWNER, job.id).state == "succeeded", 60, what=other.log.read_text
        )
        moved_seconds = time.monotonic() - stopped
        print(f"moved on after {moved_seconds:.1f} s")
        assert is_within(moved_seconds, 10)
        done = service.find(OWNER, job.id)
        frozen.process.send_signal(signal.SIGCONT)
        assert wait_for_exit(frozen.process, 30) == 1
        other.wait_for("job_succeeded")
        assert service.find(OWNER, job.id) == done
        assert (done.num_starts, quick.seeds["7"]) == (2, 1)
        assert done.result is not None
        assert service.files.find_file(job.id, "foley-1.wav", done.result).read_text() == "7"
        wait_until(lambda: list_files(bucket, job) == ["request.json", "tries"])


@pytest.mark.soak
def test_the_jobs_of_the_first_version_are_finished(
    tmp_path: Path, postgres: Postgres, bucket: str
) -> None:
    results = f"{bucket}/first"
    url = versions.restore_shared(postgres, results)
    settings = Settings(jobs_dir=tmp_path / "one", database_url=url, results=results)  # type: ignore[arg-type]
    service = JobService(settings)
    try:
        found = {job.id: job.state for job in service.queue.list_jobs("", limit=9)}
        assert found == {versions.WAITING: "queued", versions.RUNNING: "running"}
        told = tell(tmp_path / "executor", postgres, bucket)
        told = told.model_copy(update={"database_url": url, "results": results})
        with serve_api() as api, run_executor(told, api.url) as executor:
            wait_until(
                lambda: len(service.queue.list_jobs("", "succeeded", limit=9)) == len(found),
                60,
                what=executor.log.read_text,
            )
        assert api.seeds == {"7": 2}
        for job_id in found:
            job = service.find("", job_id)
            assert service.find_file(job, "foley-1.wav").read_text() == "7"
    finally:
        service.close()


def test_a_service_says_that_its_database_is_away_and_goes_on(
    service: JobService, postgres: Postgres
) -> None:
    job = accept(service)
    postgres.stop()
    try:
        for ask in (
            lambda: service.find(OWNER, job.id),
            lambda: accept(service),
            lambda: service.queue.list_jobs(OWNER, limit=1),
            lambda: service.queue.webhooks.find([job.id]),
        ):
            with pytest.raises(Exception) as caught:  # noqa: PT011 - of SQLAlchemy
                ask()
            public = public_error(caught.value)
            assert (public.code, public.status.http) == ("not_ready", 503), caught.value
            assert public.retry_after_seconds
        with pytest.raises(ConfigError, match="FOLEY_DATABASE_URL") as refused:
            open_service(service.files.folder, postgres, "s3://bucket")
        assert "secret" not in str(refused.value)
    finally:
        postgres.start()
    assert service.find(OWNER, job.id) == job


def test_a_bucket_that_refuses_is_a_service_that_is_not_ready(
    service: JobService, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = accept(service)
    no_bucket = open_service_files(service, "s3://there-is-none/jobs")
    monkeypatch.setattr(service, "files", no_bucket)
    with pytest.raises(NotReadyError, match="the bucket of the job"):
        accept(service)
    monkeypatch.undo()
    assert [each.id for each in service.queue.list_jobs(OWNER, limit=9)] == [job.id]


def open_service_files(service: JobService, address: str) -> Any:
    return ExecutorSettings(
        folder=service.files.folder,
        keep_seconds=1,
        webhooks=WebhookSettings(),
        database_url="postgresql://x/x",
        results=address,
    ).open_files()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"database_url": "postgresql://host/foley"}, "belong together"),
        ({"results": "s3://bucket"}, "belong together"),
        ({"database_url": "postgresql://h/foley", "results": "s3://bucket"}, "FOLEY_JOBS_DIR"),
        ({"database_url": "mysql://h/f", "results": "s3://bucket", "jobs_dir": "/x"}, "write post"),
    ],
)
def test_a_shared_queue_needs_all_of_its_settings(settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings(**settings).jobs_database  # noqa: B018

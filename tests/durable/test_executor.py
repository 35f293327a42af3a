"""A real executor on SQLite, whose API is without a model."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from foley.errors import NotFoundError
from runners.durable.executor_settings import ExecutorSettings
from runners.durable.job import Job
from runners.durable.launcher import ExecutorLauncher
from runners.durable.receivers import WebhookSettings
from runners.durable.request import JobOptions, JobRequest
from runners.durable.service import JobService
from runners.settings import Settings
from tests.durable.api import serve_api
from tests.durable.executors import run_executor
from tests.patience import is_within, wait_until


@pytest.fixture
def service(tmp_path: Path) -> Iterator[JobService]:
    service = open_service(tmp_path)
    yield service
    service.close()


def open_service(folder: Path) -> JobService:
    return JobService(Settings(jobs_dir=folder, output_buckets="s3://away"))


def settings(folder: Path, keep_seconds: float = 600) -> ExecutorSettings:
    return ExecutorSettings(folder=folder, keep_seconds=keep_seconds, webhooks=WebhookSettings())


def submit(service: JobService, seed: int, key: str | None = None, **options: object) -> Job:
    given = {"prompt": "rain", "duration_seconds": 1, "seed": seed, **options}
    request = JobRequest.settle(JobOptions.model_validate(given), None)
    with service.files.receive() as folder:
        return service.accept("", folder, request, upload=None, idempotency_key=key, root="")


def cancel(service: JobService, job: Job) -> float:
    """Cancel a job, and return when."""
    started = time.monotonic()
    assert service.queue.cancel("", job.id).state == "cancelled"
    assert is_within(time.monotonic() - started, 1)
    return started


@pytest.mark.long
def test_a_cancelled_job_ends_within_a_second_in_each_state(
    service: JobService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
    }.items():
        monkeypatch.setenv(name, value)
    with serve_api(held=True) as api, run_executor(settings(tmp_path), api.url, num_running=1):
        running, waiting, storing, last = (
            submit(service, 1),
            submit(service, 2),
            submit(service, 3, output="s3://away/out"),
            submit(service, 4),
        )
        wait_until(lambda: api.seeds["1"], 60, what="no job began")
        cancel(service, waiting)
        ended = cancel(service, running)
        wait_until(lambda: api.seeds["3"], 30, what="the place was not freed")
        # The executor looks for cancelled jobs every second, and for waiting ones every half.
        assert is_within(time.monotonic() - ended, 2)
        api.released.set()
        time.sleep(0.5)  # its sound is made, and its bucket does not answer
        assert service.find("", storing.id).state == "running"
        ended = cancel(service, storing)
        wait_until(lambda: service.find("", last.id).state == "succeeded", 30, what="held up")
        assert is_within(time.monotonic() - ended, 2.5)
        assert service.queue.cancel("", last.id).state == "succeeded"
    assert api.seeds["2"] == 0
    for job in (running, waiting, storing):
        assert service.find("", job.id).state == "cancelled"


@pytest.mark.long
def test_a_job_is_removed_with_its_files_once_its_time_is_over(
    service: JobService, tmp_path: Path
) -> None:
    jobs = tmp_path / "jobs"
    ended = submit(service, 1)
    cancel(service, ended)
    assert len(list(jobs.iterdir())) == 1
    with (
        serve_api(held=True) as api,
        run_executor(settings(tmp_path, keep_seconds=1), api.url, num_running=1),
    ):
        running = submit(service, 2)
        wait_until(lambda: list(jobs.iterdir()) == [jobs / running.id], 60, what="it is kept")
        with pytest.raises(NotFoundError, match="it may have expired"):
            service.find("", ended.id)
        wait_until(lambda: api.seeds["2"], 60, what="no job began")
        time.sleep(1.5)
        assert service.find("", running.id).state == "running"  # its time begins at its end
        api.released.set()
        wait_until(lambda: not list(jobs.iterdir()), 60, what="it is kept")


@pytest.mark.long
def test_two_services_of_one_machine_share_a_folder(service: JobService, tmp_path: Path) -> None:
    """One of them has the executor. The other starts one when that ends."""
    other = open_service(tmp_path)
    launchers = [
        ExecutorLauncher(
            service.files.executor_lock, num_running=1, settings=settings(tmp_path.absolute())
        )
        for service in (service, other)
    ]

    def count_running() -> int:
        return sum(launcher._process is not None for launcher in launchers)

    async def share(url: str) -> None:
        for launcher in launchers:
            launcher._start_if_missing(url)
        assert count_running() == 1
        jobs = [submit(service, 1, "key"), submit(other, 2)]
        assert submit(other, 1, "key").id == jobs[0].id
        await wait_for(jobs)
        launchers[0].close()
        wait_until(lambda: launchers[1]._start_if_missing(url), what="the lock is still held")
        await wait_for([submit(service, 3)])

    async def wait_for(jobs: list[Job]) -> None:
        for job in jobs:
            await asyncio.to_thread(
                wait_until,
                lambda job=job: other.find("", job.id).state == "succeeded",
                60,
                what="it never ended",
            )

    try:
        with serve_api() as api:
            asyncio.run(share(api.url))
        assert dict(api.seeds) == {"1": 1, "2": 1, "3": 1}
    finally:
        for launcher in launchers:
            launcher.close()
        other.close()

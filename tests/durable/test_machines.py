"""Long tests of executors that share a queue: machines that die, freeze and are cut off.

The executors, the networks and PostgreSQL are real. Their API is one of the tests, without a model,
since three models would take all of a small machine.
"""

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from foley.errors import NotReadyError, StorageFullError
from runners.durable.executor_settings import ExecutorSettings
from runners.durable.job import Job
from runners.durable.receivers import WebhookSettings
from runners.durable.request import JobOptions, JobRequest
from runners.durable.service import JobService
from runners.settings import Settings
from runners.status import public_error
from tests.durable.api import Api, serve_api
from tests.durable.executors import Executor, run_executor
from tests.durable.receiver import SECRET, Receiver, receive_webhooks
from tests.networks import HOST, Machine, make_machines
from tests.patience import Deadline, wait_until
from tests.postgres import Postgres, serve_postgres
from tests.s3 import serve_bucket

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]
OWNER = "a" * 64
NUM_JOBS = int(os.environ.get("SOAK_JOBS", "100"))
WEBHOOKS = WebhookSettings(secrets=(SECRET,), networks=("10.213.77.0/24", "127.0.0.0/8"))


class Fleet:
    """The executors of machines, any of which may be ended and started again.

    Args:
        folder: of their files.
        settings: of each but for its folder.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._folder = folder
        self._settings = settings
        self._running: dict[str, tuple[ExitStack, Executor]] = {}

    def start(self, machine: Machine, api: Api) -> None:
        """Start the executor of a machine."""
        settings = ExecutorSettings(folder=self._folder / machine.name, **self._settings)
        stack = ExitStack()
        executor = stack.enter_context(run_executor(settings, api.url, prefix=machine.prefix))
        self._running[machine.name] = (stack, executor)

    def find(self, machine: Machine) -> Executor:
        return self._running[machine.name][1]

    def kill(self, machine: Machine) -> None:
        self._running.pop(machine.name)[0].close()

    def close(self) -> None:
        for stack, _ in self._running.values():
            stack.close()


@contextmanager
def open_queue(folder: Path, postgres: Postgres, bucket: str) -> Iterator[JobService]:
    service = JobService(
        Settings(
            jobs_dir=folder,
            database_url=postgres.url,  # type: ignore[arg-type]
            results=f"{bucket}/jobs",
            webhook_secret=SECRET,  # type: ignore[arg-type]
            webhook_networks=",".join(WEBHOOKS.networks),
        )
    )
    try:
        yield service
    finally:
        service.close()


def accept(service: JobService, seed: int, receiver: Receiver) -> Job:
    with service.files.receive() as folder:
        (folder / "clip").write_bytes(b"clip")
        options = JobOptions(seed=seed, webhook_url=receiver.url)
        request = JobRequest.settle(options, folder / "clip")
        return service.accept(
            OWNER, folder, request, upload=None, idempotency_key=f"order-{seed}", root=""
        )


def check_results(service: JobService, jobs: list[Job]) -> list[Job]:
    """Check that each job has a result, which is its own."""
    done = [service.find(OWNER, job.id) for job in jobs]
    for seed, job in enumerate(done):
        assert job.state == "succeeded"
        assert job.result is not None
        assert service.find_file(job, "foley-1.wav").read_text() == str(seed)
    return done


def count_told(receiver: Receiver, jobs: list[Job]) -> int:
    """How many jobs the receiver was told of, each under one id."""
    told = {headers["webhook-id"] for headers, _ in receiver.taken}
    assert told <= {f"msg_{job.id}" for job in jobs}
    return len(told)


def test_three_machines_of_which_one_is_cut_off_one_frozen_and_all_are_killed(
    tmp_path: Path,
) -> None:
    chooser = random.Random(0)
    done_to: Counter[str] = Counter()
    with ExitStack() as held:
        machines = held.enter_context(make_machines(3))
        bucket = held.enter_context(serve_bucket(HOST))
        postgres = held.enter_context(serve_postgres(HOST))
        receiver = held.enter_context(receive_webhooks(HOST))
        service = held.enter_context(open_queue(tmp_path / "here", postgres, bucket))
        fleet = Fleet(
            tmp_path,
            {
                "keep_seconds": 3600,
                "webhooks": WEBHOOKS,
                "database_url": postgres.url,
                "results": f"{bucket}/jobs",
            },
        )
        held.callback(fleet.close)
        apis = {}
        for machine in machines:
            with machine.enter():
                apis[machine.name] = held.enter_context(serve_api())
            apis[machine.name].delay_seconds = 3.0
            fleet.start(machine, apis[machine.name])
        jobs = [accept(service, seed, receiver) for seed in range(NUM_JOBS)]
        started = time.monotonic()
        deadline = Deadline(900)
        while count_told(receiver, jobs) < len(jobs):
            assert not deadline.is_over(), service.queue.list_jobs(OWNER, limit=5)
            time.sleep(chooser.uniform(2, 5))
            if len(service.queue.list_jobs(OWNER, "succeeded", limit=1000)) == len(jobs):
                continue  # webhooks are left
            num_events = done_to["killed"] + done_to["frozen"] + done_to["cut off"]
            victim = machines[(num_events + num_events // 3) % len(machines)]
            what = ("killed", "frozen", "cut off")[num_events % 3]
            done_to[what] += 1
            if what == "killed":
                fleet.kill(victim)
            elif what == "frozen":
                fleet.find(victim).process.send_signal(signal.SIGSTOP)
                time.sleep(8)
                fleet.find(victim).process.send_signal(signal.SIGCONT)
            else:
                victim.cut_off()
                time.sleep(8)
                victim.plug_in()
            for machine in machines:  # as a service does for its executor
                if machine is not victim or what != "killed":
                    if fleet.find(machine).process.poll() is None:
                        continue
                    done_to["lost its jobs"] += 1  # and has ended itself
                    fleet.kill(machine)
                fleet.start(machine, apis[machine.name])
        seconds = time.monotonic() - started
        # What a try that was cut off has left is removed when its job succeeds, or expires.
        done = check_results(service, jobs)
        asked = sum(sum(api.seeds.values()) for api in apis.values())
        ids = [headers["webhook-id"] for headers, _ in receiver.got]
        print(
            f"{len(jobs)} jobs in {seconds:.0f} s; {dict(done_to)}; {asked} sounds were made; "
            f"{sum(job.num_starts > 1 for job in done)} jobs were started again; "
            f"{len(ids)} webhooks came, {len(ids) - len(set(ids))} of them again"
        )


def wait_until_told(
    receiver: Receiver,
    jobs: list[Job],
    started: ExitStack,
    settings: ExecutorSettings,
    executor: Executor,
    api: Api,
) -> int:
    """Wait until all jobs have ended, and start an executor after one that has ended, as a service.

    Returns:
        How many have ended themselves, because they had dropped a job.
    """
    num_ended = 0
    deadline = Deadline(300)
    while count_told(receiver, jobs) < len(jobs):
        assert not deadline.is_over(), executor.log.read_text()
        time.sleep(0.5)
        if executor.process.poll() is not None:
            num_ended += 1
            executor = started.enter_context(run_executor(settings, api.url))
    return num_ended


def test_a_database_that_is_away_for_half_a_minute_loses_nothing(tmp_path: Path) -> None:
    with ExitStack() as held:
        # The library of the tests keeps its buckets for as long as this process lives.
        bucket = f"{held.enter_context(serve_bucket())}/away"
        postgres = held.enter_context(serve_postgres())
        receiver = held.enter_context(receive_webhooks())
        api = held.enter_context(serve_api())
        api.delay_seconds = 2.0
        service = held.enter_context(open_queue(tmp_path / "here", postgres, bucket))
        settings = ExecutorSettings(
            folder=tmp_path / "executor",
            keep_seconds=3600,
            webhooks=WEBHOOKS,
            database_url=postgres.url,
            results=f"{bucket}/jobs",
        )
        started = held.enter_context(ExitStack())
        executor = started.enter_context(run_executor(settings, api.url))
        executor.wait_for("jobs_ready")
        jobs = [accept(service, seed, receiver) for seed in range(12)]
        wait_until(lambda: service.queue.list_jobs(OWNER, "running", limit=2), 60, what="none runs")
        postgres.stop()
        away = time.monotonic()
        for ask in (lambda: service.find(OWNER, jobs[0].id), lambda: accept(service, 99, receiver)):
            with pytest.raises(Exception) as caught:  # noqa: PT011 - of SQLAlchemy
                ask()
            assert public_error(caught.value).code == NotReadyError.code
        time.sleep(max(0.0, 30 - (time.monotonic() - away)))
        assert executor.process.poll() is None
        postgres.start()
        back = time.monotonic()
        num_ended = wait_until_told(receiver, jobs, started, settings, executor, api)
        check_results(service, jobs)
        print(
            f"away for {back - away:.0f} s with jobs that run; all {len(jobs)} had ended "
            f"{time.monotonic() - back:.0f} s later; {sum(api.seeds.values())} sounds were made, "
            f"and {num_ended} executors ended themselves"
        )


def test_a_receiver_that_fails_for_a_minute_is_told(tmp_path: Path) -> None:
    with ExitStack() as held:
        receiver = held.enter_context(receive_webhooks())
        api = held.enter_context(serve_api())
        service = JobService(
            Settings(
                jobs_dir=tmp_path,
                webhook_secret=SECRET,  # type: ignore[arg-type]
                webhook_networks="127.0.0.0/8",
            )
        )
        held.callback(service.close)
        receiver.statuses = [500] * 1000
        settings = ExecutorSettings(folder=tmp_path, keep_seconds=3600, webhooks=WEBHOOKS)
        executor = held.enter_context(run_executor(settings, api.url))
        jobs = [accept(service, seed, receiver) for seed in range(5)]
        wait_until(lambda: len(receiver.got) >= len(jobs), 90, what=executor.log.read_text)
        first = time.monotonic()
        webhook = wait_until(
            lambda: (
                next(hook for hook in service.queue.webhooks.find([jobs[0].id]).values()).num_tries
                and service.queue.webhooks.find([jobs[0].id])[jobs[0].id]
            ),
            what=executor.log.read_text,
        )
        assert (webhook.state, webhook.last_error) == ("sending", "the receiver answered 500")
        time.sleep(max(0.0, 60 - (time.monotonic() - first)))
        receiver.statuses.clear()
        wait_until(
            lambda: count_told(receiver, jobs) == len(jobs), 180, what=executor.log.read_text
        )
        print(
            f"{len(jobs)} webhooks, {len(receiver.got)} tries; told "
            f"{time.monotonic() - first:.0f} s after the first"
        )


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("this machine mounts nothing")
    with ExitStack() as held:
        held.callback(subprocess.run, ["umount", "-l", str(folder)], check=True)
        receiver = held.enter_context(receive_webhooks())
        api = held.enter_context(serve_api())
        api.delay_seconds = 1.0
        service = JobService(
            Settings(
                jobs_dir=folder,
                webhook_secret=SECRET,  # type: ignore[arg-type]
                webhook_networks="127.0.0.0/8",
            )
        )
        held.callback(service.close)
        settings = ExecutorSettings(folder=folder, keep_seconds=3600, webhooks=WEBHOOKS)
        jobs = [accept(service, seed, receiver) for seed in range(10)]
        fleet = held.enter_context(ExitStack())
        executor = fleet.enter_context(run_executor(settings, api.url))
        wait_until(lambda: service.queue.list_jobs(OWNER, "running", limit=2), 60, what="none runs")
        filler = folder / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        full = time.monotonic()
        (running, *_) = service.queue.list_jobs(OWNER, "running", limit=1)
        assert service.find(OWNER, running.id).progress["code"] == "storage_full"
        with pytest.raises(StorageFullError):
            accept(service, 99, receiver)
        time.sleep(30)
        filler.unlink()
        free = time.monotonic()
        num_ended = wait_until_told(receiver, jobs, fleet, settings, executor, api)
        check_results(service, jobs)
        print(
            f"full for {free - full:.0f} s; all {len(jobs)} jobs had ended "
            f"{time.monotonic() - free:.0f} s later; {num_ended} further executors were started"
        )

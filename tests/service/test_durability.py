"""Jobs survive kill -9 of everything."""

import contextlib
import os
import random
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.durable import versions
from tests.durable.receiver import SECRET, Receiver, receive_webhooks
from tests.patience import SOAK_SECONDS, is_within, scale, wait_for_exit, wait_until
from tests.server import Server
from tests.service.kills import KINDS, KilledService, kill_all

NUM_SOAKED = int(os.environ.get("SOAK_JOBS", "100"))
NUM_IN_HAND = 4  # two of them run
LOOK_SECONDS = 0.2


def options(seed: int) -> dict[str, str]:
    return {"seed": str(seed), "num_inference_steps": "10"}


def submit(
    server: Server, clip: bytes, seed: int, webhook_url: str = "", **further: str
) -> dict[str, Any]:
    response = server.client.post(
        "/v1/jobs",
        files={"clip": clip},
        data={**options(seed), "webhook_url": webhook_url, **further},
        headers={"Idempotency-Key": f"seed-{seed}"},
    )
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    return job


def find_ended(server: Server, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = [server.client.get(job["status_url"]).json() for job in jobs]
    return [job for job in found if job.get("state") not in ("queued", "running", None)]


def wait_for_all(server: Server, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    wait_until(
        lambda: len(find_ended(server, jobs)) == len(jobs),
        90,
        what=lambda: server.client.get("/v1/jobs").text,
    )
    return find_ended(server, jobs)


def has_begun(server: Server, jobs: list[dict[str, Any]]) -> bool:
    """Whether a job runs that this service has begun, or none is left."""
    found = [server.client.get(job["status_url"]).json() for job in jobs]
    return any(
        job["state"] == "running" and "stage" in job.get("progress", {}) for job in found
    ) or all(job["state"] == "succeeded" for job in found)


def start(folder: Path, jobs: Path, *, num_running: int = 1) -> Server:
    """Start a service. Of jobs that run one at a time, sounds depend on no batch."""
    folder.mkdir()
    settings = {
        "FOLEY_JOBS_DIR": str(jobs),
        "FOLEY_MAX_CONCURRENCY": str(2 * num_running),
        "FOLEY_WEBHOOK_SECRET": SECRET,
        "FOLEY_WEBHOOK_NETWORKS": "127.0.0.0/8",
        # Without marks a repeated request gives the same file, and not only the same sound.
        "FOLEY_MARKS": "off",
    }
    return Server(folder, settings)


@pytest.mark.long
def test_jobs_are_finished_after_everything_was_killed(tmp_path: Path, short_clip: bytes) -> None:
    versions.restore(tmp_path / "jobs", short_clip)  # of which the second start finishes some too
    first = start(tmp_path / "first", tmp_path / "jobs")
    try:
        first.wait_until_ready()
        jobs = [submit(first, short_clip, seed) for seed in range(3)]
        wait_until(lambda: find_ended(first, jobs), 60, what="no job ended")
    finally:
        kill_all(first.family())
        wait_for_exit(first.process)
        first.client.close()
    second = start(tmp_path / "second", tmp_path / "jobs")
    try:
        second.wait_until_ready()
        ready = time.monotonic()
        wait_until(lambda: has_begun(second, jobs), what=second.log.read_text)
        assert is_within(time.monotonic() - ready, 5)
        print(f"the next job ran {time.monotonic() - ready:.1f} s after the model was ready")
        ended = wait_for_all(second, jobs)
        assert [job["state"] for job in ended] == ["succeeded"] * len(jobs)
        direct = second.generate(short_clip, **options(2))
        assert second.client.get(ended[2]["result_url"]).content == direct.content
        assert submit(second, short_clip, 0)["id"] == jobs[0]["id"]
        listed = second.client.get("/v1/jobs?state=succeeded").json()["jobs"]
        assert {job["id"] for job in listed} == {
            *(job["id"] for job in jobs),
            *(versions.WAITING, versions.RUNNING),
        }
    finally:
        assert second.stop() == 0, second.log.read_text()
    assert not list(tmp_path.glob("jobs/uploads/*"))


class Feed:
    """Submits jobs to a service whose processes are killed, so that it has always some to do.

    Args:
        service: of them.
        clip: of each.
        webhook_url: of each.

    Attributes:
        jobs: all that were accepted; the seed of each is its place here.
        in_hand: those of them that have not ended, as they were seen last, by their ids.
        ended: no further job is submitted.
        given_up: nor is the end of those in hand waited for.
        num_ended: how many have succeeded.
        num_repeated: how many submissions were repeated, because nobody knew what became of them.
    """

    def __init__(self, service: KilledService, clip: bytes, webhook_url: str) -> None:
        self._service = service
        self._clip = clip
        self._webhook_url = webhook_url
        self.jobs: list[dict[str, Any]] = []
        self.in_hand: dict[str, dict[str, Any]] = {}
        self.ended = threading.Event()
        self.given_up = threading.Event()
        self.num_ended = 0
        self.num_repeated = 0

    def run(self) -> None:
        """Submit and look, until all has ended; an AssertionError tells of a job that failed."""
        while not self.given_up.wait(LOOK_SECONDS) and not (
            self.ended.is_set() and not self.in_hand
        ):
            if (server := self._service.server) is None:
                continue
            with (
                contextlib.suppress(httpx.TransportError),
                httpx.Client(
                    base_url=server.client.base_url, timeout=scale(120), trust_env=False
                ) as client,
            ):
                while len(self.in_hand) < NUM_IN_HAND and self._submit(client):
                    pass
                self._look(client)

    def is_one_running(self) -> bool:
        """Whether one of the jobs in hand is running."""
        return any(job["state"] == "running" for job in [*self.in_hand.values()])

    def _submit(self, client: httpx.Client) -> bool:
        """Submit the next job, until it is accepted; returns whether it was."""
        if self.ended.is_set():
            return False
        seed = len(self.jobs)
        try:
            answer = client.post(
                "/v1/jobs",
                files={"clip": self._clip},
                # Few steps: what is computed is not the subject.
                data={"seed": seed, "num_inference_steps": 6, "webhook_url": self._webhook_url},
                headers={"Idempotency-Key": f"seed-{seed}"},
            )
        except httpx.TransportError:
            self.num_repeated += 1
            raise
        if answer.status_code == 503:
            return False
        assert answer.status_code == 202, answer.text
        job = answer.json()
        self.in_hand[job["id"]] = job
        self.jobs.append(job)
        return True

    def _look(self, client: httpx.Client) -> None:
        for job_id, job in [*self.in_hand.items()]:
            found = client.get(job["status_url"])
            if found.status_code == 503:
                continue
            seen = found.json()
            assert seen.get("state") in ("queued", "running", "succeeded"), found.text
            self.in_hand[job_id] = seen
            if seen["state"] == "succeeded":
                del self.in_hand[job_id]
                self.num_ended += 1


@pytest.mark.parametrize(
    ("num_jobs", "num_kills", "seconds"),
    [
        pytest.param(4, 2, 0, marks=[pytest.mark.soak, pytest.mark.timeout(600)]),
        pytest.param(
            NUM_SOAKED,
            2 * len(KINDS),
            SOAK_SECONDS,
            marks=[pytest.mark.soak, pytest.mark.timeout(1800 + 2 * SOAK_SECONDS)],
        ),
    ],
)
def test_jobs_are_finished_while_processes_are_killed(
    tmp_path_factory: pytest.TempPathFactory,
    short_clip: bytes,
    num_jobs: int,
    num_kills: int,
    seconds: float,
) -> None:
    """One process of the service at a time, of each kind in turn; the launcher is the second.

    It goes on until there were as many jobs, as many kills and as much time as asked.
    """
    folder = tmp_path_factory.mktemp("kills")  # a short name: the page's socket lies below it
    started = time.monotonic()
    service = KilledService(
        lambda number: start(folder / str(number), folder / "jobs", num_running=2),
        has_page=seconds > 0,
    )
    killed = service.killed
    with contextlib.closing(service), receive_webhooks() as receiver, ThreadPoolExecutor(1) as pool:
        receiver.statuses = [500, 200, 200, 200, 200] * 10_000
        feed = Feed(service, short_clip, receiver.url)
        feeding = pool.submit(feed.run)
        pauses = random.Random(0)

        def describe_state() -> object:
            log = (folder / str(killed["launcher"]) / "server.log").read_text()
            return killed, len(feed.jobs), feed.in_hand, log[-4000:]

        try:
            while not feeding.done() and (
                killed.total() < num_kills
                or len(feed.jobs) < num_jobs
                or time.monotonic() - started < seconds
            ):
                service.wait_until_up()
                # Killed before a job has ended, it would get nothing done on a busy machine.
                wait_for_more(feed, feeding, describe_state)
                time.sleep(scale(pauses.uniform(0, 1)))  # in which a job gets far, or ends
                service.kill()
                if killed.total() % 20 == 0:
                    print(f"{time.strftime('%X')}: {feed.num_ended} jobs, {killed}", flush=True)
            feed.ended.set()
            wait_until(feeding.done, 300, what=describe_state)
        finally:
            feed.given_up.set()
        feeding.result()
        server = service.wait_until_up()
        wait_until(lambda: count_told(receiver) >= len(feed.jobs), 300, what=describe_state)
        check_ended(server, folder / "jobs", feed.jobs)
    ids = [headers["webhook-id"] for headers, _ in receiver.got]
    assert set(ids) == {f"msg_{job['id']}" for job in feed.jobs}
    print(
        f"{len(feed.jobs)} jobs in {time.monotonic() - started:.0f} s, {killed.total()} kills: "
        f"{dict(killed)}; {feed.num_repeated} submissions were repeated; "
        f"{len(ids)} webhooks came, {len(ids) - len(set(ids))} of them again"
    )
    assert "launcher" in killed
    assert num_kills < len(KINDS) or killed.keys() >= KINDS


def wait_for_more(feed: Feed, feeding: Future[None], what: object) -> None:
    """Wait until one more job has ended, and another one runs."""
    num_ended = feed.num_ended
    wait_until(
        lambda: feeding.done() or (feed.num_ended > num_ended and feed.is_one_running()),
        300,
        what=what,
    )


def count_told(receiver: Receiver) -> int:
    """How many jobs the receiver was told of, those apart whose webhook it has refused."""
    return len({headers["webhook-id"] for headers, _ in receiver.taken})


def check_ended(server: Server, folder: Path, jobs: list[dict[str, Any]]) -> None:
    """Check that there are these jobs and no others, each with one result, its own."""
    for seed, job in enumerate(jobs):
        found = server.client.get(job["status_url"]).json()
        assert (found["state"], found["result"]["seeds"]) == ("succeeded", [seed]), found
        assert server.client.get(job["result_url"]).status_code == 200
        # Nothing of the tries that were cut off.
        left = sorted(path.name for path in (folder / "jobs" / job["id"]).iterdir())
        assert left == ["request.json", "results"]
    listed: list[str] = []
    page: dict[str, Any] = {"next_offset": 0}
    while (offset := page.get("next_offset")) is not None:
        page = server.client.get("/v1/jobs", params={"limit": 100, "offset": offset}).json()
        listed += [job["id"] for job in page["jobs"]]
    assert sorted(listed) == sorted({job["id"] for job in jobs})

"""Jobs survive kill -9 of everything."""

import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.durable import versions
from tests.durable.receiver import SECRET, Receiver, receive_webhooks
from tests.patience import Deadline, is_within, scale, wait_for_exit, wait_until
from tests.server import Server

NUM_SOAKED = int(os.environ.get("SOAK_JOBS", "100"))
KINDS = {"FoleyApi", "GpuRunner", "executor", "fork_server", "runners.page"}


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


def kill_all(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def has_ended(server: Server, jobs: list[dict[str, Any]]) -> bool:
    """Whether the service answers, and all jobs have ended."""
    with contextlib.suppress(httpx.TransportError):
        return len(find_ended(server, jobs)) == len(jobs)
    return False


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


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("num_jobs", "num_steps", "pause_seconds"),
    [
        pytest.param(4, 10, (1, 3), marks=pytest.mark.long),
        # Few steps: what is computed is not the subject. Many enough that all kinds are killed.
        pytest.param(NUM_SOAKED, 6, (1, 4), marks=pytest.mark.soak),
    ],
)
def test_jobs_are_finished_while_processes_are_killed(
    tmp_path_factory: pytest.TempPathFactory,
    short_clip: bytes,
    num_jobs: int,
    num_steps: int,
    pause_seconds: tuple[float, float],
) -> None:
    """One process of the service at a time, of each kind in turn; the launcher is the second."""
    folder = tmp_path_factory.mktemp("kills")  # a short name: the page's socket lies below it
    with receive_webhooks() as receiver:
        receiver.statuses = [500] * max(1, num_jobs // 5)
        killed = soak(folder, short_clip, receiver, num_jobs, num_steps, pause_seconds)
    assert killed.total() > 1
    assert num_jobs < 100 or killed.keys() >= KINDS


def soak(
    folder: Path,
    clip: bytes,
    receiver: Receiver,
    num_jobs: int,
    num_steps: int,
    pause_seconds: tuple[float, float],
) -> Counter[str]:
    """Submit jobs, kill processes until they have ended, and check what came of it.

    Args:
        folder: for the services.
        clip: of the jobs.
        receiver: of their webhooks.
        num_jobs: how many.
        num_steps: of each.
        pause_seconds: the shortest and the longest, from a service that is up to the next kill, on
            a quiet machine.

    Returns:
        How many processes of each kind were killed.
    """
    chooser = random.Random(0)
    killed: Counter[str] = Counter()
    family: list[psutil.Process] = []
    started = time.monotonic()
    server = start(folder / "0", folder / "jobs", num_running=2)
    try:
        wait_until_up(server)
        steps = {"num_inference_steps": str(num_steps)}
        jobs = [submit(server, clip, seed, receiver.url, **steps) for seed in range(num_jobs)]
        deadline = Deadline(3000)
        while not (has_ended(server, jobs) and count_told(receiver) == len(jobs)):
            assert not deadline.is_over(), (killed, server.client.get("/v1/jobs").text)
            # Killed before it is up again, it would never get anything done on a busy machine.
            wait_until_up(server)
            time.sleep(scale(chooser.uniform(*pause_seconds)))  # in which some work gets done
            if has_ended(server, jobs):
                continue  # webhooks are left, whose pauses grow
            family = server.family() or family
            victim = family[0]
            with contextlib.suppress(psutil.NoSuchProcess):
                if killed.total() != 1:
                    victim = choose(family[1:], killed, chooser)
                name = "launcher" if victim.pid == server.process.pid else describe(victim)
                killed[name] += 1
                victim.kill()
            if victim.pid == server.process.pid:
                # As at the end of a container, of which it is the first process.
                kill_all(family)
                wait_for_exit(server.process)
                server.client.close()
                server = start(folder / str(killed.total()), folder / "jobs", num_running=2)
                server.wait_until_ready()
        wait_until_up(server)
        ended = find_ended(server, jobs)
        assert [job["state"] for job in ended] == ["succeeded"] * len(jobs), killed
        for seed, job in enumerate(ended):
            assert server.client.get(job["result_url"]).status_code == 200
            assert job["result"]["seeds"] == [seed]
            # One result, and nothing of the tries that were cut off.
            left = sorted(path.name for path in (folder / "jobs/jobs" / job["id"]).iterdir())
            assert left == ["request.json", "results"]
        assert len(server.client.get("/v1/jobs?limit=100").json()["jobs"]) == min(100, len(jobs))
    finally:
        kill_all([*family, *server.family()])
        wait_for_exit(server.process)
        server.client.close()
    ids = [headers["webhook-id"] for headers, _ in receiver.got]
    assert set(ids) == {f"msg_{job['id']}" for job in jobs}
    seconds = time.monotonic() - started
    print(
        f"{len(jobs)} jobs in {seconds:.0f} s, {killed.total()} kills: {dict(killed)}; "
        f"{len(ids)} webhooks came, {len(ids) - len(set(ids))} of them again"
    )
    return killed


def wait_until_up(server: Server) -> None:
    """Wait for the model, and for the page, which starts when it is asked for."""
    wait_until(
        lambda: server.probe("/readyz") == 200 and server.probe("/ui/") == 200,
        300,
        what="it never came back",
    )


def count_told(receiver: Receiver) -> int:
    """How many jobs the receiver was told of, those apart whose webhook it has refused."""
    return len({headers["webhook-id"] for headers, _ in receiver.taken})


def choose(
    family: list[psutil.Process], killed: Counter[str], chooser: random.Random
) -> psutil.Process:
    """Return a process of the kind that was killed least: one of several media children, too."""
    kinds: dict[str, list[psutil.Process]] = {}
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.cmdline():  # it has not ended
                kinds.setdefault(describe(process), []).append(process)
    name = min(sorted(kinds), key=lambda name: (killed[name], chooser.random()))
    return chooser.choice(kinds[name])


def describe(process: psutil.Process) -> str:
    """Which one of the service's processes it is. The page's media children are those of plots."""
    line = " ".join(process.cmdline())
    names = ("executor", "fork_server", "plot_server", "runners.page", "GpuRunner", "FoleyApi")
    return next((name for name in names if name in line), line[:60])

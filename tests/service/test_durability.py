"""Jobs survive kill -9 of everything."""

import contextlib
import itertools
import random
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.patience import Deadline, wait_until
from tests.server import Server


def options(seed: int) -> dict[str, str]:
    return {"seed": str(seed), "num_inference_steps": "10"}


def submit(server: Server, clip: bytes, seed: int) -> dict[str, Any]:
    response = server.client.post(
        "/v1/jobs",
        files={"clip": clip},
        data=options(seed),
        headers={"Idempotency-Key": f"order-{seed}"},
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


def kill_all(server: Server) -> None:
    for process in server.family():
        process.kill()
    server.process.wait()
    server.client.close()


def start(folder: Path, jobs: Path) -> Server:
    folder.mkdir()
    # One job at a time, so that the sounds do not depend on what shares a batch.
    settings = {"FOLEY_JOBS_DIR": str(jobs), "FOLEY_MAX_CONCURRENCY": "2"}
    return Server(folder, settings)


def test_jobs_are_finished_after_everything_was_killed(tmp_path: Path, short_clip: bytes) -> None:
    first = start(tmp_path / "first", tmp_path / "jobs")
    try:
        first.wait_until_ready()
        jobs = [submit(first, short_clip, seed) for seed in range(3)]
        wait_until(lambda: find_ended(first, jobs), 60, what="no job ended")
    finally:
        kill_all(first)
    second = start(tmp_path / "second", tmp_path / "jobs")
    try:
        second.wait_until_ready()
        ended = wait_for_all(second, jobs)
        assert [job["state"] for job in ended] == ["succeeded"] * len(jobs)
        direct = second.generate(short_clip, **options(2))
        assert second.client.get(ended[2]["result_url"]).content == direct.content
        assert submit(second, short_clip, 0)["id"] == jobs[0]["id"]
        assert len(second.client.get("/v1/jobs").json()["jobs"]) == len(jobs)
    finally:
        assert second.stop() == 0, second.log.read_text()
    assert not list(tmp_path.glob("jobs/uploads/*"))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_jobs_are_finished_while_processes_are_killed(tmp_path: Path, short_clip: bytes) -> None:
    """A random process of the service is killed every few seconds; the launcher starts again."""
    jobs: list[dict[str, Any]] = []
    server = start(tmp_path / "0", tmp_path / "jobs")
    chooser = random.Random(0)
    killed: list[str] = []
    try:
        server.wait_until_ready()
        jobs = [submit(server, short_clip, seed) for seed in range(100)]
        deadline = Deadline(3000)
        for number in itertools.count(1):
            assert not deadline.is_over()
            time.sleep(chooser.uniform(2, 8))
            if server.process.poll() is not None:
                server.client.close()
                server = start(tmp_path / str(number), tmp_path / "jobs")
                server.wait_until_ready()
            elif server.probe("/livez") == 200 and len(find_ended(server, jobs)) == len(jobs):
                break
            else:
                victim = chooser.choice(server.family())
                with contextlib.suppress(psutil.NoSuchProcess):
                    killed.append(" ".join(victim.cmdline()[:4]))
                    victim.kill()
        ended = find_ended(server, jobs)
        assert [job["state"] for job in ended] == ["succeeded"] * len(jobs), killed
        for job in ended:
            assert server.client.get(job["result_url"]).status_code == 200
    finally:
        kill_all(server)
    print(f"{len(killed)} processes were killed: {killed}")

"""Jobs survive kill -9 of everything."""

import contextlib
import os
import random
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.patience import Deadline, scale, wait_for_exit, wait_until
from tests.server import Server

NUM_SOAKED = int(os.environ.get("SOAK_JOBS", "100"))


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


def kill_all(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def has_ended(server: Server, jobs: list[dict[str, Any]]) -> bool:
    """Whether the service answers, and all jobs have ended."""
    with contextlib.suppress(httpx.TransportError):
        return len(find_ended(server, jobs)) == len(jobs)
    return False


def start(folder: Path, jobs: Path) -> Server:
    folder.mkdir()
    # One job at a time, so that the sounds do not depend on what shares a batch.
    settings = {"FOLEY_JOBS_DIR": str(jobs), "FOLEY_MAX_CONCURRENCY": "2"}
    # Without marks a repeated request gives the same file, and not only the same sound.
    settings["FOLEY_MARKS"] = "off"
    return Server(folder, settings)


def test_jobs_are_finished_after_everything_was_killed(tmp_path: Path, short_clip: bytes) -> None:
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
    """One process of the service at a time, any of them; where it was the launcher, all others."""
    chooser = random.Random(0)
    killed: list[str] = []
    family: list[psutil.Process] = []
    server = start(tmp_path / "0", tmp_path / "jobs")
    try:
        server.wait_until_ready()
        jobs = [submit(server, short_clip, seed) for seed in range(NUM_SOAKED)]
        deadline = Deadline(3000)
        while not has_ended(server, jobs):
            assert not deadline.is_over(), killed
            time.sleep(scale(chooser.uniform(2, 8)))
            family = server.family() or family
            with contextlib.suppress(psutil.NoSuchProcess):
                victim = chooser.choice(family)
                killed.append(" ".join(victim.cmdline()[1:3]))
                victim.kill()
            if victim.pid == server.process.pid:
                kill_all(family)  # as a container's end does
                wait_for_exit(server.process)
                server.client.close()
                server = start(tmp_path / str(len(killed)), tmp_path / "jobs")
                server.wait_until_ready()
        ended = find_ended(server, jobs)
        assert [job["state"] for job in ended] == ["succeeded"] * len(jobs), killed
        for job in ended:
            assert server.client.get(job["result_url"]).status_code == 200
    finally:
        kill_all([*family, *server.family()])
        wait_for_exit(server.process)
        server.client.close()
    print(f"{len(killed)} processes were killed: {killed}")

"""A service that is replaced while its jobs run, as a rolling upgrade does: none is lost."""

import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from runners.durable.job import JobState
from tests.patience import wait_until
from tests.postgres import Postgres, serve_postgres
from tests.s3 import serve_bucket
from tests.server import Server

NUM_JOBS = 8
NUM_RUNNING = 2


def start(folder: Path, postgres: Postgres, bucket: str) -> Server:
    folder.mkdir()
    settings = {
        "FOLEY_JOBS_DIR": str(folder / "jobs"),
        "FOLEY_DATABASE_URL": postgres.url,
        "FOLEY_RESULTS": f"{bucket}/jobs",
        "FOLEY_MAX_CONCURRENCY": str(2 * NUM_RUNNING),
    }
    return Server(folder, settings)


def count(server: Server, state: JobState) -> int:
    """How many jobs of a state the service's metrics tell."""
    return round(server.metric(f'foley_jobs{{state="{state}"}}'))


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_no_job_is_lost_while_a_service_is_replaced(tmp_path: Path, short_clip: bytes) -> None:
    with ExitStack() as held:
        bucket = held.enter_context(serve_bucket())
        postgres = held.enter_context(serve_postgres())
        old = start(tmp_path / "old", postgres, bucket)
        held.callback(old.process.kill)
        old.wait_until_ready()
        jobs = []
        for seed in range(NUM_JOBS):
            sent = old.client.post(
                "/v1/jobs",
                files={"clip": short_clip},
                data={"seed": str(seed), "num_inference_steps": "100"},
            )
            assert sent.status_code == 202, sent.text
            jobs.append(sent.json())
        wait_until(lambda: count(old, "running") == NUM_RUNNING, 60, what=old.log.read_text)
        assert count(old, "queued") == NUM_JOBS - NUM_RUNNING
        new = start(tmp_path / "new", postgres, bucket)  # the surge of a rolling upgrade
        try:
            new.wait_until_ready()
            wait_until(lambda: count(new, "running") > 0, what=new.log.read_text)
            left = count(new, "queued") + count(new, "running")
            assert left > NUM_RUNNING, "the jobs were made before the old service could be ended"
            assert count(old, "queued") + count(old, "running") <= left  # one queue
            ending = time.monotonic()
            assert old.stop() == 0, old.log.read_text()
            end_seconds = time.monotonic() - ending

            def find_states() -> Counter[str]:
                found = (new.client.get(f"/v1/jobs/{job['id']}").json() for job in jobs)
                return Counter(job["state"] for job in found)

            wait_until(
                lambda: find_states()["succeeded"] == NUM_JOBS, 300, what=lambda: str(find_states())
            )
            seconds = time.monotonic() - ending
            assert (count(new, "queued"), count(new, "running")) == (0, 0)
            files = [new.client.get(f"/v1/jobs/{job['id']}").json()["result"] for job in jobs]
            assert [len(result["files"]) for result in files] == [1] * NUM_JOBS
            print(
                f"{left} of {NUM_JOBS} jobs were left when the old service got SIGTERM; it ended "
                f"in {end_seconds:.1f} s, and all jobs had succeeded {seconds:.0f} s after it"
            )
        finally:
            assert new.stop() == 0, new.log.read_text()

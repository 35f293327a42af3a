"""What a job costs beside the same request made directly, in processor time and in throughput."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.patience import is_within, wait_until
from tests.server import Server

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]
OPTIONS = {"num_inference_steps": "2", "seed": "3"}
NUM_ROUNDS = 2  # of requests and then of jobs, so that other load of the machine meets both
LIMIT_MS = 30.0
IDLE_SECONDS = 10.0
OURS = ("FoleyApi", "executor")  # the others decode, compute and write as for any request


def read_processor_ms(server: Server) -> Counter[str]:
    """Return the milliseconds that the service's processes have taken, by what they are."""
    taken: Counter[str] = Counter()
    for process in server.family():
        with contextlib.suppress(psutil.NoSuchProcess):
            times, line = process.cpu_times(), " ".join(process.cmdline())
            # The line of the model's process names the API too.
            name = next((name for name in ("GpuRunner", *OURS) if name in line), "others")
            taken[name] += round(1000 * (times.user + times.system))
    return taken


@pytest.mark.parametrize(("num_running", "num_requests"), [(2, 16), (16, 32)])
def test_a_job_costs_little_more_than_its_request(
    tmp_path: Path, short_clip: bytes, num_running: int, num_requests: int
) -> None:
    # As many jobs run at once as there are callers.
    settings = {"FOLEY_JOBS_DIR": str(tmp_path / "jobs")}
    settings["FOLEY_MAX_CONCURRENCY"] = str(2 * num_running)
    server = Server(tmp_path, settings)

    def ask(_: int) -> None:
        assert server.generate(short_clip, **OPTIONS).status_code == 200

    def submit(_: int) -> None:
        files = {"clip": short_clip}
        assert server.client.post("/v1/jobs", files=files, data=OPTIONS).status_code == 202

    def count_results() -> int:
        """Look at the folder, since questions over HTTP would cost what is measured."""
        return len(list((tmp_path / "jobs/jobs").glob("*/results")))

    def measure(call: Callable[[int], None]) -> tuple[Counter[str], float]:
        before, done = read_processor_ms(server), count_results()
        started = time.monotonic()
        with ThreadPoolExecutor(num_running) as pool:
            list(pool.map(call, range(num_requests)))
        if call is submit:
            wait_until(lambda: count_results() == done + num_requests, 600, what="they never ended")
        return read_processor_ms(server) - before, time.monotonic() - started

    try:
        server.wait_until_ready()
        ask(0)
        submit(0)
        wait_until(lambda: count_results() == 1, 60, what="it never ended")
        before = read_processor_ms(server)
        time.sleep(IDLE_SECONDS)
        idle = read_processor_ms(server) - before
        direct, jobs = Counter[str](), Counter[str]()
        direct_seconds = job_seconds = 0.0
        for _ in range(NUM_ROUNDS):
            taken, seconds = measure(ask)
            direct, direct_seconds = direct + taken, direct_seconds + seconds
            taken, seconds = measure(submit)
            jobs, job_seconds = jobs + taken, job_seconds + seconds
    finally:
        assert server.stop() == 0, server.log.read_text()
    num_all = NUM_ROUNDS * num_requests
    # What they take without any work, such as to look for some, is no cost of a job.
    of_time = sum(idle[name] for name in OURS) / IDLE_SECONDS * (job_seconds - direct_seconds)
    more_ms = (sum(jobs[name] - direct[name] for name in OURS) - of_time) / num_all
    print(
        f"{num_running} at once: {more_ms:.1f} ms more a job; {num_all} requests took "
        f"{direct_seconds:.1f} s, as jobs {job_seconds:.1f} s; {dict(direct)}, {dict(jobs)}, "
        f"idle for {IDLE_SECONDS:.0f} s {dict(idle)}"
    )
    if num_running == 2:
        assert is_within(more_ms, LIMIT_MS)
    else:
        assert job_seconds < 1.1 * direct_seconds

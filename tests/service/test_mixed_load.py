"""Mixed load while processes of the service are killed: every request ends, and nothing grows."""

import contextlib
import itertools
import json
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest

from foley.v1.foley_pb2_grpc import FoleyServiceStub
from tests.grpc.test_calls import messages, read
from tests.patience import SOAK_SECONDS, Deadline, scale, wait_until
from tests.server import Server
from tests.service.kills import describe, wait_until_up

QUIET_SECONDS = SOAK_SECONDS / 12  # between two looks at memory and descriptors
# What a caller is to try again. All others would be faults: of the request, or of ours.
RETRYABLE = {"busy", "runner_lost", "not_ready"}
BROKEN = "broken connection"  # of a process that was killed with it
NEVER = 180.0  # seconds without an answer, on a quiet machine
SHORT = {"num_inference_steps": 2}


@dataclass
class Load:
    """What the callers of a server saw."""

    server: Server
    clip: bytes
    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    lost: list[str] = field(default_factory=list)  # what nobody could explain
    jobs: list[dict[str, Any]] = field(default_factory=list)
    kills: list[tuple[float, str]] = field(default_factory=list)
    paused: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    active: set[str] = field(default_factory=set)
    numbers: Any = field(default_factory=itertools.count)

    def call_on(self, kind: str, call: Callable[[], str]) -> None:
        """Call again and again until the end, and count the outcomes."""
        while not self.ended.is_set():
            if self.paused.is_set():
                time.sleep(0.05)
                continue
            self.active.add(kind)
            started = time.monotonic()
            try:
                outcome = call()
            except (httpx.TimeoutException, TimeoutError) as error:
                outcome = f"no answer: {error!r}"
            except (httpx.TransportError, ConnectionError):
                outcome = BROKEN
            except Exception as error:  # noqa: BLE001 - it fails the test
                outcome = f"unexpected: {error!r}"
            self.active.discard(kind)
            self.counts[kind][outcome] += 1
            is_known = outcome == "done" or outcome in RETRYABLE
            killed = [name for at, name in self.kills if at > started - scale(5)]
            # A media task is repeated once.
            is_explained = (outcome == BROKEN and killed) or (
                outcome == "server_error" and sum("fork_server" in name for name in killed) > 1
            )
            if not (is_known or is_explained):
                self.lost.append(f"{kind} at {time.strftime('%X')}: {outcome}")
            if outcome != "done":
                time.sleep(0.5)

    def generate(self) -> str:
        with self._open() as client:
            sent = {"files": {"clip": self.clip}, "data": SHORT}
            answer = client.post("/v1/generate", **sent)
            if answer.status_code != 200:
                return _read_code(answer)
            assert b"ftyp" in answer.content[:16]
            return "done"

    def stream(self) -> str:
        with (
            self._open() as client,
            client.stream(
                "POST", "/v1/generate/events", files={"clip": self.clip}, data=SHORT
            ) as answer,
        ):
            text = answer.read().decode()
            if answer.status_code != 200:
                return _read_code(answer)
        kind, data = text.rstrip().split("\n\n")[-1].split("\n")[-2:]
        content = json.loads(data.removeprefix("data: "))
        assert kind in ("event: result", "event: error"), text
        return "done" if kind == "event: result" else str(content["error"]["code"])

    def call_grpc(self) -> str:
        with grpc.insecure_channel(self.server.grpc_address) as channel:
            stub = FoleyServiceStub(channel)
            try:
                answer = read(stub.Generate(messages(self.clip, **SHORT), timeout=scale(NEVER)))
            except grpc.RpcError as error:
                trailing = dict(error.trailing_metadata() or ())
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise TimeoutError from error
                if "foley-error-code" not in trailing:
                    if error.code() is grpc.StatusCode.UNAVAILABLE:
                        raise ConnectionError from error
                    raise
                return str(trailing["foley-error-code"])
        assert answer.files
        return "done"

    def submit(self) -> str:
        """Submit a job, once more after a broken connection, and wait for its end."""
        key = {"Idempotency-Key": f"order-{next(self.numbers)}"}
        with self._open() as client:
            deadline = Deadline(NEVER)
            while True:
                assert not deadline.is_over()
                with contextlib.suppress(httpx.TransportError):
                    sent = {"files": {"clip": self.clip}, "data": SHORT, "headers": key}
                    answer = client.post("/v1/jobs", **sent)
                    if answer.status_code == 202:
                        break
                    if (code := _read_code(answer)) not in RETRYABLE:
                        return code
                time.sleep(0.5)
            job = answer.json()
            self.jobs.append(job)
            while True:
                assert not deadline.is_over(), job
                with contextlib.suppress(httpx.TransportError):
                    found = client.get(job["status_url"])
                    state = found.json().get("state")
                    if state == "succeeded":
                        return "done"
                    assert found.status_code >= 500 or state in ("queued", "running"), found.text
                time.sleep(0.5)

    def upload_half(self) -> str:
        """Leave in the middle of an upload."""
        connection, _ = self.server.open_upload(self.clip, **SHORT)
        with connection:
            time.sleep(0.2)
        return "done"

    def open_page(self) -> str:
        with self._open() as client:
            answer = client.get("/ui/")
            if answer.status_code == 200:
                return "done"
            return _read_code(answer)

    def _open(self) -> httpx.Client:
        return httpx.Client(
            base_url=self.server.client.base_url, timeout=scale(NEVER), trust_env=False
        )


def _read_code(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["code"])
    except (ValueError, KeyError):
        return f"not in our form: {answer.status_code} {answer.text[:200]}"


@pytest.mark.soak
@pytest.mark.timeout(1800 + 2 * SOAK_SECONDS)
def test_mixed_load_survives_kills_of_every_process(tmp_path: Path, short_clip: bytes) -> None:
    settings = {
        "FOLEY_API_WORKERS": "2",
        "FOLEY_MAX_CONCURRENCY": "6",
        "FOLEY_JOBS_DIR": str(tmp_path / "jobs"),
        "FOLEY_KEEP_RESULTS_SECONDS": "60",
        "TMPDIR": str(tmp_path / "tmp"),
    }
    (tmp_path / "tmp").mkdir()
    server = Server(tmp_path, settings, ready_seconds=300)
    load = Load(server, short_clip)
    calls = [load.generate, load.stream, load.call_grpc, load.submit, load.upload_half]
    try:
        wait_until_up(server)
        with ThreadPoolExecutor(2 * len(calls)) as pool:
            for call in (*calls, load.generate, load.open_page):
                pool.submit(load.call_on, f"{call.__name__} {next(load.numbers)}", call)
            try:
                looks = kill_for(load, SOAK_SECONDS)
            finally:
                load.ended.set()
        for kind, counts in load.counts.items():
            print(kind, dict(counts))
        print("kills:", dict(Counter(name for _, name in load.kills)))
        assert not load.lost, load.lost[:20]
        check_jobs(load)
        check_flat(looks)
        wait_until(lambda: not server._request_files(), 120, what=server._request_files)
        for name in ("generate", "stream", "call_grpc", "submit", "upload_half", "open_page"):
            done = sum(counts["done"] for kind, counts in load.counts.items() if name in kind)
            assert done, (name, load.counts)
        assert {name for _, name in load.kills} >= {"GpuRunner", "FoleyApi", "fork_server"}
    finally:
        status = server.stop()
    log = server.log.read_text()
    assert status == 0, log[-4000:]
    assert "end_forced" not in log, [line for line in log.splitlines() if "end_" in line]
    assert not list(server.scratch.iterdir())
    assert not [path for path in (tmp_path / "tmp").iterdir() if path.name.startswith("foley")]


def kill_for(load: Load, seconds: float) -> list[dict[str, tuple[int, int]]]:
    """Kill processes for so long; returns what they had at each of the quiet moments between."""
    chooser = random.Random(0)
    stop = time.monotonic() + seconds
    looks = [look_when_quiet(load)]
    while time.monotonic() < stop:
        next_look = time.monotonic() + QUIET_SECONDS
        while time.monotonic() < next_look:
            # Killed before it is up again, it would never get anything done on a busy machine.
            wait_until_up(load.server)
            time.sleep(chooser.uniform(2, 15))
            roles = defaultdict(list)
            for process in load.server.family()[1:]:  # without the launcher
                with contextlib.suppress(psutil.NoSuchProcess):
                    roles[name_role(process)].append(process)
            victim = chooser.choice(roles[chooser.choice(sorted(roles))])
            with contextlib.suppress(psutil.NoSuchProcess):
                name = name_role(victim)
                victim.kill()
                load.kills.append((time.monotonic(), name))
        looks.append(look_when_quiet(load))
        done = sum(counts["done"] for counts in load.counts.values())
        print(
            f"{time.strftime('%X')}: {done} done, {len(load.kills)} kills, {looks[-1]}", flush=True
        )
        assert not load.lost, load.lost[:20]
    return looks


def name_role(process: psutil.Process) -> str:
    """Which process of the service it is; a child that decodes or writes is called so."""
    name = describe(process)
    if name in ("fork_server", "plot_server"):
        parent = process.parent()
        if parent is not None and describe(parent) == name:
            return f"child of {name}"
    return name


def look_when_quiet(load: Load) -> dict[str, tuple[int, int]]:
    """Pause the load, and return each process' open files and MiB once nothing is left to do."""
    load.paused.set()
    wait_until(lambda: not load.active, 2 * NEVER, what=lambda: load.active)
    wait_until_up(load.server)
    load.server.wait_until_scratch_is_empty()
    time.sleep(2)  # connections that nobody uses are closed
    looked: dict[str, tuple[int, int]] = {}
    for process in load.server.family():
        with contextlib.suppress(psutil.NoSuchProcess):
            is_launcher = process.pid == load.server.process.pid
            name = "launcher" if is_launcher else name_role(process)
            files, memory = looked.get(name, (0, 0))
            used = process.num_fds(), process.memory_info().rss >> 20
            looked[name] = (max(files, used[0]), max(memory, used[1]))
    looked["all"] = (len(load.server.family()), sum(memory for _, memory in looked.values()))
    load.paused.clear()
    return looked


def check_flat(looks: list[dict[str, tuple[int, int]]]) -> None:
    """Check that no process has more open files or memory at the end than near the beginning."""
    early, late = looks[1 : len(looks) // 2 + 1], looks[-max(1, len(looks) // 4) :]
    for name in ("launcher", "GpuRunner", "FoleyApi", "fork_server"):
        files, memory = (
            max(look[name][index] for look in early if name in look) for index in (0, 1)
        )
        files_late, memory_late = (
            min(look[name][index] for look in late if name in look) for index in (0, 1)
        )
        assert files_late <= files + 10, (name, looks)
        assert memory_late <= 1.2 * memory + 20, (name, looks)


def check_jobs(load: Load) -> None:
    """Check that each accepted job has a result, and is there once."""
    assert load.jobs
    assert len({job["id"] for job in load.jobs}) == len(load.jobs)
    for job in load.jobs:
        found = load.server.client.get(job["status_url"]).json()
        assert found["state"] == "succeeded", found

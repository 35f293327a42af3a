"""The events of one call to the runner: admission, frames, outcome, and each early end."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path

import pytest
from safetensors import SafetensorError

from foley.request import GenerationRequest
from foley.types import Stage
from runners.handoff import announce_frames, save_frames
from runners.jobs.scratch import Scratch
from runners.messages import RunnerEvent, RunnerRequest
from runners.worker import calibration, held_session
from runners.worker.device import LocalDevice
from runners.worker.scheduler import Budget
from runners.worker.stream import OWNER_SECONDS, stream_events
from runners.worker.worker import Worker
from tests.patience import scale, wait_until
from tests.server import ROOT
from tests.toys import toy_frames, toy_pipeline

Events = AsyncGenerator[RunnerEvent, None]


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """A worker with two places."""
    rates = {Stage.ENCODE: 0.01, Stage.SAMPLE: 1e-4, Stage.DECODE_AUDIO: 1e-4}
    monkeypatch.setattr(calibration, "measure", lambda pipeline: (Budget(tokens=500), rates))
    worker = Worker(lambda: [LocalDevice(toy_pipeline())], capacity=2)
    wait_until(lambda: worker.status.state != "loading")
    yield worker
    worker.stop(scale(20))
    assert not worker._thread.is_alive()


@pytest.fixture
def request_in(tmp_path: Path) -> Iterator[Callable[..., RunnerRequest]]:
    """Makes requests with folders of this process, which is alive."""
    scratch = Scratch(tmp_path)

    def make(*, folder: Path | None = None, timeout_seconds: float = 60.0) -> RunnerRequest:
        if folder is None:
            folder = Path(stack.enter_context(scratch.workspace()))
        return RunnerRequest(
            id=folder.name,
            folder=str(folder),
            options=GenerationRequest(seed=1, num_inference_steps=2),
            timeout_seconds=timeout_seconds,
        )

    with contextlib.ExitStack() as stack:
        yield make
    scratch.close()


async def admit(worker: Worker, request: RunnerRequest) -> Events:
    """The stream of a request that was admitted."""
    events = stream_events(worker, request)
    assert await anext(events) == RunnerEvent(admitted=True)
    return events


async def read_error(events: Events, within_seconds: float = 20.0) -> str:
    """The code of the error with which a stream ends."""
    async with asyncio.timeout(scale(within_seconds)):
        (*_, last) = [event async for event in events]
    assert last.error is not None
    return last.error[0]


def test_frames_may_come_after_the_admission(
    worker: Worker, request_in: Callable[..., RunnerRequest]
) -> None:
    async def run() -> None:
        request = request_in()
        events = await admit(worker, request)
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.2)
        assert not waiting.done()  # nothing to report while the clip is being decoded
        announce_frames(save_frames(toy_frames(16), request.path), request.path)
        first = await waiting
        rest = [event async for event in events]
        assert first.progress is not None
        assert first.progress.stage is Stage.QUEUE
        assert [event.result is not None for event in rest] == [False] * (len(rest) - 1) + [True]

    asyncio.run(run())


def test_frames_that_are_not_announced_are_not_used(
    worker: Worker, request_in: Callable[..., RunnerRequest]
) -> None:
    async def run() -> None:
        request = request_in(timeout_seconds=0.3)
        events = await admit(worker, request)
        save_frames(toy_frames(16), request.path)
        assert await read_error(events) == "timeout"

    asyncio.run(run())


def test_a_full_disk_is_told_as_such_when_the_waveforms_are_written(
    worker: Worker, request_in: Callable[..., RunnerRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        # What safetensors says on a full tmpfs. The whole service meets one in
        # tests/service/test_full_disk.py.
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(held_session, "save_waveforms", refuse)

    async def run() -> None:
        request = request_in()
        announce_frames(save_frames(toy_frames(16), request.path), request.path)
        assert await read_error(await admit(worker, request)) == "storage_full"

    asyncio.run(run())


def test_a_request_without_a_place_is_refused_by_the_first_event(
    worker: Worker, request_in: Callable[..., RunnerRequest]
) -> None:
    async def run() -> None:
        streams = [await admit(worker, request_in()) for _ in range(2)]
        refused = [event async for event in stream_events(worker, request_in())]
        assert [event.error is not None and event.error[0] for event in refused] == ["busy"]
        await streams[0].aclose()  # frees its place
        await admit(worker, request_in())

    asyncio.run(run())


def test_a_request_whose_folder_is_removed_frees_its_place(
    worker: Worker, request_in: Callable[..., RunnerRequest]
) -> None:
    async def run() -> None:
        request = request_in()
        events = await admit(worker, request)
        shutil.rmtree(request.path)
        # Sooner than the next check of the process itself.
        assert await read_error(events, OWNER_SECONDS / 2) == "cancelled"
        assert worker._list_jobs() == ()

    asyncio.run(run())


def test_a_cancelled_request_frees_its_place_while_it_is_being_decoded(
    worker: Worker, request_in: Callable[..., RunnerRequest]
) -> None:
    async def run() -> None:
        request = request_in()
        events = await admit(worker, request)
        assert worker.cancel(request.id)
        assert await read_error(events) == "cancelled"

    asyncio.run(run())


@pytest.mark.slow
@pytest.mark.parametrize("queued", [False, True])
def test_a_request_of_a_dead_process_frees_its_place(
    worker: Worker, request_in: Callable[..., RunnerRequest], tmp_path: Path, queued: bool
) -> None:
    program = (
        "import pathlib, sys, time; from runners.jobs.scratch import Scratch\n"
        "scratch = Scratch(pathlib.Path(sys.argv[1]))\n"
        "with scratch.workspace() as folder: print(folder, flush=True); time.sleep(3600)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]

    async def run(process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        request = request_in(folder=folder)
        request = request.model_copy(
            update={"options": GenerationRequest(num_inference_steps=200, solver="rk4")}
        )
        events = await admit(worker, request)
        if queued:
            announce_frames(save_frames(toy_frames(375), folder), folder)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(scale(10))
        assert folder.exists()
        assert await read_error(events) == "cancelled"

    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        asyncio.run(run(process))


@pytest.mark.slow
def test_a_bug_while_a_request_is_queued_ends_it(
    worker: Worker, request_in: Callable[..., RunnerRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(worker, "_compute_size", fail)

    async def run() -> None:
        request = request_in()
        events = await admit(worker, request)
        announce_frames(save_frames(toy_frames(16), request.path), request.path)
        assert await read_error(events) == "server_error"
        assert worker._list_jobs() == ()

    asyncio.run(run())

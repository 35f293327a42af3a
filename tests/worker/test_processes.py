"""Devices with a process each: `tiny` on the CPU in two processes, beside it in this one."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

from foley.errors import (
    CancelledRequestError,
    ParameterError,
    ServerError,
    StorageFullError,
)
from foley.pipeline import FoleyPipeline
from foley.request import GenerationRequest
from foley.types import NoPicture, Stage, VideoFrames, split_frames
from runners.handoff import (
    PIECE,
    FrameCounts,
    hand_on_piece,
    load_waveforms,
    name_growing,
    read_expectation,
    save_frames,
)
from runners.messages import FinishedPiece, ProgressUpdate, RunnerRequest
from runners.settings import plan_model_environments
from runners.worker.loading import ModelChoice
from runners.worker.process_device import ProcessDevice
from runners.worker.running_job import RunningJob
from runners.worker.worker import Worker
from tests.patience import scale, wait_until
from tests.server import ROOT

pytestmark = pytest.mark.long  # a process takes ten seconds to load and measure the model
TINY = ModelChoice(preset="tiny", device="cpu")
RAIN = {"prompt": "rain", "duration_seconds": 1, "num_inference_steps": 2, "seed": 3}


def start(choice: ModelChoice, count: int, exit_process: Callable[[], None]) -> Worker:
    """A worker with so many processes, which are loading."""
    environments = plan_model_environments(count)
    return Worker(
        lambda: [ProcessDevice(f"cpu:{i}", choice, one) for i, one in enumerate(environments)],
        capacity=8,
        exit_process=exit_process,
    )


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """One for all tests that leave its processes alive."""
    lost = threading.Event()
    worker = start(TINY, 2, lost.set)
    wait_until(lambda: worker.status.state != "loading", 120)
    assert worker.status.state == "ready"
    pids = [device.pid for device in worker._devices]  # type: ignore[attr-defined]
    yield worker
    worker.stop(scale(20))
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert not lost.is_set()


@pytest.fixture(scope="module")
def pipeline() -> FoleyPipeline:
    return FoleyPipeline.from_preset("tiny", "cpu")


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., RunnerRequest]:
    def make(**options: object) -> RunnerRequest:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        return RunnerRequest(
            id=folder.name,
            folder=str(folder),
            options=GenerationRequest.parse(**options),
            timeout_seconds=scale(120),
        )

    return make


def submit(
    worker: Worker,
    request: RunnerRequest,
    updates: list[ProgressUpdate] | None = None,
    pieces: list[FinishedPiece] | None = None,
) -> RunningJob:
    """A request without a clip."""
    noted = [] if updates is None else updates
    job = worker.admit(request, noted.append, [].append if pieces is None else pieces.append)
    assert request.options.duration_seconds is not None
    sound = NoPicture(duration_seconds=request.options.duration_seconds)
    worker.queue(job, FrameCounts(sound.num_visual, sound.num_sync))
    return job


def draw_frames(num_sync: int) -> VideoFrames:
    """Noise at the sizes of tiny's encoders."""
    generator = torch.Generator().manual_seed(1)
    visual, sync = (
        torch.randint(256, (count, size, size, 3), generator=generator).byte()
        for count, size in ((num_sync * 8 // 25, 112), (num_sync, 224))
    )
    return VideoFrames(visual=visual, sync=sync, num_picked=num_sync, source_seconds=num_sync / 25)


def test_requests_of_both_processes_sound_as_in_this_one(
    worker: Worker, pipeline: FoleyPipeline, ask: Callable[..., RunnerRequest]
) -> None:
    frames, updates = draw_frames(32), [[] for _ in range(4)]
    asked = [ask(prompt="rain", num_inference_steps=3, seed=seed) for seed in range(4)]
    jobs = []
    for request, noted in zip(asked, updates, strict=True):
        job = worker.admit(request, noted.append)
        worker.queue(job, save_frames(frames, request.path))
        jobs.append(job)
    for seed, (request, job, noted) in enumerate(zip(asked, jobs, updates, strict=True)):
        made = job.outcome.result(scale(60))
        assert made.seeds == (seed,)
        assert list(made.timings) == ["queue", "encode", "sample", "decode_audio"]
        assert made.device_seconds > 0
        assert [one.step for one in noted if one.stage is Stage.SAMPLE] == [0, 1, 2, 3]
        alone = pipeline.generate(frames, request.options).waveforms
        # Measured: equal.
        torch.testing.assert_close(load_waveforms(request.path)[0], alone[0], rtol=0, atol=1e-5)
    assert {job.device for job in jobs} == {0, 1}


def test_a_cancelled_request_leaves_its_process_and_others_go_on(
    worker: Worker, ask: Callable[..., RunnerRequest]
) -> None:
    updates: list[ProgressUpdate] = []
    endless = submit(worker, ask(**RAIN | {"num_inference_steps": 200}), updates)
    beside = submit(worker, ask(**RAIN | {"num_inference_steps": 200}))
    wait_until(lambda: any(update.step for update in updates), 60)
    assert worker.cancel(endless.id)
    assert isinstance(endless.outcome.exception(scale(20)), CancelledRequestError)
    assert not beside.outcome.done()
    worker.cancel(beside.id)
    assert submit(worker, ask(**RAIN)).outcome.result(scale(60)).seeds == (3,)


def test_errors_of_a_request_arrive_as_what_they_are(
    worker: Worker, ask: Callable[..., RunnerRequest], caplog: pytest.LogCaptureFixture
) -> None:
    cue = {"start_seconds": 5, "stop_seconds": 6, "prompt": "a door"}
    late = submit(worker, ask(**RAIN, cues=[cue]))
    full = ask(**RAIN | {"duration_seconds": 17, "num_inference_steps": 1})
    name_growing(full.path, 1).symlink_to("/dev/full")
    filled = submit(worker, full)
    nothing = ask(prompt="rain", seed=1)
    gone = worker.admit(nothing)
    worker.queue(gone, FrameCounts(10, 32))
    beside = submit(worker, ask(**RAIN))
    error = late.outcome.exception(scale(60))
    assert isinstance(error, ParameterError)
    assert "5" in str(error)
    assert isinstance(filled.outcome.exception(scale(60)), StorageFullError)
    assert type(gone.outcome.exception(scale(60))) is ServerError
    assert beside.outcome.result(scale(60)).seeds == (3,)


def test_a_long_clip_is_read_in_pieces_and_its_sound_comes_in_pieces(
    worker: Worker, pipeline: FoleyPipeline, ask: Callable[..., RunnerRequest]
) -> None:
    frames, request = draw_frames(376 + 96 + 5), ask(prompt="rain", num_inference_steps=1, seed=1)
    came: list[FinishedPiece] = []
    stream = split_frames(frames)
    hand_on_piece(stream.read(), request.path, 0)
    job = worker.admit(request, on_piece=came.append)
    expected_seconds = read_expectation(request.path)
    assert expected_seconds is not None
    worker.queue_long(job, expected_seconds)
    wait_until(lambda: job.starved, 60)
    assert not job.has_all_frames
    index = 1
    while stream.facts is None:
        hand_on_piece(stream.read(), request.path, index)
        index += 1
    while not job.outcome.done():
        worker.feed(job)
        with contextlib.suppress(TimeoutError):
            job.outcome.exception(0.05)
    assert job.outcome.exception() is None
    assert job.has_all_frames
    assert (request.path / PIECE.format(index - 1)).stat().st_size == 0
    assert [piece.number for piece in came] == list(range(1, len(came) + 1))
    assert len(came) > 1
    alone = pipeline.generate(frames, request.options).waveforms[0]
    torch.testing.assert_close(load_waveforms(request.path)[0], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("is_at_work", [False, True])
def test_a_process_that_is_killed_ends_that_of_the_worker(
    is_at_work: bool, ask: Callable[..., RunnerRequest]
) -> None:
    lost = threading.Event()
    worker = start(TINY, 1, lost.set)
    if is_at_work:
        wait_until(lambda: worker.status.state != "loading", 120)
        updates: list[ProgressUpdate] = []
        submit(worker, ask(**RAIN | {"num_inference_steps": 200}), updates)
        wait_until(lambda: any(update.step for update in updates), 60)
    else:
        wait_until(lambda: worker._devices)
    assert not lost.is_set()
    (device,) = worker._devices
    os.kill(device.pid, signal.SIGKILL)  # type: ignore[attr-defined]
    assert lost.wait(scale(20))
    worker.stop(scale(20))


def test_a_model_that_cannot_be_loaded_fails_with_its_code(tmp_path: Path) -> None:
    lost = threading.Event()
    worker = start(TINY._replace(weights=tmp_path, preset="xl"), 1, lost.set)
    worker._thread.join(scale(60))
    assert worker.status.state == "failed"
    assert worker.status.error_code in ("checkpoint_invalid", "config_invalid")
    (device,) = worker._devices
    wait_until(lambda: not psutil.pid_exists(device.pid))  # type: ignore[attr-defined]
    assert not lost.is_set()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_that_of_the_worker(number: signal.Signals) -> None:
    program = (
        "import sys, time\n"
        "from runners.settings import plan_model_environments\n"
        "from runners.worker.loading import ModelChoice\n"
        "from runners.worker.process_device import ProcessDevice\n"
        "(environment,) = plan_model_environments(1)\n"
        "device = ProcessDevice('cpu', ModelChoice('tiny', 'cpu'), environment)\n"
        "print(device.pid, flush=True); time.sleep(3600)"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        wait_until(lambda: child.num_threads() > 1)  # it imports PyTorch
        os.kill(parent.pid, number)
        wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_a_process_writes_where_its_threads_are() -> None:
    program = (
        "import sys\n"
        "from runners.settings import plan_model_environments\n"
        "from runners.worker.loading import ModelChoice\n"
        "from runners.worker.process_device import ProcessDevice\n"
        "(environment,) = plan_model_environments(1)\n"
        "device = ProcessDevice('cpu', ModelChoice('tiny', 'cpu'), environment)\n"
        "device.start(lambda: None)\n"
        "device.show_threads()\n"
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stderr is not None
        assert any("in serve" in line for line in parent.stderr)  # it waits for a message
        parent.stdin.close()


def test_a_stop_signal_alone_does_not_end_a_process(
    worker: Worker, ask: Callable[..., RunnerRequest]
) -> None:
    for device in worker._devices:
        os.kill(device.pid, signal.SIGTERM)  # type: ignore[attr-defined]
        os.kill(device.pid, signal.SIGINT)  # type: ignore[attr-defined]
    assert submit(worker, ask(**RAIN)).outcome.result(scale(60)).seeds == (3,)

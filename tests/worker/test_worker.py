"""The worker, with a real pipeline at toy width, and evaluations that the test starts."""

import gc
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from foley.errors import (
    BusyError,
    CancelledRequestError,
    CheckpointError,
    NotReadyError,
    RequestTimeoutError,
    ServerError,
)
from foley.gpu.encoder_batches import Cut, Encoders, Pieces
from foley.media.clock import num_latents
from foley.pipeline import FoleyPipeline
from foley.request import GenerationRequest
from foley.session import Session
from foley.sound_file import read_samples
from foley.types import NoPicture, Stage, VideoFrames, split_frames
from runners import metrics
from runners.handoff import (
    FRAMES,
    PIECE,
    WAVEFORMS,
    FrameCounts,
    announce_frames,
    hand_on_piece,
    load_waveforms,
    name_beginning,
    name_growing,
    read_announcement,
    read_expectation,
    save_frames,
)
from runners.messages import (
    FinishedPiece,
    OnProgressUpdate,
    ProgressUpdate,
    RunnerRequest,
    RunnerResult,
)
from runners.storage import is_storage_full
from runners.worker import calibration
from runners.worker.device import LocalDevice
from runners.worker.engine import Engine
from runners.worker.loading import freeze_gc
from runners.worker.running_job import RunningJob
from runners.worker.scheduler import Budget, Kind
from runners.worker.worker import Worker
from tests.patience import scale, wait_until
from tests.speech import babble
from tests.toys import toy_components, toy_frames, toy_pipeline

STEPS = 3
LARGE = {"num_variations": 4}  # more than an evaluation's tokens


class Gate:
    """Holds evaluations back until the test releases them, and records their sessions."""

    def __init__(self) -> None:
        self.steps = threading.Semaphore(0)
        self.begun = threading.Event()  # the first evaluation is held back, or has begun
        self.batches: list[tuple[int, ...]] = []  # the seeds of each, sorted

    def open(self) -> None:
        self.steps.release(1000)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    run = Engine.run

    def gated(
        self: Engine, kind: Kind, sessions: Sequence[Session], num_busy: int = 1
    ) -> list[Exception | None]:
        if kind is Stage.SAMPLE:
            gate.batches.append(tuple(sorted(session.seeds[0] for session in sessions)))
            gate.begun.set()
            assert gate.steps.acquire(timeout=scale(20))
        return run(self, kind, sessions, num_busy)

    monkeypatch.setattr(Engine, "run", gated)
    return gate


def start(
    capacity: int = 2,
    pipeline: FoleyPipeline | None = None,
    num_devices: int = 1,
    pipelines: Sequence[FoleyPipeline] = (),
) -> Worker:
    pipelines = pipelines or [pipeline or toy_pipeline()] * num_devices
    worker = Worker(lambda: [LocalDevice(one) for one in pipelines], capacity=capacity)
    while worker.status.state == "loading":
        time.sleep(0.01)
    assert worker.status.state == "ready"
    return worker


def submit(
    worker: Worker, request: RunnerRequest, on_update: OnProgressUpdate = lambda update: None
) -> "Future[RunnerResult]":
    """The outcome of a request whose frames are complete already."""
    job = worker.admit(request, on_update)
    counts = read_announcement(request.path)
    assert counts is not None
    worker.queue(job, counts)
    return job.outcome


def end(worker: Worker, gate: Gate) -> None:
    """Stop the worker and wait for its threads, which would crash at the end of the process."""
    worker.stop(0)
    gate.open()
    worker._thread.join(scale(20))
    assert not worker._thread.is_alive()


@pytest.fixture(autouse=True)
def budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation takes three of the smallest requests."""
    measured = (
        Budget(tokens=3 * 64),
        {Stage.ENCODE: 0.01, Stage.SAMPLE: 1e-4, Stage.DECODE_AUDIO: 1e-4},
    )
    monkeypatch.setattr(calibration, "measure", lambda pipeline: measured)


@pytest.fixture
def worker(gate: Gate) -> Iterator[Worker]:
    worker = start()
    yield worker
    end(worker, gate)


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., RunnerRequest]:
    def make(
        name: str,
        *,
        timeout_seconds: float = 60,
        num_sync: int = 16,
        priority: str = "interactive",
        **options: object,
    ) -> RunnerRequest:
        folder = tmp_path / name
        folder.mkdir()
        announce_frames(save_frames(toy_frames(num_sync, seed=ord(name[0])), folder), folder)
        options = {"num_inference_steps": STEPS, "seed": ord(name[0])} | options
        return RunnerRequest(
            id=name,
            folder=str(folder),
            options=GenerationRequest.parse(**options),
            timeout_seconds=timeout_seconds,
            priority=priority,  # type: ignore[arg-type]
        )

    return make


def value(metric: object) -> float:
    """The value of a gauge."""
    ((sample,),) = (family.samples for family in metric.collect())  # type: ignore[attr-defined]
    return sample.value


def test_the_worker_saves_waveforms_and_describes_them(
    worker: Worker, gate: Gate, job: Callable[..., RunnerRequest]
) -> None:
    gate.open()
    asked = job("a", seed=4, num_variations=2)
    started = time.monotonic()
    made = submit(worker, asked).result(scale(10))
    assert 0 < made.device_seconds < time.monotonic() - started
    assert made.seeds == (4, 5)
    assert made.duration_seconds == 0.64
    assert list(made.timings) == ["queue", "encode", "sample", "decode_audio"]
    alone = toy_pipeline().generate(toy_frames(16, seed=ord("a")), asked.options)
    # Measured: equal.
    torch.testing.assert_close(load_waveforms(asked.path)[0], alone.waveforms[0], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_request_that_avoids_speech_samples_again_beside_another(
    gate: Gate, job: Callable[..., RunnerRequest]
) -> None:
    class SpeakingPipeline(FoleyPipeline):
        """A model whose every sound is speech."""

        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            voice = babble(960 * latents.shape[-1] / 48_000 + 0.01)[: 960 * latents.shape[-1]]
            return torch.from_numpy(voice)[None, None]

    worker = start(pipeline=SpeakingPipeline(toy_components(), torch.device("cpu")))
    gate.open()
    updates: list[ProgressUpdate] = []
    try:
        asked = job("a", seed=4, avoid_speech="retry", max_retries=2)
        retried, other = submit(worker, asked, updates.append), submit(worker, job("b"))
        made = retried.result(scale(20))
        assert other.result(scale(20)).seeds == (ord("b"),)
    finally:
        end(worker, gate)
    assert made.seeds == (4,)  # no attempt is cleaner
    assert made.speech_seconds[0] > 0.3
    assert "Of 3 attempts" in made.notices[-1]
    steps = [update.step for update in updates if update.stage is Stage.SAMPLE]
    assert steps.count(STEPS - 1) == 3
    assert [sound.shape for sound in load_waveforms(asked.path)] == [(1, 30_720)]


def test_a_request_without_a_clip_needs_no_frames(
    worker: Worker, gate: Gate, job: Callable[..., RunnerRequest]
) -> None:
    gate.open()
    asked = job("a", prompt="rain", duration_seconds=0.5)
    (asked.path / FRAMES).unlink()
    made = submit(worker, asked).result(scale(10))
    assert made.duration_seconds == 0.5
    alone = toy_pipeline().generate(NoPicture(duration_seconds=0.5), asked.options)
    # Measured: equal.
    torch.testing.assert_close(load_waveforms(asked.path)[0], alone.waveforms[0], rtol=0, atol=1e-5)


def test_updates_report_every_stage_and_step(
    worker: Worker, gate: Gate, job: Callable[..., RunnerRequest]
) -> None:
    gate.open()
    updates: list[ProgressUpdate] = []
    submit(worker, job("a", solver="heun"), updates.append).result(scale(10))
    assert updates == [
        ProgressUpdate(stage="queue", queue_position=0),
        ProgressUpdate(stage=Stage.ENCODE),
        *(ProgressUpdate(stage="sample", step=step, num_steps=STEPS) for step in range(STEPS + 1)),
        ProgressUpdate(stage="decode_audio"),
    ]


def test_requests_join_and_leave_between_evaluations(
    worker: Worker, gate: Gate, job: Callable[..., RunnerRequest]
) -> None:
    first = submit(worker, job("a", num_inference_steps=8))
    assert gate.begun.wait(scale(10))
    second = submit(worker, job("b", num_inference_steps=2, num_sync=29, guidance_scale=1))
    gate.open()
    assert second.result(scale(10))
    assert first.result(scale(10))
    a, b = ord("a"), ord("b")
    assert gate.batches[0] == (a,)
    assert gate.batches.count((a, b)) == 2
    assert gate.batches[-1] == (a,)
    assert len(gate.batches) == 8


def test_a_gpu_is_given_its_next_action_while_it_is_at_work_on_one(
    gate: Gate, job: Callable[..., RunnerRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Semaphore(0)
    launched: list[Engine] = []
    settled: list[Engine] = []

    def mark_end(engine: Engine) -> Callable[[], None]:
        def wait() -> None:
            assert done.acquire(timeout=scale(20))
            settled.append(engine)

        launched.append(engine)
        return wait

    monkeypatch.setattr(Engine, "mark_end", mark_end)
    worker = start()
    gate.open()
    try:
        outcome = submit(worker, job("a", num_inference_steps=4))
        for num_settled in range(4):
            wait_until(lambda: len(launched) == num_settled + 2)  # noqa: B023 - called at once
            assert len(settled) == num_settled
            assert not outcome.done()
            done.release()
        done.release(1000)
        assert outcome.result(scale(10)).device_seconds > 0
        assert len(settled) == len(launched)
        assert worker.measure_longest_action(time.monotonic()) == 0
    finally:
        done.release(1000)
        end(worker, gate)


def test_waiting_requests_learn_how_many_are_before_them(
    gate: Gate, job: Callable[..., RunnerRequest]
) -> None:
    worker = start(capacity=4)
    running = submit(worker, job("a", **LARGE))
    assert gate.begun.wait(scale(10))
    updates: dict[str, list[ProgressUpdate]] = {"b": [], "c": []}
    for name, reported in updates.items():
        submit(worker, job(name, **LARGE), reported.append)
    positions = {
        name: [update.queue_position for update in reported] for name, reported in updates.items()
    }
    assert positions == {"b": [1], "c": [2]}
    assert value(metrics.QUEUE_DEPTH) == 2
    assert value(metrics.RUNNING) == 1
    worker.cancel("a")
    gate.steps.release(1)
    with pytest.raises(CancelledRequestError):
        running.result(scale(10))
    wait_until(lambda: updates["c"][-1].queue_position == 1)
    end(worker, gate)


def test_a_cancelled_job_ends_at_its_next_step_and_the_others_continue(
    worker: Worker, gate: Gate, job: Callable[..., RunnerRequest]
) -> None:
    cancelled = submit(worker, job("a"))
    other = submit(worker, job("b"))
    assert gate.begun.wait(scale(10))
    assert worker.cancel("a")
    assert not worker.cancel("a")
    assert not cancelled.done()
    gate.steps.release(1)
    with pytest.raises(CancelledRequestError):
        cancelled.result(scale(10))
    gate.open()
    assert other.result(scale(10))
    assert (ord("a"),) not in gate.batches[1:]
    assert (ord("a"), ord("b")) not in gate.batches[1:]
    assert not worker.cancel("b")


def test_a_cancelled_job_frees_its_memory(
    worker: Worker, gate: Gate, job: Callable[..., RunnerRequest]
) -> None:
    cancelled = submit(worker, job("a"))
    assert gate.begun.wait(scale(10))
    (running,) = worker._list_jobs()
    session = weakref.ref(worker._devices[0].sessions[running.serial].session)
    assert session() is not None
    worker.cancel("a")
    gate.steps.release(1)
    with pytest.raises(CancelledRequestError):
        cancelled.result(scale(10))
    wait_until(lambda: session() is None)  # the engine releases it a moment later


def test_a_waiting_job_leaves_at_once_when_it_is_cancelled(
    gate: Gate, job: Callable[..., RunnerRequest]
) -> None:
    worker = start(capacity=2)
    submit(worker, job("a", **LARGE))
    assert gate.begun.wait(scale(10))
    for name in "bcde":
        waiting = submit(worker, job(name, **LARGE))
        with pytest.raises(BusyError):
            submit(worker, job(f"{name}-too-many"))
        assert worker.cancel(name)
        assert isinstance(waiting.exception(0), CancelledRequestError)
        assert not worker.cancel(name)
        assert value(metrics.QUEUE_DEPTH) == 0
    end(worker, gate)


def test_cancelling_an_outcome_frees_its_place(
    worker: Worker, gate: Gate, job: Callable[..., RunnerRequest]
) -> None:
    submit(worker, job("a", **LARGE))
    assert gate.begun.wait(scale(10))
    assert submit(worker, job("b", **LARGE)).cancel()
    last = submit(worker, job("c"))
    gate.open()
    assert last.result(scale(20))


@pytest.mark.slow
def test_late_jobs_free_their_places_whether_running_or_waiting(
    worker: Worker, gate: Gate, job: Callable[..., RunnerRequest]
) -> None:
    seconds = scale(0.5)  # the first evaluation must begin before they are over
    running = submit(worker, job("a", timeout_seconds=seconds))
    assert gate.begun.wait(scale(10))
    waiting = submit(worker, job("b", timeout_seconds=0))
    submit(worker, job("c", timeout_seconds=0))  # in the place of b
    assert isinstance(waiting.exception(0), RequestTimeoutError)
    time.sleep(seconds)
    assert not running.done()
    gate.steps.release(1)
    assert isinstance(running.exception(scale(10)), RequestTimeoutError)
    gate.open()
    assert submit(worker, job("d")).result(scale(10))


def test_a_late_job_ends_while_nothing_runs(
    worker: Worker, gate: Gate, job: Callable[..., RunnerRequest]
) -> None:
    outcome = submit(worker, job("a", timeout_seconds=0))
    assert isinstance(outcome.exception(scale(10)), RequestTimeoutError)
    assert gate.batches == []


def test_more_jobs_than_the_capacity_are_refused_with_a_time_to_try_again(
    worker: Worker, gate: Gate, job: Callable[..., RunnerRequest]
) -> None:
    running = [submit(worker, job(name)) for name in "ab"]
    with pytest.raises(BusyError) as caught:
        submit(worker, job("c"))
    assert caught.value.retry_after_seconds is not None
    assert 0 < caught.value.retry_after_seconds < 10
    gate.open()
    assert all(future.result(scale(10)) for future in running)
    assert submit(worker, job("d")).result(scale(10))


def test_an_unexpected_error_fails_only_its_own_job(
    worker: Worker, gate: Gate, job: Callable[..., RunnerRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = Session.advance

    def faulty(self: Session, velocity: torch.Tensor) -> None:
        if self.request.prompt == "bug" and self.step == 1:
            raise ZeroDivisionError
        advance(self, velocity)

    monkeypatch.setattr(Session, "advance", faulty)
    failing, other = submit(worker, job("a", prompt="bug")), submit(worker, job("b"))
    gate.open()
    with pytest.raises(ZeroDivisionError):
        failing.result(scale(10))
    assert other.result(scale(10))
    assert submit(worker, job("c")).result(scale(10))


def test_a_job_that_is_being_decoded_holds_a_place_until_it_is_dropped(
    worker: Worker, gate: Gate, job: Callable[..., RunnerRequest]
) -> None:
    gate.open()
    updates: list[ProgressUpdate] = []
    first, second = (worker.admit(job(name), updates.append) for name in "ab")
    assert value(metrics.QUEUE_DEPTH) == 2
    with pytest.raises(BusyError):
        worker.admit(job("c"))
    assert updates == []  # nothing waits for a device yet
    worker.drop(first, CancelledRequestError("the request was given up"))
    assert isinstance(first.outcome.exception(0), CancelledRequestError)
    assert worker.cancel("b")
    assert isinstance(second.outcome.exception(0), CancelledRequestError)
    assert value(metrics.QUEUE_DEPTH) == 0
    assert submit(worker, job("d")).result(scale(10))
    assert gate.batches == [(ord("d"),)] * STEPS


def test_a_job_that_is_late_while_it_is_being_decoded_ends_by_itself(
    worker: Worker, gate: Gate, job: Callable[..., RunnerRequest]
) -> None:
    late = worker.admit(job("a", timeout_seconds=0.05))
    assert isinstance(late.outcome.exception(scale(10)), RequestTimeoutError)
    assert value(metrics.QUEUE_DEPTH) == 0


def test_frames_of_a_job_that_has_left_are_ignored(
    worker: Worker, gate: Gate, job: Callable[..., RunnerRequest]
) -> None:
    gate.open()
    left = worker.admit(job("a"))
    worker.cancel("a")
    worker.queue(left, FrameCounts(5, 16))
    assert submit(worker, job("b")).result(scale(10))
    assert gate.batches == [(ord("b"),)] * STEPS


def test_missing_frames_fail_only_their_own_job(
    worker: Worker, gate: Gate, job: Callable[..., RunnerRequest]
) -> None:
    gate.open()
    broken, whole = job("a"), job("b")
    outcome = submit(worker, broken)
    (broken.path / "frames.safetensors").unlink()
    assert submit(worker, whole).result(scale(10))
    assert outcome.done()


def hand_on(frames: VideoFrames, folder: Path, num_pieces: int | None = None) -> None:
    """Hand the first pieces of a long clip on, or all; waits while the worker is behind."""
    stream = split_frames(frames)
    index = 0
    while stream.facts is None and index != num_pieces:
        hand_on_piece(replace(stream.read(), expected_seconds=16.0), folder, index)
        index += 1


def submit_long(worker: Worker, request: RunnerRequest) -> RunningJob:
    """A request whose clip is being decoded."""
    (request.path / FRAMES).unlink()
    job = worker.admit(request)
    expected_seconds = read_expectation(request.path)
    assert expected_seconds is not None
    worker.queue_long(job, expected_seconds)
    return job


@pytest.mark.slow
def test_a_long_clip_is_encoded_while_it_is_decoded(
    worker: Worker, gate: Gate, job: Callable[..., RunnerRequest]
) -> None:
    gate.open()
    # It is longer than it states, and its last frames complete no segment.
    frames, asked = toy_frames(376 + 96 + 5), job("a", num_inference_steps=1)
    hand_on(frames, asked.path, num_pieces=1)
    long = submit_long(worker, asked)
    first = asked.path / PIECE.format(0)
    wait_until(lambda: first.stat().st_size == 0)  # read, and let go
    wait_until(lambda: long.starved)
    # It waits for frames, and nothing waits for it.
    assert submit(worker, job("b")).result(scale(20))
    assert not long.outcome.done()
    hand_on(frames, asked.path)  # leaves out the one that was handed on before
    while not long.outcome.done():
        worker.feed(long)
        time.sleep(0.01)
    assert long.outcome.result().duration_seconds == num_latents(len(frames.sync)) / 50
    assert {path.stat().st_size for path in asked.path.glob("frames-*")} == {0}
    alone = toy_pipeline().generate(frames, asked.options)
    # Measured: equal.
    torch.testing.assert_close(load_waveforms(asked.path)[0], alone.waveforms[0], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_beginning_of_a_short_sound_comes_before_its_end(
    worker: Worker, gate: Gate, job: Callable[..., RunnerRequest]
) -> None:
    gate.open()
    options = {"prompt": "rain", "duration_seconds": 6, "num_inference_steps": 1}
    asked = job("a", **options).model_copy(update={"early": True})
    came: list[FinishedPiece] = []
    ended: list[bool] = []

    def note(piece: FinishedPiece) -> None:
        came.append(piece)
        ended.append(running.outcome.done())

    running = worker.admit(asked, on_piece=note)
    sound = NoPicture(duration_seconds=6)
    worker.queue(running, FrameCounts(sound.num_visual, sound.num_sync))
    assert running.outcome.result(scale(20)).duration_seconds == 6
    ((piece,), (was_ended,)) = came, ended
    assert not was_ended
    assert piece.is_beginning
    assert (piece.start_seconds, piece.duration_seconds) == (0, 2.56)
    (made,) = load_waveforms(asked.path)
    beginning = read_samples(name_beginning(asked.path, 1), 0, round(2.56 * 48_000))
    same = made[:, : beginning.shape[-1]]
    torch.testing.assert_close(beginning, same, rtol=0, atol=1e-5)  # measured: 4e-7 with tiny
    assert came == [piece]
    plain = submit(worker, job("b", **options))
    assert plain.result(scale(20)).duration_seconds == 6
    assert not name_beginning(asked.path.parent / "b", 1).exists()


@pytest.mark.slow
def test_pieces_of_a_long_sound_come_before_its_end(
    worker: Worker, gate: Gate, job: Callable[..., RunnerRequest]
) -> None:
    asked = job("a", prompt="rain", duration_seconds=17, num_inference_steps=2)
    came: list[FinishedPiece] = []
    updates: list[ProgressUpdate] = []
    long = worker.admit(asked, updates.append, came.append)
    sound = NoPicture(duration_seconds=17)
    worker.queue(long, FrameCounts(sound.num_visual, sound.num_sync))
    gate.steps.release(2)  # the first group is one window
    wait_until(lambda: bool(came))
    assert not long.outcome.done()
    assert submit_beside(worker, gate, job("b", num_inference_steps=1)).result(scale(20))
    gate.open()
    assert long.outcome.result(scale(20)).duration_seconds == 17
    assert [piece.number for piece in came] == [1, 2]
    starts = [piece.start_seconds for piece in came]
    assert starts == [0, came[0].duration_seconds]
    (made,) = load_waveforms(asked.path)
    (whole,) = toy_pipeline().generate(sound, asked.options).waveforms
    torch.testing.assert_close(made, whole, rtol=0, atol=1e-5)  # measured: equal
    assert not (asked.path / WAVEFORMS).exists()  # the sound lies there once, as it came
    steps = [update.step for update in updates if update.step is not None]
    assert steps == sorted(steps)
    assert {update.num_steps for update in updates if update.step is not None} == {4}


@pytest.mark.slow
def test_a_long_sound_that_is_cancelled_leaves_after_the_window_that_is_evaluated(
    worker: Worker, gate: Gate, job: Callable[..., RunnerRequest]
) -> None:
    asked = job("a", prompt="rain", duration_seconds=40, num_inference_steps=3)
    came: list[FinishedPiece] = []
    long = worker.admit(asked, on_piece=came.append)
    sound = NoPicture(duration_seconds=40)
    worker.queue(long, FrameCounts(sound.num_visual, sound.num_sync))
    gate.steps.release(4)
    wait_until(lambda: len(gate.batches) == 5)  # in the second group, of three windows
    assert len(came) == 1
    assert worker.cancel("a")
    assert not long.outcome.done()
    gate.open()
    assert isinstance(long.outcome.exception(scale(10)), CancelledRequestError)
    assert len(gate.batches) == 5
    assert len(came) == 1
    assert worker._list_jobs() == ()
    assert worker._devices[0].sessions == {}


def test_a_disk_that_is_full_when_a_piece_of_sound_comes_fails_only_its_own_job(
    worker: Worker, gate: Gate, job: Callable[..., RunnerRequest]
) -> None:
    gate.open()
    asked = job("a", prompt="rain", duration_seconds=17, num_inference_steps=1)
    name_growing(asked.path, 1).symlink_to("/dev/full")
    long = worker.admit(asked)
    sound = NoPicture(duration_seconds=17)
    worker.queue(long, FrameCounts(sound.num_visual, sound.num_sync))
    assert is_storage_full(long.outcome.exception(scale(20)))
    assert submit(worker, job("b")).result(scale(20))


def submit_beside(worker: Worker, gate: Gate, request: RunnerRequest) -> "Future[RunnerResult]":
    """The outcome of a short request; a long one gets no more steps than that needs."""
    outcome = submit(worker, request)

    def has_begun_more(than: int) -> bool:
        return outcome.done() or len(gate.batches) > than

    while not outcome.done():  # the next step may be of the long request
        num_begun = len(gate.batches)
        gate.steps.release()
        wait_until(partial(has_begun_more, num_begun))
    return outcome


def test_a_long_clip_that_is_cancelled_while_it_waits_for_frames_leaves_at_once(
    worker: Worker, gate: Gate, job: Callable[..., RunnerRequest]
) -> None:
    gate.open()
    asked = job("a")
    hand_on(toy_frames(376 + 96), asked.path, num_pieces=1)
    long = submit_long(worker, asked)
    wait_until(lambda: long.starved)
    assert worker.cancel("a")
    assert isinstance(long.outcome.exception(scale(5)), CancelledRequestError)
    assert worker._list_jobs() == ()


def test_a_piece_of_frames_that_cannot_be_read_fails_only_its_own_job(
    worker: Worker, gate: Gate, job: Callable[..., RunnerRequest]
) -> None:
    gate.open()
    asked = job("a")
    hand_on(toy_frames(376 + 96), asked.path, num_pieces=1)
    (asked.path / PIECE.format(0)).write_bytes(b"no frames")
    long = submit_long(worker, asked)
    assert long.outcome.exception(scale(20)) is not None
    assert submit(worker, job("b")).result(scale(20))


def test_stopping_cancels_running_and_waiting_jobs(
    worker: Worker, gate: Gate, job: Callable[..., RunnerRequest]
) -> None:
    running = submit(worker, job("a", **LARGE))
    assert gate.begun.wait(scale(10))
    waiting = submit(worker, job("b", **LARGE))
    worker.stop(0)
    assert isinstance(waiting.exception(0), CancelledRequestError)
    gate.steps.release(1)
    assert isinstance(running.exception(scale(10)), CancelledRequestError)
    with pytest.raises(NotReadyError):
        submit(worker, job("c"))


def test_all_devices_share_one_queue(gate: Gate, job: Callable[..., RunnerRequest]) -> None:
    worker = start(capacity=8, num_devices=2)
    running = [submit(worker, job(name, **LARGE)) for name in "abc"]
    wait_until(lambda: value(metrics.RUNNING) == 2 and len(gate.batches) == 2)
    assert {seeds for batch in gate.batches for seeds in batch} == {ord("a"), ord("b")}
    end(worker, gate)
    assert all(isinstance(f.exception(scale(10)), CancelledRequestError) for f in running)


@pytest.mark.slow
def test_devices_may_encode_clips_in_different_numbers_of_pieces(
    gate: Gate, job: Callable[..., RunnerRequest]
) -> None:
    finely, parts = FoleyPipeline(toy_components(), torch.device("cpu")), toy_components()
    towers = parts.synchformer, parts.vision, parts.text
    finely._encoders = Encoders(*towers, finely.device, cut=Cut(Pieces(4), Pieces(1)))
    pipelines = [toy_pipeline(), finely]
    assert [pipeline.count_pieces(10, 32) for pipeline in pipelines] == [1 + 1 + 1, 3 + 3 + 1]
    worker = start(capacity=8, pipelines=pipelines)
    running = [submit(worker, job(name, num_sync=32, **LARGE)) for name in "abcd"]
    wait_until(lambda: len(gate.batches) == 2)  # both devices are at work
    gate.open()
    assert [outcome.exception(scale(20)) for outcome in running] == [None] * 4
    end(worker, gate)


def test_engines_that_share_a_cpu_share_its_threads(
    gate: Gate, job: Callable[..., RunnerRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = (
        Budget(tokens=64, lanes=2),
        {Stage.ENCODE: 0.01, Stage.SAMPLE: 1e-4, Stage.DECODE_AUDIO: 1e-4},
    )
    monkeypatch.setattr(calibration, "measure", lambda pipeline: measured)
    seen: list[tuple[int, int]] = []
    encode = Session.encode

    def counting(self: Session) -> None:
        seen.append((self.seeds[0], torch.get_num_threads()))
        encode(self)

    monkeypatch.setattr(Session, "encode", counting)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        worker = start(capacity=8)
        seen.clear()
        submit(worker, job("a", **LARGE))
        assert gate.begun.wait(scale(10))
        assert {count for _, count in seen} == {2}
        submit(worker, job("b", **LARGE))
        wait_until(lambda: len(gate.batches) == 2)
        assert {count for seed, count in seen if seed == ord("b")} == {1}
        end(worker, gate)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_every_job_of_a_random_mix_has_an_outcome_and_frees_its_place(
    job: Callable[..., RunnerRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = (
        Budget(tokens=300, lanes=2),
        {Stage.ENCODE: 0.01, Stage.SAMPLE: 1e-4, Stage.DECODE_AUDIO: 1e-4},
    )
    monkeypatch.setattr(calibration, "measure", lambda pipeline: measured)
    worker, choice = start(capacity=10, num_devices=2), random.Random(0)
    outcomes, refused = [], 0
    for index in range(60):
        asked = job(
            f"{index}",
            num_sync=choice.choice([16, 24, 40]),
            num_inference_steps=choice.randint(1, 6),
            guidance_scale=choice.choice([1.0, 4.5]),
            num_variations=choice.choice([1, 1, 3]),
            timeout_seconds=choice.choice([0.05, 0.3, 60, 60]),
            priority=choice.choice(["interactive", "bulk"]),
        )
        try:
            outcomes.append(submit(worker, asked))
        except BusyError:
            refused += 1
        time.sleep(choice.uniform(0, 0.03))
        if choice.random() < 0.3:
            worker.cancel(f"{choice.randint(0, index)}")
    kinds = Counter(type(outcome.exception(scale(20))).__name__ for outcome in outcomes)
    assert kinds.keys() <= {"NoneType", "CancelledRequestError", "RequestTimeoutError"}
    assert kinds["NoneType"] > 5
    assert kinds["CancelledRequestError"] + kinds["RequestTimeoutError"] + refused > 5
    assert value(metrics.QUEUE_DEPTH) == value(metrics.RUNNING) == 0
    worker.stop(scale(20))
    assert not worker._thread.is_alive()


@pytest.mark.parametrize(
    ("error", "code"),
    [(CheckpointError("no file"), "checkpoint_invalid"), (KeyError("bug"), ServerError.code)],
)
def test_the_status_has_the_code_of_a_failed_load(
    error: Exception, code: str, job: Callable[..., RunnerRequest]
) -> None:
    def load() -> list[LocalDevice]:
        raise error

    worker = Worker(load, capacity=1)
    worker._thread.join(scale(10))
    assert worker.status.state == "failed"
    assert worker.status.error_code == code
    with pytest.raises(NotReadyError):
        submit(worker, job("a"))


def test_a_model_that_cannot_be_described_has_failed() -> None:
    nameless = FoleyPipeline(toy_components(), torch.device("cpu"))
    nameless.licence = None  # type: ignore[assignment]
    worker = Worker(lambda: [LocalDevice(nameless)], capacity=1)
    worker._thread.join(scale(20))
    assert worker.status.state == "failed"


@pytest.mark.slow
def test_a_warm_model_is_frozen_before_the_first_job() -> None:
    gc.unfreeze()  # what the tests import; it is frozen again below
    frozen, calls = gc.get_freeze_count(), []

    def freeze() -> None:
        freeze_gc()
        calls.append((worker.status.state, gc.get_freeze_count()))

    worker = Worker(lambda: [LocalDevice(toy_pipeline())], capacity=1, freeze_gc=freeze)
    try:
        while worker.status.state == "loading":
            time.sleep(0.01)
        ((state, count),) = calls
    finally:
        worker.stop(scale(20))
    assert state == "loading"
    assert count > frozen + 10_000


@pytest.mark.slow
def test_a_device_failure_ends_the_process(
    job: Callable[..., RunnerRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = threading.Event()
    worker = Worker(lambda: [LocalDevice(toy_pipeline())], capacity=1, exit_process=dead.set)
    while worker.status.state == "loading":
        time.sleep(0.01)

    def broken(self: Engine, *_: object) -> list[Exception | None]:
        raise RuntimeError("the device fell off the bus")

    monkeypatch.setattr(Engine, "run", broken)
    submit(worker, job("a"))
    assert dead.wait(scale(10))

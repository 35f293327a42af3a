"""The parts that need no server: settings, statuses, files between processes, the worker."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from foley import errors as foley_errors
from foley.configs import TINY, Preset
from foley.errors import (
    CheckpointError,
    ConfigError,
    FoleyError,
    NoFramesError,
    ServerError,
    VideoTooLargeError,
)
from foley.licences import OWN
from foley.media.source import MediaLimits
from foley.pipeline import Progress
from foley.request import GenerationRequest
from foley.types import Generation, VideoFrames
from runners import errors as runner_errors
from runners import metrics
from runners.answers import write_sounds
from runners.errors import (
    BusyError,
    CancelledRequestError,
    NotReadyError,
    RequestTimeoutError,
    revive,
)
from runners.exchange import (
    Scratch,
    load_frames,
    load_waveforms,
    remove_leftovers,
    save_frames,
    save_waveforms,
)
from runners.messages import Job, Made
from runners.orders import GenerationForm, Order, accept_weights, acceptable
from runners.settings import load_settings
from runners.status import status_of
from runners.worker import Worker
from tests.media.clips import write_clip
from tests.service.server import ROOT

ERRORS = [
    kind
    for module in (foley_errors, runner_errors)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, FoleyError)
]


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("FOLEY_PRESET", "FOLEY_DEVICE", "FOLEY_SCRATCH_DIR"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_settings_come_from_the_environment(clean_environment: pytest.MonkeyPatch) -> None:
    clean_environment.setenv("FOLEY_MAX_UPLOAD_BYTES", "2MiB")
    clean_environment.setenv("FOLEY_SCRATCH_DIR", "/somewhere")
    clean_environment.setenv("FOLEY_REQUIRE_GPU", "0")  # the tests' own, known here
    settings = load_settings()
    assert settings.max_upload_bytes == 2 * 1024**2
    assert settings.scratch_root == Path("/somewhere")
    assert settings.preset == "auto"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("FOLEY_MAX_UPLOAD_BITES", "1", "did you mean FOLEY_MAX_UPLOAD_BYTES"),
        ("FOLEY_DEVICE", "tpu", "device"),
        ("FOLEY_REQUEST_TIMEOUT_SECONDS", "0", "request_timeout_seconds"),
        ("FOLEY_MAX_CLIP_SECONDS", "16", "max_clip_seconds"),
    ],
)
def test_wrong_settings_are_named(
    clean_environment: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    clean_environment.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        load_settings()


@pytest.mark.parametrize("kind", ERRORS)
def test_whose_fault_decides_the_class_of_the_status(kind: type[FoleyError]) -> None:
    status = status_of(kind).http
    assert status // 100 == (4 if issubclass(kind, foley_errors.RequestError) else 5)


def test_codes_are_unique_and_revive_their_class() -> None:
    assert len({kind.code for kind in ERRORS}) == len(set(ERRORS))
    error = revive(NoFramesError.code, "none")
    assert type(error) is NoFramesError
    assert str(error) == "none"


def test_grpc_codes_exist() -> None:
    known = {
        "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "CANCELLED", "INTERNAL", "UNAVAILABLE",
        "DEADLINE_EXCEEDED", "UNAUTHENTICATED", "NOT_FOUND",
    }  # fmt: skip
    assert {status_of(kind).grpc for kind in ERRORS} <= known


@pytest.mark.parametrize(
    ("accept", "best"),
    [
        ("*/*", "video/mp4"),
        ("audio/*", "audio/wav"),
        ("audio/wav;q=0.1, video/webm;q=0.2", "video/webm"),
        ("AUDIO/FLAC", "audio/flac"),
        ("audio/flac;q=0.5, audio/x-wav", "audio/wav"),
        ("application/zip", "application/zip"),
        ("audio/wav;q=x", None),
        ("audio/wav;q=1_0", None),
        ("", "video/mp4"),
        (" , ", "video/mp4"),
        # The most specific range counts, whatever the order.
        ("video/mp4;q=0, */*", "video/quicktime"),
        ("*/*, video/mp4;q=0", "video/quicktime"),
        ("video/*;q=0, */*;q=0.1", "audio/wav"),
        ("*/*;q=0.9, audio/*;q=0.5, audio/flac;q=0.8, video/*;q=0.7", "application/zip"),
        ("*/*;q=0.1, video/*;q=0, audio/*;q=0, audio/flac;q=0.8", "audio/flac"),
        ("audio/x-wav;q=0, audio/*", "audio/flac"),
        ("*/*;q=0, video/webm;q=0.001", "video/webm"),
        ("*/*;q=0", None),
    ],
)
def test_accept_names_the_most_wanted(accept: str, best: str | None) -> None:
    assert next(iter(acceptable(accept_weights(accept))), None) == best


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name in ("seed", "num_inference_steps", "num_variations")
        for value in ("1_0", "1.0", "1e0", " 1", "1 ", "\u0661", "--1", "0x1", "1,0")
    ]
    + [("guidance_scale", value) for value in ("1_0", "1,5", " 2", "2 ", "\u0662", "0x2", "2.")],
)
def test_numbers_are_written_plainly(name: str, value: str) -> None:
    with pytest.raises(ValidationError, match="unable to parse"):
        GenerationForm.model_validate({name: value})


def test_plain_numbers_are_read() -> None:
    form = GenerationForm.model_validate(
        {"seed": "+7", "num_inference_steps": "010", "guidance_scale": "25e-1"}
    )
    assert (form.seed, form.num_inference_steps, form.guidance_scale) == (7, 10, 2.5)


def frames() -> VideoFrames:
    torch.manual_seed(0)
    return VideoFrames(
        visual=torch.randint(256, (8, 4, 4, 3), dtype=torch.uint8),
        sync=torch.randint(256, (25, 6, 6, 3), dtype=torch.uint8),
        num_picked=24,
        source_seconds=0.96,
        trimmed=True,
        notices=("one", 'a "second"'),
    )


def test_frames_cross_unchanged_and_the_folder_goes(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    with scratch.workspace() as folder:
        sent = frames()
        save_frames(sent, folder)
        received = load_frames(folder)
        for name in ("visual", "sync"):
            assert torch.equal(getattr(received, name), getattr(sent, name))
        for name in ("num_picked", "source_seconds", "trimmed", "notices"):
            assert getattr(received, name) == getattr(sent, name)
    assert list(scratch.folder.iterdir()) == []
    scratch.close()
    assert list(tmp_path.iterdir()) == []


def test_a_failing_request_leaves_no_folder(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)

    def fail() -> None:
        with scratch.workspace() as folder:
            (folder / "clip").write_bytes(b"bytes")
            raise NoFramesError("none")

    with pytest.raises(NoFramesError):
        fail()
    assert list(scratch.folder.iterdir()) == []
    scratch.close()


def test_leftovers_of_a_killed_process_are_removed_and_those_of_a_living_one_are_not(
    tmp_path: Path,
) -> None:
    program = (
        "import pathlib, sys, time; from runners.exchange import Scratch\n"
        "scratch = Scratch(pathlib.Path(sys.argv[1]))\n"
        "(scratch.folder / 'clip').write_bytes(b'x'); print('made', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert remove_leftovers(tmp_path) == []
        (clip,) = tmp_path.glob("foley-*/clip")
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    assert remove_leftovers(tmp_path) == [clip.parent]
    assert list(tmp_path.iterdir()) == []


def sounds_of(clip: Path, folder: Path, waveforms: torch.Tensor, **limits: int) -> None:
    request = GenerationRequest()
    order = Order(clip=clip, request=request, trim=False, format="mp4", zipped=False)
    made = Made(seeds=(1,), sample_rate=48_000, duration_seconds=1.0, timings={}, notices=())
    save_waveforms(waveforms, folder)
    write_sounds(order, folder, made, trimmed=False, limits=MediaLimits(**limits))


def test_what_is_not_finite_in_a_sound_is_not_the_callers_fault(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    with pytest.raises(FoleyError) as caught:
        sounds_of(clip, tmp_path, torch.full((1, 1, 48_000), float("nan")))
    assert status_of(caught.type).http == 500


def test_sounds_are_written_within_the_limits_of_the_settings(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.h264", container="h264")  # decoded for its timestamps
    sounds_of(clip, tmp_path, torch.zeros(1, 1, 48_000), max_pixels=6400)
    with pytest.raises(VideoTooLargeError):
        sounds_of(clip, tmp_path, torch.zeros(1, 1, 48_000), max_pixels=6399)


class StubPipeline:
    """Stands where the model would: takes a step whenever the test lets it."""

    preset: Preset = TINY
    trained = False
    description = "a stub"
    revision = ""
    licence = OWN

    def __init__(self) -> None:
        self.steps = threading.Semaphore(0)
        self.begun = threading.Event()

    def warm_up(self) -> None:
        pass

    def generate(
        self,
        frames: VideoFrames,
        request: GenerationRequest,
        on_progress: Callable[[object], None] | None = None,
    ) -> Generation:
        assert on_progress is not None
        self.begun.set()
        for step in range(request.num_inference_steps):
            self.steps.acquire(timeout=10)
            on_progress(Progress("sample", step, request.num_inference_steps))
        if request.prompt == "bug":
            raise ZeroDivisionError
        waveforms = torch.zeros(request.num_variations, 1, 960)
        return Generation(waveforms=waveforms, sample_rate=48_000, seeds=(request.seed or 0,))


@pytest.fixture
def stub() -> StubPipeline:
    return StubPipeline()


@pytest.fixture
def worker(stub: StubPipeline) -> Worker:
    worker = Worker(lambda: stub, capacity=2)
    while worker.status.state == "loading":
        pass
    return worker


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    def make(name: str, *, timeout_seconds: float = 60, **options: object) -> Job:
        folder = tmp_path / name
        folder.mkdir()
        save_frames(frames(), folder)
        request = GenerationRequest.parse(num_inference_steps=3, **options)
        return Job(id=name, folder=str(folder), request=request, timeout_seconds=timeout_seconds)

    return make


def depth() -> float:
    """Jobs that wait, as /metrics tells."""
    ((sample,),) = (metric.samples for metric in metrics.QUEUE_DEPTH.collect())
    return sample.value


def test_the_worker_leaves_waveforms_and_says_how(
    worker: Worker, stub: StubPipeline, job: Callable[..., Job]
) -> None:
    stub.steps.release(3)
    asked = job("a", seed=4, num_variations=2)
    made = worker.submit(asked).result(10)
    assert made.seeds == (4,)
    assert made.duration_seconds == 0.02
    assert list(made.timings) == ["queue"]
    assert load_waveforms(asked.path).shape == (2, 1, 960)
    worker.stop(10)


def test_a_cancelled_job_ends_at_its_next_step_and_the_next_one_runs(
    worker: Worker, stub: StubPipeline, job: Callable[..., Job]
) -> None:
    running, waiting = worker.submit(job("a")), worker.submit(job("b"))
    stub.begun.wait(10)
    assert worker.cancel("a")
    stub.steps.release(1)
    with pytest.raises(CancelledRequestError):
        running.result(10)
    stub.steps.release(3)
    assert waiting.result(10)
    assert not worker.cancel("a")
    worker.stop(10)


def test_a_cancelled_job_frees_its_place_in_the_queue_at_once(
    worker: Worker, stub: StubPipeline, job: Callable[..., Job]
) -> None:
    worker.submit(job("a"))
    stub.begun.wait(10)
    for name in "bcde":
        waiting = worker.submit(job(name))
        assert depth() == 1
        with pytest.raises(BusyError):
            worker.submit(job(f"{name}-too-many"))
        assert worker.cancel(name)
        assert isinstance(waiting.exception(0), CancelledRequestError)
        assert not worker.cancel(name)
        assert depth() == 0
    worker.stop(0)
    stub.steps.release(3)


def test_an_outcome_that_is_cancelled_frees_its_place_too(
    worker: Worker, stub: StubPipeline, job: Callable[..., Job]
) -> None:
    worker.submit(job("a"))
    stub.begun.wait(10)
    assert worker.submit(job("b")).cancel()
    assert depth() == 0
    last = worker.submit(job("c"))
    stub.steps.release(6)
    assert last.result(10)
    worker.stop(10)


def test_a_job_that_waited_too_long_frees_its_place(
    worker: Worker, stub: StubPipeline, job: Callable[..., Job]
) -> None:
    worker.submit(job("a"))
    stub.begun.wait(10)
    late = [worker.submit(job("b", timeout_seconds=0))]
    late.append(worker.submit(job("c", timeout_seconds=0)))  # in the place of b
    stub.steps.release(1)  # the step of a drops c
    for future in late:
        assert isinstance(future.exception(10), RequestTimeoutError)
    assert depth() == 0
    stub.steps.release(5)
    assert worker.submit(job("d")).result(10)
    worker.stop(10)


def test_a_late_job_ends_at_its_next_step(
    worker: Worker, stub: StubPipeline, job: Callable[..., Job]
) -> None:
    running = worker.submit(job("a", timeout_seconds=0.05))
    stub.begun.wait(10)
    threading.Event().wait(0.1)
    stub.steps.release(1)
    with pytest.raises(RequestTimeoutError):
        running.result(10)
    worker.stop(10)


def test_more_jobs_than_the_capacity_are_refused(
    worker: Worker, stub: StubPipeline, job: Callable[..., Job]
) -> None:
    running = [worker.submit(job(name)) for name in "ab"]
    with pytest.raises(BusyError):
        worker.submit(job("c"))
    stub.steps.release(6)
    assert all(future.result(10) for future in running)
    stub.steps.release(3)
    assert worker.submit(job("d")).result(10)
    worker.stop(10)


def test_a_bug_in_one_job_does_not_end_the_worker(
    worker: Worker, stub: StubPipeline, job: Callable[..., Job]
) -> None:
    stub.steps.release(6)
    with pytest.raises(ZeroDivisionError):
        worker.submit(job("a", prompt="bug")).result(10)
    assert worker.submit(job("b")).result(10)
    worker.stop(10)


def test_stopping_drops_what_runs_and_what_waits(
    worker: Worker, stub: StubPipeline, job: Callable[..., Job]
) -> None:
    running, waiting = worker.submit(job("a")), worker.submit(job("b"))
    stub.begun.wait(10)
    worker.stop(0)
    assert isinstance(waiting.exception(0), CancelledRequestError)
    stub.steps.release(1)
    assert isinstance(running.exception(10), CancelledRequestError)


@pytest.mark.parametrize(
    ("error", "code"),
    [(CheckpointError("no file"), "checkpoint_invalid"), (KeyError("bug"), ServerError.code)],
)
def test_a_failed_load_is_told(error: Exception, code: str, job: Callable[..., Job]) -> None:
    def load() -> StubPipeline:
        raise error

    worker = Worker(load, capacity=1)
    worker._thread.join(10)
    assert worker.status.state == "failed"
    assert worker.status.error_code == code
    with pytest.raises(NotReadyError):
        worker.submit(job("a"))


def test_a_model_that_cannot_be_described_has_failed() -> None:
    nameless = StubPipeline()
    nameless.preset = None  # type: ignore[assignment]
    worker = Worker(lambda: nameless, capacity=1)
    worker._thread.join(10)
    assert worker.status.state == "failed"

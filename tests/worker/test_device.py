"""What devices report to the worker, in one process and through a pipe."""

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from foley.configs import PRESETS
from foley.errors import ParameterError, ServerError
from foley.request import GenerationRequest
from foley.types import NoPicture, Stage
from runners.messages import RunnerRequest
from runners.worker import calibration, model_process
from runners.worker.device import LocalDevice
from runners.worker.engine import compute_size
from runners.worker.loading import ModelChoice
from runners.worker.process_device import ForgetBatchCall, ForgetCall, LaunchCall
from runners.worker.reports import Beginning, DeviceFacts, SessionState
from runners.worker.scheduler import Budget, Kind
from tests.patience import scale, wait_until
from tests.toys import toy_pipeline

RATES: dict[Kind, float] = {Stage.ENCODE: 0.01, Stage.SAMPLE: 1e-4, Stage.DECODE_AUDIO: 1e-4}
CUE = {"start_seconds": 5, "stop_seconds": 6, "prompt": "a door"}


@pytest.fixture
def begin(tmp_path: Path) -> Callable[..., Beginning]:
    def make(name: str, **options: object) -> Beginning:
        folder = tmp_path / name
        folder.mkdir()
        given = {"prompt": "rain", "duration_seconds": 1, "num_inference_steps": 2, "seed": 1}
        request = RunnerRequest(
            id=name,
            folder=str(folder),
            options=GenerationRequest.parse(**given | options),
            timeout_seconds=60,
        )
        return Beginning(request, is_streamed=False)

    return make


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> LocalDevice:
    """That of the process at the other end of `pipe`, or of this one."""
    measured = Budget(tokens=500, lanes=2), RATES
    monkeypatch.setattr(calibration, "measure", lambda pipeline: measured)
    return LocalDevice(toy_pipeline())


@pytest.fixture
def pipe(device: LocalDevice, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    """To a loop that executes actions, on a thread."""
    monkeypatch.setattr(model_process, "load_pipeline", lambda choice: toy_pipeline())
    monkeypatch.setattr(model_process, "freeze_gc", lambda: None)
    monkeypatch.setattr("runners.worker.device.LocalDevice", lambda pipeline: device)
    ours, theirs = multiprocessing.Pipe()

    def serve() -> None:
        with pytest.raises(EOFError):
            model_process.serve(theirs, ModelChoice("tiny", "cpu"))

    thread = threading.Thread(target=serve)
    thread.start()
    yield ours
    ours.close()
    thread.join(scale(10))
    assert not thread.is_alive()


def test_the_state_of_a_session_is_reported_after_each_action(
    device: LocalDevice, begin: Callable[..., Beginning]
) -> None:
    facts = device.start(lambda: None)
    (lane, _) = device.make_lanes(2)
    beginning = begin("a", duration_seconds=17)
    sound = NoPicture(duration_seconds=17)
    counts = sound.num_visual, sound.num_sync
    size = compute_size(beginning.request.options, *counts, facts.preset, facts.cut)
    states: list[SessionState] = []
    kind: Kind | None = Stage.ENCODE
    task: Beginning | None = beginning
    pieces: list[int] = []
    while kind is not None:
        report = lane.launch(kind, {7: task}, 1).reports[7]
        assert report.state is not None
        pieces += [piece.number for piece in report.pieces]
        states.append(report.state)
        kind, task = report.state.next_kind, None
    assert report.result is not None
    assert report.result.duration_seconds == 17
    assert pieces == [1, 2]
    kinds = [state.next_kind for state in states]
    assert kinds.count(Stage.SAMPLE) == size.num_evaluations
    assert kinds.count(Stage.DECODE_AUDIO) == size.num_sounds
    for state in states:
        assert (state.tokens > 0) == (state.next_kind is Stage.SAMPLE)
        assert (state.num_decoded > 0) == (state.next_kind is Stage.DECODE_AUDIO)
        assert state.tokens <= size.tokens
    assert [state.step for state in states[:-1]] == sorted(state.step for state in states[:-1])
    assert device.sessions.keys() == {7}
    device.forget(7)
    device.forget(7)
    assert not device.sessions


def ask(pipe: Connection, kind: Kind, tasks: dict[int, Beginning | None]) -> Any:
    """The answer to an action."""
    pipe.send(LaunchCall(kind, tasks))
    assert pipe.poll(scale(20))
    return pipe.recv()


def test_a_process_executes_actions_and_forgets_requests(
    pipe: Connection, device: LocalDevice, begin: Callable[..., Beginning]
) -> None:
    facts = pipe.recv()
    assert isinstance(facts, DeviceFacts)
    assert facts.budget.lanes == 1  # it has one thread
    for serial in (1, 2):
        launch = ask(pipe, Stage.ENCODE, {serial: begin(str(serial), seed=serial)})
        assert launch.is_done
    launch = ask(pipe, Stage.SAMPLE, {1: None, 2: None})
    assert [report.state.step for report in launch.reports.values()] == [1, 1]
    assert device.sessions.keys() == {1, 2}
    pipe.send(ForgetCall(1))
    pipe.send(ForgetBatchCall())
    wait_until(lambda: device.sessions.keys() == {2})
    launch = ask(pipe, Stage.SAMPLE, {2: None})
    assert launch.reports[2].state.next_kind is Stage.DECODE_AUDIO
    launch = ask(pipe, Stage.DECODE_AUDIO, {2: None})
    assert launch.reports[2].result.seeds == (2,)


def test_errors_pass_through_the_pipe_as_what_callers_get(
    pipe: Connection, begin: Callable[..., Beginning]
) -> None:
    pipe.recv()
    launch = ask(pipe, Stage.ENCODE, {1: begin("late", cues=[CUE])})
    assert isinstance(launch.reports[1].failure, ParameterError)
    request = begin("gone").request
    options = request.options.model_copy(update={"duration_seconds": None})
    gone = Beginning(request.model_copy(update={"options": options}), is_streamed=False)
    launch = ask(pipe, Stage.ENCODE, {2: gone})
    assert type(launch.reports[2].failure) is ServerError


def test_the_facts_of_a_preset_pass_through_a_pipe() -> None:
    ours, theirs = multiprocessing.Pipe()
    for preset in PRESETS.values():
        ours.send((preset, toy_pipeline().cut))
        assert theirs.recv() == (preset, toy_pipeline().cut)

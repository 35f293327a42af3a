"""The engine: a request sounds the same alone and in a mix, and its errors stay its own."""

import itertools
import random
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foley.denoise import EvaluationPart, VelocityModel
from foley.errors import DeviceError, ModelError
from foley.pipeline import FoleyPipeline
from foley.plans import SOLVERS
from foley.request import Cue, GenerationRequest
from foley.session import Session
from foley.types import NoPicture, Stage, VideoFrames
from foley.weights.selection import choose_device
from runners.worker import calibration
from runners.worker.calibration import measure
from runners.worker.engine import Engine, compute_size
from runners.worker.loading import find_devices
from runners.worker.scheduler import Budget, JobSize, Kind, ScheduledJob, Scheduler
from tests.toys import toy_frames, toy_pipeline, toy_preset

RATES: dict[Kind, float] = {Stage.ENCODE: 0.01, Stage.SAMPLE: 1e-4, Stage.DECODE_AUDIO: 1e-4}


def serve(
    pipeline: FoleyPipeline,
    requested: Sequence[tuple[VideoFrames, GenerationRequest]],
    *,
    tokens: int,
    choice: random.Random,
) -> tuple[list[Session], int]:
    """Run requests that arrive at random moments; returns their sessions and the largest batch."""
    scheduler = Scheduler[ScheduledJob]([Budget(tokens=tokens)], RATES, capacity=100)
    sessions: dict[str, Session] = {}
    coming = list(enumerate(requested))
    largest = 0
    engine = Engine(pipeline)
    while coming or scheduler.jobs:
        if coming and (choice.random() < 0.3 or not scheduler.jobs):
            index, (frames, request) = coming.pop(0)
            sessions[str(index)] = pipeline.start(frames, request)
            counts = len(frames.visual), len(frames.sync)
            size = compute_size(request, *counts, pipeline.preset, pipeline.cut)
            job = ScheduledJob(id=str(index), priority="interactive", deadline=float("inf"))
            scheduler.reserve(job)
            scheduler.queue(job, size, now=0.0)
        action = scheduler.next(0)
        if action is None:
            continue
        members = [sessions[job.id] for job in action.jobs]
        largest = max(largest, len(members))
        assert engine.run(action.kind, members) == [None] * len(members)
        scheduler.complete(action, choice.uniform(0.01, 0.1))
    return [sessions[str(index)] for index in range(len(requested))], largest


TAP = Cue(start_seconds=0.1, stop_seconds=0.35, prompt="tap")
WIND = Cue(start_seconds=0.4, stop_seconds=9, prompt="wind in the trees")
requests = st.builds(
    GenerationRequest,
    prompt=st.sampled_from(["", "a dog barks", "rain on a tin roof"]),
    guidance_scale=st.sampled_from([1.0, 4.5]),
    num_inference_steps=st.integers(1, 4),
    solver=st.sampled_from(SOLVERS),
    schedule_shift=st.sampled_from([None, 4.0]),
    guidance_interval=st.sampled_from([None, 0.5, 0.8]),
    seed=st.integers(0, 1000),
    num_variations=st.integers(1, 2),
    cues=st.sampled_from([(), (TAP,), (TAP, WIND)]),
)


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(
    st.lists(st.tuples(st.integers(16, 75), requests), min_size=1, max_size=6),
    st.sampled_from([100, 600, 5000]),
    st.randoms(use_true_random=False),
)
def test_a_request_gives_the_same_sound_in_any_mix_as_alone(
    requested: list[tuple[int, GenerationRequest]], tokens: int, choice: random.Random
) -> None:
    clips = [(toy_frames(num_sync, seed=index), r) for index, (num_sync, r) in enumerate(requested)]
    sessions, _ = serve(toy_pipeline(), clips, tokens=tokens, choice=choice)
    for (frames, request), session in zip(clips, sessions, strict=True):
        alone, among = toy_pipeline().generate(frames, request), session.result()
        assert among.seeds == alone.seeds
        # Measured over 40 mixes: at most 5.1e-7.
        torch.testing.assert_close(among.waveforms, alone.waveforms, rtol=0, atol=1e-5)


@pytest.mark.soak
def test_tiny_gives_the_same_sound_in_a_mix_as_alone() -> None:
    pipeline = FoleyPipeline.from_preset("tiny", "cpu")
    clips = []
    for seed, (seconds, solver, scale) in enumerate(
        [(1, "euler", 4.5), (2, "heun", 1.0), (1.5, "euler", 7.0), (1, "rk4", 4.5)]
    ):
        generator = torch.Generator().manual_seed(seed)
        visual, sync = (
            torch.randint(256, (int(seconds * fps), size, size, 3), generator=generator).byte()
            for fps, size in ((8, 112), (25, 224))
        )
        frames = VideoFrames(
            visual=visual, sync=sync, num_picked=len(sync), source_seconds=float(seconds)
        )
        request = GenerationRequest.parse(
            seed=seed, num_inference_steps=6, solver=solver, guidance_scale=scale
        )
        clips.append((frames, request))
    sessions, largest = serve(pipeline, clips, tokens=2000, choice=random.Random(0))
    assert largest > 2
    for (frames, request), session in zip(clips, sessions, strict=True):
        alone = pipeline.generate(frames, request).waveforms
        # Measured: at most 4.2e-7.
        torch.testing.assert_close(session.result().waveforms, alone, rtol=0, atol=1e-5)


def encode_sessions(count: int, **options: object) -> list[Session]:
    """Sessions in the stage `SAMPLE`."""
    sessions = []
    for seed in range(count):
        request = GenerationRequest.parse(seed=seed, num_inference_steps=2, **options)
        session = toy_pipeline().start(toy_frames(16 + 8 * seed, seed=seed), request)
        while session.stage == Stage.ENCODE:
            assert Engine(toy_pipeline()).run(Stage.ENCODE, [session]) == [None]
        sessions.append(session)
    return sessions


def finish(engine: Engine, sessions: list[Session]) -> list[torch.Tensor]:
    while sessions[0].stage == "sample":
        assert engine.run(Stage.SAMPLE, sessions) == [None] * len(sessions)
    for session in sessions:
        while session.stage == "decode_audio":
            assert engine.run(Stage.DECODE_AUDIO, [session]) == [None]
    return [session.result().waveforms for session in sessions]


def test_values_that_are_not_finite_fail_only_their_own_request() -> None:
    engine = Engine(toy_pipeline())
    expected = finish(engine, encode_sessions(3))
    first, poisoned, last = sessions = encode_sessions(3)
    with torch.inference_mode():
        poisoned.prepare_part().latents.fill_(float("nan"))
    assert engine.run(Stage.SAMPLE, sessions) == [None] * 3
    assert engine.run(Stage.SAMPLE, sessions) == [None] * 3
    for session, waveforms in ((first, expected[0]), (last, expected[2])):
        assert engine.run(Stage.DECODE_AUDIO, [session]) == [None]
        torch.testing.assert_close(session.result().waveforms, waveforms, rtol=0, atol=1e-5)
    (failure,) = engine.run(Stage.DECODE_AUDIO, [poisoned])
    assert isinstance(failure, ModelError)


class LimitedModel(VelocityModel):
    """A transformer on a device that runs out of memory beyond `frames` latent frames."""

    frames = 10_000

    def __call__(self, parts: Sequence[EvaluationPart]) -> list[torch.Tensor]:
        if sum(part.latents.shape[0] * part.latents.shape[2] for part in parts) > self.frames:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().__call__(parts)


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> type[LimitedModel]:
    monkeypatch.setattr(FoleyPipeline, "make_velocity_model", lambda self: LimitedModel(self.dit))
    monkeypatch.setattr(LimitedModel, "frames", 10_000)
    return LimitedModel


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_split(
    limited: type[LimitedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = finish(Engine(toy_pipeline()), encode_sessions(4))
    monkeypatch.setattr(limited, "frames", 90)  # the last alone has 80
    for waveforms, alone in zip(
        finish(Engine(toy_pipeline()), encode_sessions(4)), expected, strict=True
    ):
        torch.testing.assert_close(waveforms, alone, rtol=0, atol=1e-5)


def test_a_request_that_does_not_fit_alone_fails_and_the_others_continue(
    limited: type[LimitedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limited, "frames", 70)
    engine, sessions = Engine(toy_pipeline()), encode_sessions(4)
    *others, failure = engine.run(Stage.SAMPLE, sessions)
    assert others == [None] * 3
    assert isinstance(failure, DeviceError)
    assert "ask for fewer variations or a shorter clip" in str(failure)
    assert len(finish(engine, sessions[:3])) == 3


@pytest.mark.parametrize("kind", [Stage.ENCODE, Stage.DECODE_AUDIO])
def test_a_piece_that_runs_out_of_memory_fails_only_its_own_request(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    engine, (session, *_) = Engine(toy_pipeline()), encode_sessions(1)
    method = "encode" if kind is Stage.ENCODE else "decode"
    monkeypatch.setattr(Session, method, full)
    (failure,) = engine.run(kind, [session])
    assert isinstance(failure, DeviceError)


def test_the_budget_is_the_smallest_with_nearly_the_best_rate() -> None:
    seconds = {100: 0.0132, 200: 0.0222, 400: 0.0408, 800: 0.0776}
    assert calibration._find_sufficient(seconds) == 400
    assert calibration._find_sufficient({100: 0.01, 200: 0.02}) == 100
    assert calibration._find_sufficient({100: 0.01, 200: 0.0101, 400: 0.0102}) == 400


@pytest.mark.slow
def test_measuring_gives_a_budget_and_rates_and_restores_the_threads() -> None:
    threads = torch.get_num_threads()
    budget, rates = measure(toy_pipeline())
    assert torch.get_num_threads() == threads
    assert budget.tokens in {100 * 2**n for n in range(7)}
    assert budget.lanes == calibration.count_cpu_lanes()
    assert set(rates) == {Stage.ENCODE, Stage.SAMPLE, Stage.DECODE_AUDIO}
    assert all(0 < rate < 1 for rate in rates.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "scale", "variations", "interval"),
    list(itertools.product(SOLVERS, (1.0, 2.0), (1, 3), (None, 0.6))),
)
def test_the_size_of_a_request_is_the_work_that_it_takes(
    solver: str, scale: float, variations: int, interval: float | None
) -> None:
    request = GenerationRequest.parse(
        solver=solver,
        guidance_scale=scale,
        num_variations=variations,
        num_inference_steps=3,
        guidance_interval=interval,
    )
    frames = toy_frames(29)
    session = toy_pipeline().start(frames, request)
    counts = len(frames.visual), len(frames.sync)
    size = compute_size(request, *counts, toy_preset(), toy_pipeline().cut)
    engine = Engine(toy_pipeline())
    for _ in range(size.num_pieces):
        assert session.stage == Stage.ENCODE
        engine.run(Stage.ENCODE, [session])
    check_work(engine, session, size, is_whole=True)
    assert session.result().waveforms.shape[2] == 960 * size.num_latents


def check_work(engine: Engine, session: Session, size: JobSize, *, is_whole: bool) -> None:
    """Sample and decode, and check that this takes what the size says.

    The windows of a long sound have different lengths; the size knows the longest.
    """
    done: Counter[Stage] = Counter()
    while session.stage is not None:
        if session.stage is Stage.SAMPLE:
            part = session.prepare_part()
            tokens = len(part.context.lengths) * part.latents.shape[2]
            assert session.num_tokens == tokens <= size.tokens
            assert not is_whole or size.count_tokens(done[Stage.SAMPLE]) == tokens
        done[session.stage] += 1
        (failure,) = engine.run(session.stage, [session])
        assert failure is None
    assert done[Stage.SAMPLE] == size.num_evaluations
    assert done[Stage.DECODE_AUDIO] == size.num_sounds


@pytest.mark.slow
def test_the_size_of_a_long_request_counts_windows_and_pieces_of_sound() -> None:
    request = GenerationRequest.parse(
        prompt="rain",
        duration_seconds=15,
        solver="heun",
        guidance_scale=2.0,
        num_inference_steps=2,
        guidance_interval=0.6,
    )
    sound = NoPicture(duration_seconds=16)  # long enough for two pieces of sound
    session = toy_pipeline().start(sound, request)
    size = compute_size(request, sound.num_visual, sound.num_sync, toy_preset(), toy_pipeline().cut)
    assert (size.num_windows, size.num_sounds) == (1, 2)  # two groups of one window
    engine = Engine(toy_pipeline())
    engine.run(Stage.ENCODE, [session])
    check_work(engine, session, size, is_whole=False)


def test_without_a_gpu_the_only_device_is_the_cpu() -> None:
    if not torch.cuda.is_available():
        assert find_devices("auto") == [choose_device("cpu")]
        with pytest.raises(DeviceError, match="is not there"):
            find_devices("cuda")
    assert find_devices("cpu") == [torch.device("cpu")]

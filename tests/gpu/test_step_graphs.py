"""Replaying a step for other requests: every input reaches the places that the graph reads.

On the CPU a replay runs the step again on the graph's own places. `test_cuda.py` does the same with
CUDA graphs.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from foley.denoise import EvaluationPart, VelocityModel, make_clip_context
from foley.gpu import step_graphs
from foley.gpu.compilation import PLAIN
from foley.gpu.cuda_graphs import Replay
from foley.gpu.step_graphs import FusedStep
from foley.types import Conditions
from tests.toys import toy_components

DIT = toy_components().dit


class Recorder:
    """A capture without CUDA: it replays by running again, and counts captures and replays."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        self.captures += 1
        result = torch.full_like(run(), float("nan"))  # nothing is computed while capturing

        def replay() -> None:
            self.replays += 1
            result.copy_(run())

        return replay, result


def part(
    seed: int, num_latents: int = 37, num_visual: int = 6, guidance_scale: float = 4.5
) -> EvaluationPart:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    conditions = Conditions(
        visual_tokens=draw(num_visual, 24),
        sync_tokens=draw(24, 16),
        text_tokens=draw(2, 5, 16),
        num_latents=num_latents,
    )
    context = make_clip_context(DIT, conditions, 1, guided=guidance_scale > 1)
    time = DIT.make_time_modulation(torch.rand(1, generator=generator))
    return EvaluationPart(seed, draw(1, 8, num_latents), time, context, guidance_scale)


def model(recorder: Recorder) -> VelocityModel:
    return VelocityModel(DIT, FusedStep(DIT, "bf16", PLAIN, recorder))


@pytest.fixture(autouse=True)
def _without_gradients() -> object:
    with torch.inference_mode():
        yield


def test_replays_compute_what_the_forward_computes_for_any_batch() -> None:
    one, same, other, plain = part(0), part(1), part(2, 12, 20), part(3, guidance_scale=1.0)
    recorder = Recorder()
    fast, slow = model(recorder), VelocityModel(DIT)
    turns = [[one], [one], [one], [same], [one], [other, plain], [other, plain], [same], [plain]]
    for parts in [*turns, *turns]:
        later = [p._replace(latents=p.latents + 1) for p in parts]
        for members in (parts, later):
            for actual, expected in zip(fast(members), slow(members), strict=True):
                torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)  # measured: 1e-6
    assert recorder.captures == 3  # two lengths alone (with and without guidance), and the mixture
    assert recorder.replays > 20


def test_a_batch_that_changes_at_each_step_is_never_captured() -> None:
    recorder = Recorder()
    fast = model(recorder)
    for i in range(4):
        fast([part(i, num_latents=20 + i)])
    assert recorder.captures == 0


def test_without_memory_for_a_graph_the_step_runs_without_one() -> None:
    recorder = Recorder()

    def capture(run: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        if recorder.captures == 1:
            recorder.captures += 1
            raise torch.OutOfMemoryError
        return recorder(run)

    fast, exact = VelocityModel(DIT, FusedStep(DIT, "bf16", PLAIN, capture)), VelocityModel(DIT)
    one, large, other = part(0), part(1, 50), part(2, 50)
    # `one` is captured. The capture of `large` fails, and is tried once. `other` is captured.
    for asked in (one, one, large, large, large, other, other, one, one):
        ((actual,), (expected,)) = fast([asked]), exact([asked])
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    assert recorder.captures == 4  # `one` again, because the failure freed all graphs


def test_a_velocity_is_not_overwritten_by_the_next() -> None:
    recorder = Recorder()
    fast, one = model(recorder), part(0, guidance_scale=1.0)
    fast([one])
    (first,) = fast([one])
    kept = first.clone()
    fast([one._replace(latents=one.latents + 1)])
    assert recorder.replays == 2
    assert torch.equal(first, kept)


def test_a_large_step_is_captured_once_its_batch_has_lasted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = 80_000_000_000
    monkeypatch.setattr(step_graphs, "_SMALL_TOKENS", 50)
    monkeypatch.setattr(step_graphs, "count_free_bytes", lambda device: free)
    recorder = Recorder()
    fast, exact = model(recorder), VelocityModel(DIT)
    large, other, small = part(0), part(1, 40), part(2, 20)
    assert 2 * 20 <= 50 < 2 * 37

    def ask(asked: EvaluationPart, times: int) -> None:
        for _ in range(times):
            ((actual,), (expected,)) = fast([asked]), exact([asked])
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)

    ask(large, step_graphs.LARGE_EVALUATIONS - 1)
    ask(other, 1)  # the count starts again
    ask(large, step_graphs.LARGE_EVALUATIONS - 1)
    assert recorder.captures == 0
    ask(large, 1)
    assert (recorder.captures, recorder.replays) == (1, 1)
    ask(small, 2)
    assert recorder.captures == 2  # a small step is captured at its second evaluation
    ask(large, 1)
    assert (recorder.captures, recorder.replays) == (2, 3)
    free = 2_000_000_000
    ask(other, step_graphs.LARGE_EVALUATIONS + 2)
    assert recorder.captures == 2
    ask(large, 1)
    assert recorder.replays == 4  # an existing graph is used
    free = 80_000_000_000
    ask(other, step_graphs.LARGE_EVALUATIONS)
    assert recorder.captures == 3

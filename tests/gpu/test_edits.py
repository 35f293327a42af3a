"""On a GPU: edits keep what they keep to the bit, and cues and edits are those of the CPU."""

from typing import Any

import pytest
import torch

from foley.configs import SAMPLE_RATE
from foley.pipeline import FoleyPipeline
from foley.request import GenerationRequest
from foley.types import NoPicture, SourceSound

pytestmark = pytest.mark.needs_gpu
SECONDS = 2.0
FADE, LONG_FADE = SAMPLE_RATE // 100, SAMPLE_RATE // 10
PART = {"start_seconds": 0.5, "stop_seconds": 1.2}


@pytest.fixture(scope="module")
def pipelines() -> tuple[FoleyPipeline, FoleyPipeline]:
    return FoleyPipeline.from_preset("tiny", "cuda"), FoleyPipeline.from_preset("tiny", "cpu")


def make(
    pipeline: FoleyPipeline, source: torch.Tensor | None = None, **options: Any
) -> torch.Tensor:
    request = GenerationRequest.parse(
        **{"prompt": "wooden taps", "seed": 1, "num_inference_steps": 8} | options
    )
    given = None if source is None else SourceSound(waveform=source)
    sound = pipeline.generate(NoPicture(duration_seconds=SECONDS), request, source=given)
    return sound.waveforms[0]


def measure_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_a_range_is_made_anew_and_the_rest_is_the_source(
    pipelines: tuple[FoleyPipeline, FoleyPipeline],
) -> None:
    source = make(pipelines[1])
    edit = {"source": "file", "ranges": [PART]}
    on_gpu, on_cpu = (
        make(pipeline, source, prompt="metal clangs", seed=2, edit=edit) for pipeline in pipelines
    )
    start, stop = (round(PART[name] * SAMPLE_RATE) for name in PART)
    assert torch.equal(on_gpu[:, :start], source[:, :start])
    assert torch.equal(on_gpu[:, stop:], source[:, stop:])
    inside = slice(start + LONG_FADE, stop - FADE)
    assert measure_distance(on_gpu[:, inside], source[:, inside]) > 0.5
    # Half precision moves the solver's path a little.
    assert measure_distance(on_gpu[:, inside], on_cpu[:, inside]) < 0.5


def test_strengths_and_cues_are_those_of_the_cpu(
    pipelines: tuple[FoleyPipeline, FoleyPipeline],
) -> None:
    source = make(pipelines[1])
    cue = PART | {"prompt": "metal clangs"}
    for given, options in (
        (source, {"edit": {"source": "file", "strength": 0}}),
        (source, {"edit": {"source": "file", "strength": 0.4}}),
        (None, {"cues": [cue]}),
    ):
        on_gpu, on_cpu = (make(pipeline, given, **options) for pipeline in pipelines)
        assert measure_distance(on_gpu, on_cpu) < 0.5, options
    assert measure_distance(make(pipelines[0], cues=[cue]), make(pipelines[0])) > 0.5

import pytest

from foley.configs import TINY, XXL, Preset
from foley.errors import ParameterError
from foley.plans import QUALITIES, SamplingPlan
from foley.request import MAX_SEED, GenerationRequest


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"guidance_scale": 0.5}, ["guidance_scale", "greater than or equal to 1", "got 0.5"]),
        ({"guidance_scale": float("nan")}, ["guidance_scale", "finite", "got nan"]),
        ({"num_inference_steps": 0}, ["num_inference_steps", "got 0"]),
        ({"num_inference_steps": 201}, ["num_inference_steps", "200", "got 201"]),
        ({"num_inference_steps": 2.5}, ["num_inference_steps", "got 2.5"]),
        ({"solver": "dopri"}, ["solver", "'euler'", "got 'dopri'"]),
        ({"seed": -1}, ["seed", "got -1"]),
        ({"seed": MAX_SEED + 1}, ["seed", str(MAX_SEED)]),
        ({"num_variations": 9}, ["num_variations", "8", "got 9"]),
        ({"prompt": "x" * 2001}, ["prompt", "2000"]),
        ({"schedule_shift": 0.9}, ["schedule_shift", "greater than or equal to 1", "got 0.9"]),
        ({"guidance_interval": 1.1}, ["guidance_interval", "less than or equal to 1", "got 1.1"]),
        ({"quality": "best"}, ["quality", "'balanced'", "got 'best'"]),
        (
            {"quality": "fast", "solver": "euler"},
            ["quality: cannot be combined with solver; leave out", "got 'fast'"],
        ),
        (
            {"quality": "fast", "num_inference_steps": 6, "guidance_interval": 0},
            ["quality: cannot be combined with num_inference_steps and guidance_interval"],
        ),
        ({"quality": "reference", "schedule_shift": 1}, ["combined with schedule_shift;"]),
        ({"colour": "red"}, ["colour: there is no such option, got 'red'"]),
        ({"promt": "rain"}, ["promt: there is no such option (did you mean prompt?), got 'rain'"]),
        (
            {"layers": [{"promt": "x"}]},
            ["layers.0.promt: there is no such option (did you mean prompt?"],
        ),
        (
            {"cues": [{"start_secs": 0, "stop_seconds": 1, "prompt": "x"}]},
            ["cues.0.start_secs: there is no such option (did you mean start_seconds?"],
        ),
    ],
)
def test_a_refusal_names_field_rule_and_value(options: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ParameterError) as refusal:
        GenerationRequest.parse(**options)
    for word in words:
        assert word in str(refusal.value)


def test_all_refused_fields_are_named_at_once() -> None:
    with pytest.raises(ParameterError, match=r"seed.*; .*steps|steps.*; .*seed"):
        GenerationRequest.parse(seed=-1, num_inference_steps=0)


def test_a_long_value_is_shortened_in_the_message() -> None:
    with pytest.raises(ParameterError) as refusal:
        GenerationRequest.parse(prompt="x" * 5000)
    assert len(str(refusal.value)) < 200


def test_every_field_is_described() -> None:
    for name, field in GenerationRequest.model_fields.items():
        assert field.description, name


def test_without_quality_each_option_falls_back_to_the_default_of_the_model() -> None:
    assert GenerationRequest().choose_sampling(XXL) == SamplingPlan(50, "euler", 1, 0)
    assert GenerationRequest().choose_sampling(TINY) == QUALITIES["fast"]
    request = GenerationRequest(solver="ab2", guidance_interval=0.5)
    assert request.choose_sampling(TINY) == SamplingPlan(6, "ab2", 4, 0.5)
    # The plan that tiny had before.
    plain = GenerationRequest(num_inference_steps=16, schedule_shift=1, guidance_interval=0)
    assert plain.choose_sampling(TINY) == SamplingPlan(16)


@pytest.mark.parametrize("preset", [TINY, XXL])
def test_a_quality_chooses_the_same_for_all_models(preset: Preset) -> None:
    plans = {q: GenerationRequest(quality=q).choose_sampling(preset) for q in QUALITIES}
    assert plans == QUALITIES
    assert plans["reference"] == GenerationRequest().choose_sampling(XXL)


def test_quality_goes_with_the_options_that_it_does_not_choose() -> None:
    request = GenerationRequest(quality="fast", guidance_scale=3, num_variations=2, seed=1)
    assert request.choose_guidance(TINY) == 3
    # A request survives being written down and read again, as between processes.
    assert GenerationRequest.parse(**request.model_dump()) == request

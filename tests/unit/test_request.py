import pytest

from foley.errors import ParameterError
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
        ({"colour": "red"}, ["colour", "not permitted"]),
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

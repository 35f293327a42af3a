"""The options of a request, as texts of a form and as values."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from runners.jobs.job import GenerationJob, GenerationOptions


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
        GenerationOptions.model_validate({name: value})


@pytest.mark.parametrize("name", ["seed", "duration_seconds", "gain_db"])
def test_true_is_no_number(name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name}\n.*valid (integer|number)"):
        GenerationOptions.model_validate({name: True})


def test_plain_numbers_are_read() -> None:
    options = GenerationOptions.model_validate(
        {"seed": "+7", "num_inference_steps": "010", "guidance_scale": "25e-1"}
    )
    assert (options.seed, options.num_inference_steps, options.guidance_scale) == (7, 10, 2.5)


@pytest.mark.parametrize(
    ("value", "formats"),
    [
        ("wav", ("wav",)),
        ("wav, flac", ("wav", "flac")),
        ("flac,wav,flac", ("flac", "wav")),
        (["wav", "flac"], ("wav", "flac")),
        ((), ()),
    ],
)
def test_further_formats_are_a_list_or_a_text_with_commas(
    value: object, formats: tuple[str, ...]
) -> None:
    assert GenerationOptions.model_validate({"also": value}).also == formats


@pytest.mark.parametrize("value", ["mp4", "wav,", "wav flac", ["wav,flac"], 5, [5], None])
def test_other_further_formats_are_refused(value: object) -> None:
    with pytest.raises(ValidationError, match="also"):
        GenerationOptions.model_validate({"also": value})


def test_each_format_of_a_job_is_written_once_and_the_agreed_one_first() -> None:
    options = GenerationOptions.model_validate({"also": "flac,wav"})
    job = GenerationJob(
        owner="", caller="", request_id="a", folder=Path("/x"), options=options, format="wav"
    )
    assert job.formats == ("wav", "flac")


def test_the_model_does_not_see_the_options_of_the_files() -> None:
    options = GenerationOptions(prompt="rain", trim=True, also=("wav",), priority="bulk")
    request = options.generation_request()
    assert request.prompt == "rain"
    assert not {"trim", "format", "also", "priority"} & set(type(request).model_fields)


def test_the_room_of_a_result_is_that_of_its_waveforms_and_files(tmp_path: Path) -> None:
    (tmp_path / "clip").write_bytes(bytes(1000))

    def measure(format: str, **options: object) -> int:
        job = GenerationJob(
            owner="",
            caller="",
            request_id="",
            folder=tmp_path,
            options=GenerationOptions.model_validate(options),
            format=format,  # type: ignore[arg-type]
        )
        return job.measure_result(1.0)

    waveform, sound = 4 * 48_000, 2 * 3 * 48_000
    assert measure("wav") == waveform + sound
    assert measure("mp4") == waveform + sound + 1000
    assert measure("mp4", num_variations=3, also="wav") == 3 * (waveform + 2 * sound + 1000)
    assert measure("mp4", start_seconds=1) == waveform + sound + 2000

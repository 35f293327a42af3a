"""The options of the finished sound: their bounds, and what contradicts what."""

import dataclasses

import pytest

from foley.cli.options import MixFlags
from foley.errors import ParameterError
from foley.mix import MixOptions
from runners.jobs.job import GenerationOptions


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"original_gain_db": -3}, ("original_gain_db", "original_sound drop")),
        ({"original_gain_db": -3, "original_sound": "keep"}, ("original_gain_db", "keep")),
        ({"duck_depth_db": 6, "original_sound": "mix"}, ("duck_depth_db", "original_sound mix")),
        ({"duck_release_ms": 50}, ("duck_release_ms", "original_sound drop")),
        ({"stems": True}, ("stems", "original_sound drop")),
        ({"stems": True, "original_sound": "keep"}, ("stems", "original_sound keep")),
        ({"pan": 0.5, "channels": "mono"}, ("pan", "channels mono")),
        ({"placement": "center"}, ("placement", "original_sound drop")),
        (
            {"placement": "all", "original_sound": "mix", "channels": "mono"},
            ("placement", "channels mono"),
        ),
        ({"placement": "center", "original_sound": "duck", "pan": 0.5}, ("placement", "pan")),
        ({"limiter": True}, ("limiter", "loudness_lufs")),
    ],
)
def test_options_that_contradict_are_named_both(
    options: dict[str, object], names: tuple[str, str]
) -> None:
    with pytest.raises(ParameterError) as refusal:
        MixOptions.parse(**options)
    for name in names:
        assert name in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "formats", "has_clip", "names"),
    [
        ({"original_sound": "mix"}, ("wav",), False, ("original_sound", "duration_seconds")),
        ({"original_sound": "keep"}, ("wav",), True, ("original_sound", "format wav")),
        ({"original_sound": "mix", "stems": True}, ("flac",), True, ("stems", "format flac")),
        ({"broadcast_wave": True}, ("mp4", "flac"), True, ("broadcast_wave", "format")),
    ],
)
def test_options_that_do_not_fit_the_files_are_refused(
    options: dict[str, object], formats: tuple[str, ...], has_clip: bool, names: tuple[str, str]
) -> None:
    with pytest.raises(ParameterError) as refusal:
        MixOptions.parse(**options).check_files(formats, has_clip=has_clip)
    for name in names:
        assert name in str(refusal.value)


def test_a_wav_beside_a_video_may_be_a_broadcast_wave() -> None:
    MixOptions(broadcast_wave=True).check_files(("mp4", "wav"), has_clip=True)


@pytest.mark.parametrize(
    "options",
    [
        {"original_sound": "loud"},
        {"gain_db": 25},
        {"gain_db": float("nan")},
        {"pan": -1.1},
        {"fade_in_seconds": -1},
        {"loudness_lufs": 0},
        {"true_peak_dbtp": 0.1},
        {"duck_depth_db": 0, "original_sound": "duck"},
        {"reverb": 1},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ParameterError, match=next(iter(options))):
        MixOptions.parse(**options)


def test_values_equal_to_a_default_contradict_nothing() -> None:
    given = MixOptions().model_dump()
    assert MixOptions.parse(**given).is_default
    assert MixOptions.parse(**given).changed() == {}


def test_every_door_takes_the_options_as_texts_and_as_values() -> None:
    texts = {"original_sound": "duck", "gain_db": "-3", "pan": ".5", "stems": "true"}
    options = GenerationOptions.model_validate(texts)
    assert options.changed() == {
        "original_sound": "duck", "gain_db": -3.0, "pan": 0.5, "stems": True
    }  # fmt: skip
    flags = [field.name for field in dataclasses.fields(MixFlags)]
    assert flags == list(MixOptions.model_fields)
    with pytest.raises(ValueError, match="unable to parse"):
        GenerationOptions.model_validate({"loudness_lufs": "-1_6"})

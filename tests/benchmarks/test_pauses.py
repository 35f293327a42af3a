"""A swell at a clip's end is seen, and a hit with its ringing is none."""

import pytest
import torch

from benchmarks.quality.pauses import FLOOR_DB, measure_end, measure_levels
from foley.configs import SAMPLE_RATE


def noise(seconds: float, level_db: float) -> torch.Tensor:
    drawn = torch.randn(int(seconds * SAMPLE_RATE), generator=torch.Generator().manual_seed(3))
    return drawn * 10 ** (level_db / 20)


def ring(sound: torch.Tensor, at: float) -> torch.Tensor:
    """The sound with a tone that is struck at a time and dies away in a tenth of a second."""
    first = int(at * SAMPLE_RATE)
    seconds = torch.arange(len(sound) - first) / SAMPLE_RATE
    tone = 0.3 * torch.exp(-seconds / 0.1) * torch.sin(2 * torch.pi * 900 * seconds)
    return torch.cat((sound[:first], sound[first:] + tone))


def test_silence_is_at_the_floor() -> None:
    assert (measure_levels(torch.zeros(2 * SAMPLE_RATE)) == FLOOR_DB).all()


@pytest.mark.parametrize("at", [1.0, 3.3, 3.9])
def test_a_hit_and_its_ringing_are_no_swell(at: float) -> None:
    figures = measure_end(ring(noise(4.0, -75), at))
    assert figures["swell_db"] == 0
    assert figures["pauses_db"] == FLOOR_DB
    assert figures["hits_at_end"] == (at > 3)


def test_a_sound_that_grows_without_a_hit_is_a_swell() -> None:
    quiet = ring(noise(4.0, -75), 1.0)
    growth = torch.ones(len(quiet)) * -75
    growth[-SAMPLE_RATE // 2 :] = torch.linspace(-75, -30, SAMPLE_RATE // 2)
    figures = measure_end(quiet + noise(4.0, 0) * 10 ** (growth / 20))
    assert figures["swell_db"] is not None
    assert figures["swell_db"] > 20
    assert figures["end_db"] is not None
    assert figures["end_db"] > FLOOR_DB + 20


def test_an_even_sound_has_no_swell_to_speak_of() -> None:
    figures = measure_end(noise(4.0, -25))
    assert figures["swell_db"] is not None
    assert figures["swell_db"] < 2

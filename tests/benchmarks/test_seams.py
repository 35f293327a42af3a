"""The figures of seams say what they are of."""

import pytest
import torch

from benchmarks.quality.seams import average_textures, fit_trend


def test_a_line_through_levels_has_their_rise_and_no_error() -> None:
    assert fit_trend(torch.linspace(-24, -22, 10)) == pytest.approx((2, 0), abs=1e-4)


def test_the_error_of_a_trend_is_what_levels_without_one_spread_to() -> None:
    drawn = torch.randn(2000, 10, generator=torch.Generator().manual_seed(1))
    rises, errors = zip(*map(fit_trend, drawn), strict=True)
    assert torch.tensor(errors).square().mean().sqrt() == pytest.approx(
        float(torch.tensor(rises).std()), rel=0.1
    )


def test_textures_of_several_seeds_are_averaged() -> None:
    one, two = {"dip_db": 0.5, "clicks": 0.0}, {"dip_db": -0.1, "clicks": 1.0}
    assert average_textures([one]) == one
    assert average_textures([one, two]) == {"dip_db": 0.2, "clicks": 0.5, "dip_error_db": 0.3}

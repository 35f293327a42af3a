import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from foley.request import SOLVERS, Solver
from foley.sampling import (
    SolverPoint,
    choose_seeds,
    compute_evaluation_sigmas,
    draw_noise,
    guide,
    integrate,
    make_sigmas,
)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("num_steps", [1, 7, 50])
def test_straight_path_is_integrated_exactly(solver: Solver, num_steps: int) -> None:
    # With the rectified-flow velocity every solver is exact for any number of steps.
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 2, 8, 16)
    latents = integrate(lambda _: noise - clean, noise, make_sigmas(num_steps), solver)
    torch.testing.assert_close(latents, clean, rtol=0, atol=1e-5)  # measured: < 3e-6


@pytest.mark.parametrize(
    ("solver", "order"), [("euler", 1), ("heun", 2), ("midpoint", 2), ("rk4", 4)]
)
def test_error_falls_with_the_order_of_the_solver(solver: Solver, order: int) -> None:
    # dx / dsigma = x, from sigma 1 to 0: x(0) = x(1) / e.
    def error(num_steps: int) -> float:
        start = torch.ones(1)
        end = integrate(lambda point: point.latents, start, make_sigmas(num_steps), solver)
        return abs(end.item() - math.exp(-1))

    # Few steps, so that float32 rounding stays small beside the method's own error.
    coarse, fine = (1, 2) if order == 4 else (4, 8)
    ratio = error(coarse) / error(fine)
    # Measured: 2.12, 4.41, 4.41 and 24.4; at so few steps the next order still shows.
    assert 0.9 * 2**order < ratio < 1.6 * 2**order


@pytest.mark.parametrize("solver", SOLVERS)
def test_each_stage_is_evaluated_at_its_own_level(solver: Solver) -> None:
    points: list[SolverPoint] = []

    def velocity(point: SolverPoint) -> Tensor:
        points.append(point)
        return torch.zeros_like(point.latents)

    integrate(velocity, torch.zeros(1), make_sigmas(2), solver)
    stages = {
        "euler": [1.0, 0.5],
        "heun": [1.0, 0.5, 0.5, 0.0],
        "midpoint": [1.0, 0.75, 0.5, 0.25],
        "rk4": [1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25, 0.0],
    }
    assert [point.sigma for point in points] == stages[solver]
    assert [point.index for point in points] == list(range(len(points)))
    assert compute_evaluation_sigmas(make_sigmas(2), solver).tolist() == stages[solver]


@pytest.mark.parametrize("num_steps", [1, 2, 50, 200])
def test_sigmas_fall_from_one_to_zero(num_steps: int) -> None:
    sigmas = make_sigmas(num_steps)
    assert len(sigmas) == num_steps + 1
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    assert all(high > low for high, low in pairwise(sigmas.tolist()))


def test_guidance_extrapolates_from_uncond_through_cond() -> None:
    uncond, cond = torch.tensor([1.0]), torch.tensor([2.0])
    assert guide(uncond, cond, 1.0).item() == 2.0
    assert guide(uncond, cond, 4.5).item() == 5.5
    assert guide(uncond.bfloat16(), cond.bfloat16(), 4.5).dtype == torch.float32


def test_noise_of_an_item_does_not_depend_on_its_batch() -> None:
    together = draw_noise((3, 4, 5), 8, 20)
    assert torch.equal(together[1], draw_noise((4,), 8, 20)[0])
    assert not torch.equal(together[0], together[1])


def test_the_noise_of_a_seed_never_changes() -> None:
    # A seed that a user has noted must give the same sound in all versions.
    first = draw_noise((1,), 2, 20).flatten()[:3]
    torch.testing.assert_close(first, torch.tensor([-1.5256, -0.7502, -0.6540]), rtol=0, atol=1e-4)


def test_seeds_count_up_and_are_drawn_when_absent() -> None:
    assert choose_seeds(7, 3) == (7, 8, 9)
    drawn = choose_seeds(None, 2)
    assert drawn[1] == drawn[0] + 1
    assert choose_seeds(None, 1) != choose_seeds(None, 1)  # equal once in 4e9 runs

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from foley.plans import SOLVERS, Solver
from foley.sampling import (
    SolverPoint,
    choose_seeds,
    compute_evaluation_sigmas,
    count_guided_steps,
    draw_noise,
    guide,
    integrate,
    make_sigmas,
)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("num_steps", [1, 7, 50])
@pytest.mark.parametrize("shift", [1.0, 4.0])
def test_straight_path_is_integrated_exactly(solver: Solver, num_steps: int, shift: float) -> None:
    # With the rectified-flow velocity every solver is exact for any number of steps.
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 2, 8, 16)
    latents = integrate(lambda _: noise - clean, noise, make_sigmas(num_steps, shift), solver)
    torch.testing.assert_close(latents, clean, rtol=0, atol=1e-5)  # measured: < 3e-6


ORDERS: dict[Solver, int] = {"euler": 1, "heun": 2, "midpoint": 2, "ab2": 2, "rk4": 4}


def measure_order(solver: Solver, shift: float, guidance_interval: float) -> float:
    """The order by which the error at sigma 0 falls when the number of steps is doubled."""

    def error(num_steps: int) -> float:
        # dx / dsigma = 3 x in guided steps, 1.5 x in the others.
        sigmas = make_sigmas(num_steps, shift)
        guided = count_guided_steps(sigmas, guidance_interval)

        def velocity(point: SolverPoint) -> Tensor:
            return (3.0 if point.step < guided else 1.5) * point.latents

        end = integrate(velocity, torch.ones(1), sigmas, solver, guided)
        last = sigmas[guided].item()
        return abs(end.item() - math.exp(-3 * (1 - last) - 1.5 * last))

    # Few steps of rk4, so that float32 rounding stays small beside the method's own error.
    num_steps = 8 if solver == "rk4" else 32
    return math.log2(error(num_steps) / error(2 * num_steps))


@pytest.mark.parametrize("shift", [1.0, 2.5, 4.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_error_falls_with_the_order_of_the_solver(solver: Solver, shift: float) -> None:
    # Measured: at most 0.34 more than the order, for rk4; at so few steps the next one shows.
    assert measure_order(solver, shift, 0.0) == pytest.approx(ORDERS[solver], abs=0.4)


@pytest.mark.parametrize(("shift", "bound"), [(1.0, 0.5), (4.0, 0.8)])
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_end_of_guidance_does_not_lower_the_order(
    solver: Solver, shift: float, bound: float
) -> None:
    # A step begins just at the bound, whatever the number of steps, and has no guidance.
    order = measure_order(solver, shift, bound + 1e-4)
    assert order == pytest.approx(ORDERS[solver], abs=0.4)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5])
def test_ab2_begins_with_euler_and_then_follows_the_line_through_two_velocities(
    num_steps: int,
) -> None:
    # On dx / dsigma = sigma the line is the velocity itself, so that only the first step errs.
    sigmas = make_sigmas(num_steps, 4.0)
    end = integrate(lambda point: torch.tensor([point.sigma]), torch.ones(1), sigmas, "ab2")
    first = sigmas[1].item() - 1
    exact = 1 - 0.5
    assert end.item() - exact == pytest.approx(first - ((1 + first) ** 2 - 1) / 2, abs=1e-6)


def test_a_shift_multiplies_the_ratio_of_noise_to_sound() -> None:
    plain, shifted = make_sigmas(8), make_sigmas(8, 4.0)
    assert (shifted[0], shifted[-1]) == (1, 0)
    assert torch.equal(make_sigmas(50, 1.0), torch.linspace(1, 0, 51))
    inner = slice(1, -1)
    ratio = shifted / (1 - shifted) / (plain / (1 - plain))
    torch.testing.assert_close(ratio[inner], torch.full((7,), 4.0), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("num_steps", "shift", "bound", "guided"),
    [
        (12, 4.0, 0.8, 7),  # the seventh step begins at 0.8
        (6, 4.0, 0.8, 4),
        (50, 1.0, 0.0, 50),
        (50, 1.0, 1.0, 1),
        (1, 1.0, 0.5, 1),
        (10, 1.0, 0.65, 4),
    ],
)
def test_steps_that_begin_within_the_interval_are_guided(
    num_steps: int, shift: float, bound: float, guided: int
) -> None:
    assert count_guided_steps(make_sigmas(num_steps, shift), bound) == guided


@pytest.mark.parametrize("solver", SOLVERS)
def test_each_stage_is_evaluated_at_its_own_level(solver: Solver) -> None:
    points: list[SolverPoint] = []

    def velocity(point: SolverPoint) -> Tensor:
        points.append(point)
        return torch.zeros_like(point.latents)

    integrate(velocity, torch.zeros(1), make_sigmas(2), solver)
    stages = {
        "euler": [1.0, 0.5],
        "ab2": [1.0, 0.5],
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

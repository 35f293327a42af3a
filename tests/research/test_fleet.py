"""The simulated fleet loses nothing, repeats itself, and agrees with what one GPU was measured."""

import random
from pathlib import Path

import pytest

from research.fleet import (
    CACHED_SECONDS,
    MEAN_SECONDS,
    Fleet,
    Policy,
    Request,
    compute_capacity,
    draw_requests,
    measure,
    plot,
    simulate,
    simulate_rise,
)


def requests(seconds: float = 20.0, rate: float = 4.0) -> list[Request]:
    return list(draw_requests(random.Random(3), rate, 0.0, seconds))


@pytest.mark.parametrize("policy", ["queue", "fewest", "random"])
def test_every_request_is_finished_once(policy: Policy) -> None:
    asked = requests()
    fleet = Fleet(4, policy).run(asked)
    key = lambda request: (request.at, request.seconds)  # noqa: E731
    assert sorted((r for r, _ in fleet.finished), key=key) == sorted(asked, key=key)
    assert all(end > request.at for request, end in fleet.finished)
    assert all(gpu.held == 0 for gpu in fleet.gpus)


def test_a_seed_repeats_the_figures() -> None:
    assert simulate(3, 0.8, 20.0, policy="random") == simulate(3, 0.8, 20.0, policy="random")


def test_a_gpu_alone_takes_what_was_measured() -> None:
    """benchmarks/records/2026-11-28_gpu_h100_b050276.json: 0.736 s for 8 s."""
    fleet = Fleet(1).run([Request(0.0, 8, "interactive")])
    ((_, end),) = fleet.finished
    assert end == pytest.approx(0.736, rel=0.06)
    # benchmarks/records/2026-11-28_fleet_h100x4_e2339ca.json: 1.37 clips a second, with what the
    # host adds.
    assert compute_capacity(8.0) == pytest.approx(1.37, rel=0.25)


def test_one_queue_is_no_slower_than_a_balancer() -> None:
    rows = {p: simulate(6, 0.9, 40.0, policy=p)["p95_seconds"] for p in ("queue", "random")}
    assert rows["queue"] < rows["random"]


def test_a_database_that_is_full_delays_all() -> None:
    rate = 4 * 0.8 * compute_capacity(MEAN_SECONDS)
    free = simulate(4, 0.8, 20.0)["p95_seconds"]
    assert simulate(4, 0.8, 20.0, jobs_per_second=0.5 * rate)["p95_seconds"] > 3 * free


def test_more_gpus_come_with_the_load_and_a_start_costs_time() -> None:
    slow, fast = (simulate_rise(2, seconds, 60.0) for seconds in (CACHED_SECONDS, 0.0))
    assert slow["worst_seconds"] > fast["worst_seconds"]
    assert slow["busy_share"] <= 1


def test_the_study_runs_and_is_drawn(tmp_path: Path) -> None:
    plot(measure(quick=True), tmp_path / "fleet.svg")
    assert (tmp_path / "fleet.svg").stat().st_size > 5000

import json
from fractions import Fraction
from pathlib import Path

import pytest

from foley.media.clock import FramePicker, FrameTimes, num_latents, seconds_of

GOLDEN = json.loads((Path(__file__).parents[1] / "assets/golden/frames.json").read_text())


def pick(times_seconds: list[float], fps: int, *, exact: bool = False) -> list[int]:
    picker = FramePicker(fps, exact=exact)
    ends = [*times_seconds[1:], times_seconds[-1]]
    return [
        index
        for index, (seconds, end) in enumerate(zip(times_seconds, ends, strict=True))
        if 0 <= seconds <= 15
        for _ in range(picker.count_shown(seconds, end))
    ]


@pytest.mark.parametrize("name", GOLDEN["videos"])
def test_picks_equal_the_reference(name: str) -> None:
    expected = GOLDEN["videos"][name]
    time_base = Fraction(expected["time_base"])
    times = [seconds_of(pts, time_base) for pts in expected["frame_pts"]]
    assert pick(times, 8) == expected["picks_8"]
    assert pick(times, 25) == expected["picks_25"]
    assert num_latents(len(expected["picks_25"])) == expected["latent_len"]


def test_latents_are_two_a_frame_but_for_the_known_lengths() -> None:
    exceptions = {n: num_latents(n) for n in range(401) if num_latents(n) != 2 * n}
    assert exceptions == {int(n): latents for n, latents in GOLDEN["latent_len_not_2n"].items()}


@pytest.mark.parametrize("time_base", [Fraction(1, 12800), Fraction(1, 1000), Fraction(1, 25)])
def test_an_exact_clock_picks_every_frame_of_its_own_rate(time_base: Fraction) -> None:
    times = [seconds_of(round(index / 25 / time_base), time_base) for index in range(375)]
    assert pick(times, 25, exact=True) == list(range(375))
    assert pick(times, 25) != list(range(375))  # the running sum, as in the reference, skips one
    due = [min(range(375), key=lambda i: abs(times[i] - k / 8)) for k in range(119)]
    assert pick(times, 8, exact=True)[:119] == due


@pytest.mark.parametrize("rate", [12, 15, 24, 30, 50, 60])
def test_an_exact_clock_shows_the_frame_nearest_to_each_target(rate: int) -> None:
    times = [index / rate for index in range(10 * rate)]
    picks = pick(times, 25, exact=True)
    assert len(picks) == len(pick(times, 25)) or rate == 50  # where the sum is rounded
    ahead = [times[index] - k / 25 for k, index in enumerate(picks)]
    assert max(map(abs, ahead)) <= 0.5 / rate + 1e-5
    # The published program's rule shows all of them ahead of time.
    assert min(times[i] - k / 25 for k, i in enumerate(pick(times, 25))) > -1e-5


def test_an_exact_clock_holds_a_frame_until_the_next_one_is_near() -> None:
    # A recording of a screen: one picture for 4 s, then another for 1 s.
    picks = pick([0.0, 4.0, 5.0], 25, exact=True)
    assert picks.index(1) == 99  # at 3.96 s: 4.00 s is less than 50 ms ahead
    assert picks.index(2) == 124
    assert len(picks) == 126


def test_a_late_first_frame_fills_every_target_before_it() -> None:
    assert pick([0.5, 0.54], 8) == [0, 0, 0, 0, 0]


def test_time_is_multiplied_before_it_is_divided() -> None:
    # 1001 * (1 / 30000) rounds differently for many timestamps.
    time_base = Fraction(1001, 30000)
    assert all(seconds_of(ticks, time_base) == ticks * 1001 / 30000 for ticks in range(1000))
    assert any(seconds_of(ticks, time_base) != ticks * (1001 / 30000) for ticks in range(1000))


def test_a_missing_timestamp_follows_the_frame_before() -> None:
    times = FrameTimes(Fraction(1, 1000), Fraction(10))
    assert times.seconds(None, None) == 0.0
    assert times.seconds(None, None) == 0.1
    assert times.seconds(500, 40) == 0.5
    assert times.seconds(None, None) == 0.54
    assert times.stop_seconds == pytest.approx(0.64)

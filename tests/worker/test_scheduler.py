"""The scheduler in simulated time: admission, budgets, order, and shares of the priorities."""

import dataclasses
import heapq
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foley.errors import BusyError
from foley.types import Stage
from runners.messages import Priority
from runners.worker.scheduler import (
    AGEING,
    SHARES,
    Action,
    Budget,
    JobSize,
    Kind,
    ScheduledJob,
    Scheduler,
)

RATES: dict[Kind, float] = {Stage.ENCODE: 0.05, Stage.SAMPLE: 1e-4, Stage.DECODE_AUDIO: 1e-4}
SMALL = JobSize(tokens=100, num_evaluations=10, num_pieces=2, num_sounds=1, num_latents=50)
LONG = JobSize(tokens=800, num_evaluations=50, num_pieces=5, num_sounds=1, num_latents=400)


@dataclass
class Arrival:
    at: float
    size: JobSize = SMALL
    priority: Priority = "interactive"
    dropped_after: float = math.inf
    owner: str = ""
    decoded_after: float = 0.0  # seconds in which it holds a place and its size is not known


def make_job(
    name: str,
    priority: Priority = "interactive",
    deadline: float = math.inf,
    owner: str = "",
) -> ScheduledJob:
    return ScheduledJob(id=name, priority=priority, deadline=deadline, owner=owner)


def submit(
    scheduler: Scheduler[ScheduledJob],
    name: str,
    size: JobSize = SMALL,
    priority: Priority = "interactive",
    deadline: float = math.inf,
) -> ScheduledJob:
    """A request whose clip takes no time to decode."""
    job = make_job(name, priority, deadline)
    scheduler.reserve(job)
    scheduler.queue(job, size, now=0.0)
    return job


def cost(action: Action[ScheduledJob]) -> float:
    """Seconds that an action takes. An evaluation has a constant part beside that of its tokens."""
    if action.kind is Stage.SAMPLE:
        return 0.003 + RATES[Stage.SAMPLE] * action.tokens
    (job,) = action.jobs
    return RATES[action.kind] * job.count_units(action.kind)


@dataclass
class Simulation:
    """Devices whose actions take the seconds of `cost`, and requests that arrive."""

    budgets: Sequence[Budget] = (Budget(tokens=400),)
    capacity: int = 1000
    refused: list[Arrival] = field(default_factory=list)
    trace: list[tuple[float, Action[ScheduledJob]]] = field(default_factory=list)
    jobs: dict[int, ScheduledJob] = field(default_factory=dict)  # by the arrival's index
    left: dict[ScheduledJob, float] = field(default_factory=dict)
    began: dict[ScheduledJob, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler[ScheduledJob](self.budgets, RATES, capacity=self.capacity)
        self._in_hand: Counter[ScheduledJob] = Counter()

    def run(self, arrivals: Sequence[Arrival], until: float = math.inf) -> "Simulation":
        events: list[tuple[float, int, str, object]] = []
        count = itertools.count()
        for index, arrival in enumerate(arrivals):
            heapq.heappush(events, (arrival.at, next(count), "arrive", index))
        lanes = [d for d, budget in enumerate(self.budgets) for _ in range(budget.lanes)]
        idle = list(lanes)
        while events and events[0][0] <= until:
            now, _, what, subject = heapq.heappop(events)
            if what == "arrive":
                assert isinstance(subject, int)
                arrival = arrivals[subject]
                job = make_job(str(subject), arrival.priority, owner=arrival.owner)
                try:
                    self.scheduler.reserve(job)
                except BusyError:
                    assert len(self.scheduler.jobs) == self.capacity
                    self.refused.append(arrival)
                    continue
                self.jobs[subject] = job
                heapq.heappush(events, (now + arrival.decoded_after, next(count), "queue", subject))
                if math.isfinite(arrival.dropped_after):
                    leave = now + arrival.dropped_after
                    heapq.heappush(events, (leave, next(count), "drop", job))
            elif what == "queue":
                assert isinstance(subject, int)
                job = self.jobs[subject]
                if not job.dropped:
                    self.scheduler.queue(job, arrivals[subject].size, now=now)
            elif what == "drop":
                assert isinstance(subject, ScheduledJob)
                if self.scheduler.drop(subject):
                    self.left.setdefault(subject, now)
            else:
                assert isinstance(subject, tuple)
                action, seconds = subject
                self._in_hand.subtract(action.jobs)
                for job in self.scheduler.complete(action, seconds):
                    self.left[job] = now
                idle.append(action.device)
            for device in list(idle):
                action = self.scheduler.next(device)
                if action is None:
                    continue
                self.check(action)
                idle.remove(device)
                self.trace.append((now, action))
                self._in_hand.update(action.jobs)
                for job in action.jobs:
                    self.began.setdefault(job, now)
                seconds = cost(action)
                heapq.heappush(events, (now + seconds, next(count), "done", (action, seconds)))
        return self

    def check(self, action: Action[ScheduledJob]) -> None:
        """What holds of every action."""
        budget = self.budgets[action.device]
        assert len(self.scheduler.jobs) <= self.capacity
        assert action.jobs
        for job in action.jobs:
            assert self._in_hand[job] == 0  # one action at a time
            assert job.next_kind == action.kind
            assert job.device == action.device
        if action.kind is Stage.SAMPLE:
            assert action.tokens <= budget.tokens or len(action.jobs) == 1
        else:
            assert len(action.jobs) == 1
        states = [job for job in self.scheduler.jobs if job.device == action.device]
        num_bytes = sum(budget.estimate_bytes(job.size) for job in states)
        assert num_bytes <= budget.state_bytes or len(states) == 1

    def seconds(self, job: ScheduledJob) -> float:
        """From arrival to the end."""
        return self.left[job] - job.arrived


def make_size(share_halved: float, **counts: int) -> JobSize:
    """A size whose last evaluations, a share of all but the first, are halved."""
    return JobSize(**counts, num_halved=int(share_halved * (counts["num_evaluations"] - 1)))


sizes = st.builds(
    make_size,
    share_halved=st.sampled_from([0.0, 0.5, 1.0]),
    tokens=st.integers(1, 20).map(lambda n: 50 * n),
    num_evaluations=st.integers(1, 12),
    num_pieces=st.integers(1, 5),
    num_sounds=st.integers(1, 3),
    num_latents=st.integers(30, 750),
)
arrivals = st.lists(
    st.builds(
        Arrival,
        at=st.floats(0, 5),
        size=sizes,
        priority=st.sampled_from(list(SHARES)),
        dropped_after=st.one_of(st.just(math.inf), st.floats(0, 3)),
        decoded_after=st.one_of(st.just(0.0), st.floats(0, 2)),
    ),
    max_size=25,
)
budgets = st.lists(
    st.builds(
        Budget,
        tokens=st.sampled_from([50, 400, 2000]),
        lanes=st.integers(1, 2),
        state_bytes=st.sampled_from([1.0, 1500.0, math.inf]),
        bytes_per_request=st.sampled_from([0.0, 300.0]),
        bytes_per_token=st.just(1.0),
    ),
    min_size=1,
    max_size=3,
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(budgets, arrivals)
def test_budgets_hold_and_every_request_gets_its_pieces_in_order(
    budgets: list[Budget], arrivals: list[Arrival]
) -> None:
    simulation = Simulation(budgets).run(arrivals)
    assert simulation.scheduler.jobs == ()
    for index, job in simulation.jobs.items():
        assert job in simulation.left
        if math.isfinite(arrivals[index].dropped_after):
            continue
        assert job.next_kind is None
        kinds = [action.kind for _, action in simulation.trace if job in action.jobs]
        assert kinds == [
            *[Stage.ENCODE] * job.size.num_pieces,
            *[Stage.SAMPLE] * job.size.num_evaluations,
            *[Stage.DECODE_AUDIO] * job.size.num_sounds,
        ]


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(budgets, arrivals)
def test_no_device_idles_while_it_could_work(
    budgets: list[Budget], arrivals: list[Arrival]
) -> None:
    scheduler = Scheduler[ScheduledJob](budgets, RATES, capacity=100)
    for index, arrival in enumerate(arrivals):
        submit(scheduler, str(index), arrival.size, arrival.priority)
    for device in range(len(budgets)):
        free = [job for job in scheduler.jobs if not job.executing and job.device is None]
        assert (scheduler.next(device) is not None) == bool(free)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 20), max_size=25), sizes, st.sampled_from(list(SHARES)))
def test_equal_requests_of_a_priority_keep_their_order(
    times: list[float], size: JobSize, priority: Priority
) -> None:
    times = sorted(times)
    simulation = Simulation().run([Arrival(at, size, priority) for at in times])
    jobs = [simulation.jobs[index] for index in range(len(times))]
    for earlier, later in itertools.pairwise(jobs):
        assert simulation.began[earlier] <= simulation.began[later]
        assert simulation.left[earlier] <= simulation.left[later]


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(arrivals)
def test_a_request_is_overtaken_only_by_those_that_arrive_soon_after(
    arrivals: list[Arrival],
) -> None:
    # In any mix: no request is chosen before one whose remaining work, divided by AGEING, is less
    # than the time between their arrivals.
    arrivals = [dataclasses.replace(a, priority="bulk") for a in arrivals]
    simulation = Simulation([Budget(tokens=1)])  # one request at a time
    choose = simulation.scheduler._choose

    def watched(device: int) -> Action[ScheduledJob] | None:
        free = [job for job in simulation.scheduler._queued if not job.executing]
        action = choose(device)
        if action is not None:
            (chosen,) = action.jobs
            for job in free:
                if (
                    job is not chosen
                    and job.next_kind != Stage.DECODE_AUDIO
                    and chosen.next_kind != Stage.DECODE_AUDIO
                ):
                    ahead = chosen.arrived - job.arrived
                    assert ahead <= simulation.scheduler.estimate_seconds_left(job) / AGEING
        return action

    simulation.scheduler._choose = watched  # type: ignore[method-assign]
    simulation.run(arrivals)


@pytest.mark.slow
@given(sizes)
def test_the_work_left_is_the_sum_of_the_actions_left(size: JobSize) -> None:
    for kind in RATES:
        units = [size.count_units(kind, done) for done in range(size.count_actions(kind))]
        for done in range(len(units) + 1):
            assert size.count_units_left(kind, done) == sum(units[done:])


def test_requests_share_an_evaluation_when_the_end_of_guidance_makes_room() -> None:
    size = dataclasses.replace(SMALL, tokens=400, num_evaluations=6, num_halved=4)
    simulation = Simulation([Budget(tokens=600)]).run([Arrival(0.0, size), Arrival(0.0, size)])
    batches = [len(action.jobs) for _, action in simulation.trace if action.kind is Stage.SAMPLE]
    # 400 and 400 tokens do not fit; 200 of the first with 400 or 200 of the second do. The second
    # is encoded during the third evaluation of the first.
    assert batches == [1, 1, 1, 2, 2, 2, 1, 1, 1]


def test_the_seconds_of_a_batch_are_divided_by_the_tokens_of_this_evaluation() -> None:
    scheduler = Scheduler[ScheduledJob]([Budget(tokens=400)], RATES, capacity=2)
    halved = dataclasses.replace(SMALL, tokens=200, num_pieces=1, num_evaluations=2, num_halved=1)
    jobs = (submit(scheduler, "1", halved), submit(scheduler, "2", halved, "bulk"))
    for job in jobs:
        job.device, job.done[Stage.ENCODE] = 0, 1
    jobs[0].done[Stage.SAMPLE] = 1
    action = scheduler.next(0)
    assert action is not None
    assert set(action.jobs) == set(jobs)
    assert action.tokens == 300
    before = dict(scheduler._served)
    scheduler.complete(action, 3.0)
    assert scheduler._served["interactive"] - before["interactive"] == pytest.approx(1 / 0.8)
    assert scheduler._served["bulk"] - before["bulk"] == pytest.approx(2 / 0.2)


def test_a_short_request_does_not_wait_for_a_long_one() -> None:
    simulation = Simulation().run([Arrival(0.0, LONG), Arrival(1.0)])
    long, short = simulation.jobs[0], simulation.jobs[1]
    alone = Simulation().run([Arrival(0.0)])
    # An evaluation of the long one takes 0.083 s.
    assert simulation.seconds(short) < alone.seconds(alone.jobs[0]) + 0.1
    assert simulation.left[short] < simulation.left[long]


@pytest.mark.slow
def test_a_long_request_ends_under_an_overload_of_short_ones() -> None:
    # Each short one takes 0.2 s of a device and one arrives every 0.1 s: all places are taken.
    shorts = [Arrival(0.1 * index) for index in range(3000)]
    simulation = Simulation(capacity=8).run([Arrival(0.05, LONG), *shorts])
    long = simulation.jobs[0]
    # Those that arrive within its work / AGEING seconds may go before it. Its work is 5.2 s at the
    # rate of small evaluations. Measured: 52 s.
    work = sum(LONG.count_units_left(k, 0) * RATES[k] for k in RATES) + LONG.tokens * 50 * 3e-5
    assert simulation.seconds(long) < work / AGEING + work
    assert len(simulation.refused) > 1000


# A sound of ten minutes: 85 windows of 8 s, 4 steps each, guided.
WINDOWED = JobSize(
    tokens=800,
    num_windows=85,
    num_evaluations=85 * 4,
    num_pieces=85,
    num_sounds=75,
    num_latents=432,
)


def test_a_sound_of_minutes_delays_a_short_one_by_single_windows() -> None:
    simulation = Simulation().run([Arrival(0.0, WINDOWED), Arrival(15.0)])
    alone = Simulation().run([Arrival(0.0)])
    long, short = simulation.jobs[0], simulation.jobs[1]
    one_window = 0.003 + RATES[Stage.SAMPLE] * WINDOWED.tokens
    # Each of its 13 actions waits for at most one window.
    num_actions = sum(SMALL.count_actions(kind) for kind in RATES)
    assert simulation.seconds(short) < alone.seconds(alone.jobs[0]) + num_actions * one_window
    assert simulation.left[short] < simulation.left[long] - 5


@pytest.mark.long
def test_a_sound_of_minutes_ends_under_an_overload_of_short_ones() -> None:
    arrivals = [Arrival(0.05, WINDOWED), *(Arrival(0.1 * index) for index in range(9000))]
    simulation = Simulation(capacity=8).run(arrivals)
    work = sum(WINDOWED.count_units_left(k, 0) * RATES[k] for k in RATES)
    assert simulation.seconds(simulation.jobs[0]) < (1 / AGEING + 2) * work
    assert len(simulation.refused) > 1000


def test_a_sound_of_minutes_leaves_within_one_window() -> None:
    # After 15 s it is sampled: encoding takes 4.25 s.
    simulation = Simulation().run([Arrival(0.0, WINDOWED, dropped_after=15.0)])
    job = simulation.jobs[0]
    last_start, last = simulation.trace[-1]
    assert last.kind is Stage.SAMPLE
    assert last_start < 15.0
    assert simulation.left[job] - 15.0 <= cost(last)


def test_the_state_of_a_long_sound_has_the_tokens_of_all_windows() -> None:
    budget = Budget(tokens=800, bytes_per_request=1000.0, bytes_per_token=2.0)
    assert budget.estimate_bytes(LONG) == 1000 + 2 * 800
    assert budget.estimate_bytes(WINDOWED) == 1000 + 2 * 800 * 85


@pytest.mark.slow
@pytest.mark.parametrize("busy", ["interactive", "bulk"])
def test_each_priority_has_its_share_under_an_overload_of_the_other(busy: Priority) -> None:
    other: Priority = "bulk" if busy == "interactive" else "interactive"
    size = dataclasses.replace(SMALL, tokens=400)
    arrivals = [Arrival(0.0, size, busy) for _ in range(150)]
    arrivals += [Arrival(0.0, size, other) for _ in range(150)]
    simulation = Simulation().run(arrivals, until=30)
    seconds: Counter[Priority] = Counter()
    for _, action in simulation.trace:
        for job in action.jobs:
            seconds[job.priority] += cost(action) / len(action.jobs)
    share = seconds["bulk"] / seconds.total()
    assert share == pytest.approx(SHARES["bulk"], abs=0.02)


@pytest.mark.slow
def test_a_backlog_of_bulk_delays_an_interactive_request_by_its_share_only() -> None:
    backlog = [Arrival(0.0, LONG, "bulk") for _ in range(50)]
    simulation = Simulation().run([*backlog, Arrival(5.0)])
    alone = Simulation().run([Arrival(0.0)])
    one = simulation.seconds(simulation.jobs[50])
    # Its own work, the piece that runs when it comes, and a fifth for bulk.
    assert one < 1.25 * alone.seconds(alone.jobs[0]) + 0.1


def test_a_priority_without_work_saves_nothing_up() -> None:
    arrivals = [Arrival(0.5 * index, SMALL) for index in range(100)]
    arrivals += [Arrival(40.0, LONG, "bulk") for _ in range(3)]
    simulation = Simulation().run(arrivals)
    interactive = [job for job in simulation.jobs.values() if job.priority == "interactive"]
    # Alone each takes 0.24 s. With 40 s of credit, bulk would keep them waiting for 12 s.
    assert max(map(simulation.seconds, interactive)) < 0.6


def test_pieces_get_half_of_the_seconds_while_evaluations_could_run() -> None:
    scheduler = Scheduler[ScheduledJob]([Budget(tokens=10_000)], RATES, capacity=100)
    size = dataclasses.replace(SMALL, num_evaluations=10_000)
    many = dataclasses.replace(size, num_pieces=10_000)
    for name, one in (("steps", size), ("pieces", many)):
        submit(scheduler, name, one)
    seconds: Counter[str] = Counter()
    longest, since = 0.0, 0.0
    for _ in range(400):
        action = scheduler.next(0)
        assert action is not None
        scheduler.complete(action, cost(action))
        seconds[action.kind] += cost(action)
        since = 0.0 if action.kind is Stage.SAMPLE else since + cost(action)
        longest = max(longest, since)
    assert seconds[Stage.ENCODE] / seconds.total() == pytest.approx(0.5, abs=0.05)
    assert longest < 3 * RATES[Stage.ENCODE]


def test_requests_of_all_kinds_share_an_evaluation() -> None:
    size = dataclasses.replace(SMALL, num_evaluations=40)
    simulation = Simulation([Budget(tokens=2000)]).run(
        [Arrival(0.0, LONG), Arrival(0.1, size), Arrival(0.2, size, "bulk")]
    )
    assert max(len(action.jobs) for _, action in simulation.trace) == 3


@pytest.mark.slow
def test_devices_share_the_queue() -> None:
    arrivals = [Arrival(0.0) for _ in range(40)]
    one = Simulation([Budget(tokens=100)]).run(arrivals)
    four = Simulation([Budget(tokens=100)] * 4).run(arrivals)
    assert {action.device for _, action in four.trace} == {0, 1, 2, 3}
    assert max(four.left.values()) < max(one.left.values()) / 3.5


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(arrivals, st.integers(1, 4))
def test_a_request_is_refused_only_while_all_places_are_taken(
    arrivals: list[Arrival], capacity: int
) -> None:
    # The simulation checks both at each event: never more requests than places, and no refusal
    # while one is free.
    simulation = Simulation(capacity=capacity).run(arrivals)
    assert len(simulation.jobs) + len(simulation.refused) == len(arrivals)
    assert simulation.scheduler.jobs == ()


def test_a_request_that_is_being_decoded_holds_a_place_and_no_device_works_on_it() -> None:
    scheduler = Scheduler[ScheduledJob]([Budget(tokens=100)], RATES, capacity=1)
    job = make_job("a")
    scheduler.reserve(job)
    assert scheduler.jobs == (job,)
    assert scheduler.waiting == []
    assert scheduler.next(0) is None
    with pytest.raises(BusyError) as caught:
        scheduler.reserve(make_job("b"))
    assert caught.value.retry_after_seconds is None  # its size is not known yet
    scheduler.queue(job, SMALL, now=5.0)
    assert (job.arrived, scheduler.waiting) == (5.0, [job])
    with pytest.raises(BusyError) as caught:
        scheduler.reserve(make_job("b"))
    assert caught.value.retry_after_seconds is not None
    action = scheduler.next(0)
    assert action is not None
    assert action.jobs == (job,)


def test_a_request_that_is_dropped_while_it_is_being_decoded_frees_its_place_at_once() -> None:
    scheduler = Scheduler[ScheduledJob]([Budget(tokens=100)], RATES, capacity=1)
    job, other = make_job("a"), make_job("b")
    scheduler.reserve(job)
    assert scheduler.drop(job)
    scheduler.reserve(other)
    assert scheduler.jobs == (other,)


def test_the_deadline_of_a_request_holds_while_it_is_being_decoded() -> None:
    scheduler = Scheduler[ScheduledJob]([Budget(tokens=100)], RATES, capacity=2)
    early, late = make_job("a", deadline=3.0), make_job("b", deadline=5.0)
    scheduler.reserve(late)
    scheduler.reserve(early)
    assert scheduler.find_next_deadline() == 3.0
    assert scheduler.list_late(2.9) == []
    assert scheduler.list_late(3.0) == [early]
    scheduler.drop(early)
    assert scheduler.find_next_deadline() == 5.0


def test_a_priority_whose_clips_are_being_decoded_saves_nothing_up() -> None:
    arrivals = [Arrival(0.5 * index) for index in range(100)]
    arrivals += [Arrival(0.0, LONG, "bulk", decoded_after=40.0) for _ in range(3)]
    simulation = Simulation().run(arrivals)
    interactive = [job for job in simulation.jobs.values() if job.priority == "interactive"]
    # Alone each takes 0.24 s. With 40 s of credit, bulk would keep them waiting for 5 s. At 40 s
    # the bulk requests come first, into an empty queue.
    assert max(map(simulation.seconds, interactive)) < 0.6


def test_a_refusal_says_when_a_place_is_expected() -> None:
    scheduler = Scheduler[ScheduledJob]([Budget(tokens=100), Budget(tokens=100)], RATES, capacity=4)
    for index in range(4):
        submit(scheduler, str(index))
    with pytest.raises(BusyError) as caught:
        scheduler.reserve(make_job("5"))
    work = 2 * 0.05 + 10 * 100 * 1e-4 + 50 * 1e-4
    assert caught.value.retry_after_seconds == pytest.approx(work / 2)


def test_rates_follow_the_measured_seconds() -> None:
    scheduler = Scheduler[ScheduledJob]([Budget(tokens=100)], RATES, capacity=1)
    size = dataclasses.replace(SMALL, num_pieces=1000)
    job = submit(scheduler, "a", size)
    for _ in range(200):
        action = scheduler.next(0)
        assert action is not None
        scheduler.complete(action, 0.5)
    assert scheduler.estimate_seconds_left(job) == pytest.approx(800 * 0.5, rel=0.01)


def test_seconds_that_come_later_count_as_those_that_are_known_at_once() -> None:
    def run(*, late: bool) -> tuple[Scheduler[ScheduledJob], ScheduledJob]:
        scheduler = Scheduler[ScheduledJob]([Budget(tokens=400)], RATES, capacity=1)
        job = submit(scheduler, "a", SMALL)
        action = scheduler.next(0)
        while action is not None:
            scheduler.complete(action, None if late else 0.2)
            following = scheduler.next(0)  # begins before the time of the last one is known
            if late:
                scheduler.correct(action, 0.2)
            action = following
        return scheduler, job

    (known, expected), (late, job) = run(late=False), run(late=True)
    assert job.device_seconds == pytest.approx(expected.device_seconds)
    assert late._served == pytest.approx(known._served)
    assert late._rates == pytest.approx(known._rates)
    assert not late._expected


def test_late_requests_are_listed_and_dropped_ones_leave_after_their_action() -> None:
    scheduler = Scheduler[ScheduledJob]([Budget(tokens=100)], RATES, capacity=2)
    first, second = (
        submit(scheduler, name, deadline=deadline) for name, deadline in (("a", 3.0), ("b", 5.0))
    )
    assert scheduler.find_next_deadline() == 3.0
    assert scheduler.list_late(2.9) == []
    assert scheduler.list_late(3.0) == [first]
    action = scheduler.next(0)
    assert action is not None
    assert action.jobs == (first,)
    assert not scheduler.drop(first)
    assert scheduler.drop(second)
    assert scheduler.jobs == (first,)
    assert scheduler.complete(action, 0.1) == [first]
    assert scheduler.jobs == ()
    assert scheduler.find_next_deadline() == math.inf
    assert scheduler.drop(first)


def test_keys_take_turns_however_many_requests_each_has() -> None:
    # Without turns, the request of b would wait for all of a, which came first.
    arrivals = [Arrival(0.0, LONG, owner="a") for _ in range(10)]
    arrivals.append(Arrival(0.01, LONG, owner="b"))
    run = Simulation(budgets=(Budget(tokens=800),)).run(arrivals)
    alone = Simulation(budgets=(Budget(tokens=800),)).run([Arrival(0.0, LONG)])
    # Half of the seconds are its own, and the piece of a that was being executed when it came.
    assert run.seconds(run.jobs[10]) < 2 * alone.seconds(alone.jobs[0]) + 0.2
    assert max(run.left.values()) == max(run.left[run.jobs[i]] for i in range(10))


def test_a_key_without_work_saves_nothing_up() -> None:
    arrivals = [Arrival(0.0, LONG, owner="a") for _ in range(4)]
    arrivals += [Arrival(5.0, LONG, owner="b") for _ in range(4)]
    run = Simulation(budgets=(Budget(tokens=800),)).run(arrivals)
    seconds: Counter[str] = Counter()
    for at, action in run.trace:
        if 5.5 < at < 15.0:  # both have work
            for job in action.jobs:
                seconds[job.owner] += cost(action)
    assert seconds["a"] == pytest.approx(seconds["b"], rel=0.1)


def test_a_key_holds_its_share_of_the_places_and_leaves_the_rest_to_others() -> None:
    scheduler = Scheduler[ScheduledJob]([Budget(tokens=400)], RATES, capacity=4, key_share=0.5)
    for name in "12":
        scheduler.reserve(make_job(name, owner="a"))
    with pytest.raises(BusyError, match="2 requests of this caller"):
        scheduler.reserve(make_job("3", owner="a"))
    for name in "45":
        scheduler.reserve(make_job(name, owner="b"))
    with pytest.raises(BusyError, match=r"^4 requests are"):
        scheduler.reserve(make_job("6", owner="c"))


@pytest.mark.slow
def test_the_seconds_of_an_action_are_those_of_its_requests_by_their_tokens() -> None:
    scheduler = Scheduler[ScheduledJob]([Budget(tokens=400)], RATES, capacity=2)
    for tokens in (100, 300):
        submit(scheduler, str(tokens), dataclasses.replace(SMALL, tokens=tokens))
    num_shared = 0
    while (action := scheduler.next(0)) is not None:
        before = [job.device_seconds for job in action.jobs]
        scheduler.complete(action, 4.0)
        parts = [job.device_seconds for job in action.jobs]
        parts = [after - was for after, was in zip(parts, before, strict=True)]
        assert sorted(parts) == ([1.0, 3.0] if len(parts) == 2 else [4.0])
        num_shared += len(parts) == 2
    assert num_shared > 1

"""A fleet of 1 to 1,000 GPUs in simulated time: queueing, cold starts, cost, and what breaks first.

    python -m research.fleet [--quick] [--record --hardware NAME] [--out docs/images/fleet.svg]

Each GPU has a scheduler of the service, with its rules, places and budget; only the seconds of its
actions are computed instead of spent. They are those of one H100 with XXL in bf16 and 50 steps:

*   an evaluation: 14.2, 45.5 and 167.1 ms for 1, 4 and 16 clips of 8 s, and 22.5 ms for one of
    15 s (benchmarks/records/2026-11-26_gpu_h100_9e95e6a.json), which is a constant part and one
    for each token;
*   conditions and sound: 56.4 and 5.7 ms for 8 s
    (benchmarks/records/2026-11-28_gpu_h100_b050276.json);
*   a start: 77.4 s with an empty cache of compiled code
    (benchmarks/records/2026-11-28_fleet_h100x4_e2339ca.json), 20.5 s with a full one
    (benchmarks/records/2026-11-26_start_h100_9e95e6a.json);
*   a queue on PostgreSQL: 31 jobs a second with three processes, measured beside other work.

Reading and writing of clips is left out: it runs on CPUs, 1.05 s of processor time a clip.
"""

import argparse
import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.records import environment, finish, percentile
from foley.configs import LATENT_RATE
from foley.types import Stage
from runners.messages import Priority
from runners.worker.scheduler import Action, Budget, JobSize, Kind, ScheduledJob, Scheduler

NUM_STEPS = 50
EVALUATION_SECONDS = 0.0040
TOKEN_SECONDS = 0.0102 / (2 * 8 * LATENT_RATE)
ENCODE_SECONDS = 0.0564 / 8  # a second of a clip
DECODE_SECONDS = 0.0057 / (8 * LATENT_RATE)  # a latent frame
BUDGET = Budget(tokens=4 * 2 * 8 * LATENT_RATE)  # four clips of 8 s reach 92 % of the best rate
PLACES = 16
COLD_SECONDS, CACHED_SECONDS = 77.4, 20.5
DATABASE_JOBS_PER_SECOND = 31.0
# A worker takes the next job of the queue once it holds fewer than this. Two full evaluations keep
# it busy. More would wait here while another worker is free.
HELD = 8
BULK_SHARE = 0.2
POLL_SECONDS = 15.0  # between two decisions of the autoscaler
SETTLE_SECONDS = 300.0  # that it waits before it takes a GPU away
WAITING_PER_GPU = 4.0  # jobs for each GPU that the autoscaler aims at

Policy = Literal["queue", "random", "fewest"]
_RATES: dict[Kind, float] = {
    Stage.ENCODE: ENCODE_SECONDS,
    Stage.SAMPLE: TOKEN_SECONDS,
    Stage.DECODE_AUDIO: DECODE_SECONDS,
}


@dataclass(frozen=True)
class Request:
    """One clip.

    Attributes:
        at: when it comes, in seconds.
        seconds: of the clip.
        priority: interactive or bulk.
    """

    at: float
    seconds: int
    priority: Priority

    @property
    def size(self) -> JobSize:
        """Its work."""
        frames = self.seconds * LATENT_RATE
        return JobSize(
            tokens=2 * frames,
            num_evaluations=NUM_STEPS,
            num_pieces=self.seconds,
            num_sounds=1,
            num_latents=frames,
        )


def compute_seconds(action: Action[ScheduledJob]) -> float:
    """Return the seconds of an action on an H100."""
    if action.kind is Stage.SAMPLE:
        return EVALUATION_SECONDS + TOKEN_SECONDS * action.tokens
    return sum(_RATES[action.kind] * job.count_units(action.kind) for job in action.jobs)


def compute_capacity(mean_seconds: float) -> float:
    """Return the clips a second of one GPU with full evaluations.

    Args:
        mean_seconds: of the clips.
    """
    full = (EVALUATION_SECONDS + TOKEN_SECONDS * BUDGET.tokens) / BUDGET.tokens
    tokens = 2 * LATENT_RATE * mean_seconds * NUM_STEPS
    own = mean_seconds * (ENCODE_SECONDS + DECODE_SECONDS * LATENT_RATE)
    return 1 / (tokens * full + own)


def draw_requests(rng: random.Random, rate: float, start: float, stop: float) -> Iterator[Request]:
    """Requests at random times, of 2 to 15 s, a fifth of them bulk.

    Args:
        rng: of all draws.
        rate: requests a second.
        start: of the time in which they come, in seconds.
        stop: its end.
    """
    at = start
    while (at := at + rng.expovariate(rate)) < stop:
        priority: Priority = "bulk" if rng.random() < BULK_SHARE else "interactive"
        yield Request(at, rng.randint(2, 15), priority)


MEAN_SECONDS = 8.5


@dataclass
class Gpu:
    """A worker with one GPU.

    Attributes:
        ready: when it can work, in seconds.
        scheduler: of its requests.
        held: the requests that it has.
        busy: seconds in which it worked.
        stopped: when it was given back; infinite while it is there.
    """

    ready: float = 0.0
    scheduler: Scheduler[ScheduledJob] = field(
        default_factory=lambda: Scheduler([BUDGET], _RATES, capacity=10**9)
    )
    held: int = 0
    busy: float = 0.0
    working: bool = False
    stopped: float = math.inf


@dataclass
class Fleet:
    """GPUs that share the requests.

    Attributes:
        num_gpus: at the start.
        policy: who gives a request to a GPU: the GPUs take from one queue when they have room, or
            a balancer gives each request at once to a random one, or to the one that holds the
            fewest.
        jobs_per_second: that the queue's database stores and gives out; infinite without one.
        start_seconds: of a new GPU, if the number follows the load; None if it does not.
        max_gpus: of an autoscaler.
    """

    num_gpus: int
    policy: Policy = "queue"
    jobs_per_second: float = math.inf
    start_seconds: float | None = None
    max_gpus: int = 0
    seed: int = 1
    finished: list[tuple[Request, float]] = field(default_factory=list)
    num_ready: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gpus = [Gpu() for _ in range(self.num_gpus)]
        self.all_gpus = list(self.gpus)
        self._rng = random.Random(self.seed)
        self._queues: dict[Priority, deque[Request]] = {"interactive": deque(), "bulk": deque()}
        self._requests: dict[ScheduledJob, Request] = {}
        self._events: list[tuple[float, int, str, Any]] = []
        self._count = itertools.count()
        self._database_free = 0.0
        self._low_since: float | None = None
        self.now = 0.0

    def run(self, requests: Sequence[Request]) -> "Fleet":
        """Work until every request is finished."""
        for request in requests:
            self._add(request.at, "arrive", request)
        if self.start_seconds is not None:
            self._add(0.0, "scale", None)
        self._last = requests[-1].at
        while self._events:
            self.now, _, what, subject = heapq.heappop(self._events)
            if what == "arrive":
                self._store(subject)
            elif what == "stored":
                self._give_out(subject)
            elif what == "ready":
                self._take(subject)
            elif what == "scale":
                self._scale()
            else:
                self._complete(*subject)
        return self

    def _add(self, at: float, what: str, subject: Any) -> None:
        heapq.heappush(self._events, (at, next(self._count), what, subject))

    def _store(self, request: Request) -> None:
        if math.isinf(self.jobs_per_second):
            self._give_out(request)
            return
        self._database_free = max(self.now, self._database_free) + 1 / self.jobs_per_second
        self._add(self._database_free, "stored", request)

    def _give_out(self, request: Request) -> None:
        if self.policy == "queue":
            self._queues[request.priority].append(request)
            free = [g for g in self.gpus if g.held < HELD and g.ready <= self.now]
            if free:
                self._take(min(free, key=lambda gpu: gpu.held))
        else:
            ready = [gpu for gpu in self.gpus if gpu.ready <= self.now]
            fewest = self.policy == "fewest"
            self._begin(
                min(ready, key=lambda g: g.held) if fewest else self._rng.choice(ready), request
            )

    def _take(self, gpu: Gpu) -> None:
        while gpu.held < HELD and math.isinf(gpu.stopped):
            queue = self._queues["interactive"] or self._queues["bulk"]
            if not queue:
                return
            self._begin(gpu, queue.popleft())

    def _begin(self, gpu: Gpu, request: Request) -> None:
        job = ScheduledJob(id=str(next(self._count)), priority=request.priority, deadline=math.inf)
        gpu.scheduler.reserve(job)
        gpu.scheduler.queue(job, request.size, now=self.now)
        gpu.held += 1
        self._requests[job] = request
        self._work(gpu)

    def _work(self, gpu: Gpu) -> None:
        if gpu.working:
            return
        action = gpu.scheduler.next(0)
        if action is not None:
            gpu.working = True
            seconds = compute_seconds(action)
            gpu.busy += seconds
            self._add(self.now + seconds, "complete", (gpu, action, seconds))

    def _complete(self, gpu: Gpu, action: Action[ScheduledJob], seconds: float) -> None:
        gpu.working = False
        for job in gpu.scheduler.complete(action, seconds):
            gpu.held -= 1
            self.finished.append((self._requests.pop(job), self.now))
        if self.policy == "queue":
            self._take(gpu)
        self._work(gpu)

    def _scale(self) -> None:
        """Decide as an autoscaler on the number of jobs that wait or run."""
        assert self.start_seconds is not None
        jobs = sum(map(len, self._queues.values())) + sum(gpu.held for gpu in self.gpus)
        wanted = min(self.max_gpus, max(1, math.ceil(jobs / WAITING_PER_GPU)))
        for _ in range(wanted - len(self.gpus)):
            gpu = Gpu(ready=self.now + self.start_seconds)
            self.gpus.append(gpu)
            self.all_gpus.append(gpu)
            self._add(gpu.ready, "ready", gpu)
        if wanted >= len(self.gpus):
            self._low_since = None
        elif self._low_since is None:
            self._low_since = self.now
        elif self.now - self._low_since >= SETTLE_SECONDS:
            idle = [gpu for gpu in self.gpus if not gpu.held and gpu.ready <= self.now]
            for gpu in idle[: len(self.gpus) - wanted]:
                gpu.stopped = self.now
                self.gpus.remove(gpu)
        self.num_ready.append((self.now, sum(gpu.ready <= self.now for gpu in self.gpus)))
        if self.now < self._last or self._requests or any(self._queues.values()):
            self._add(self.now + POLL_SECONDS, "scale", None)

    def report(self, since: float, until: float) -> dict[str, float]:
        """Return the figures of the requests that came in a time.

        Args:
            since: its start, in seconds.
            until: its end.
        """
        took = [end - r.at for r, end in self.finished if since <= r.at < until]
        sound = sum(r.seconds for r, _ in self.finished)
        held = sum(min(gpu.stopped, self.now) for gpu in self.all_gpus)
        held -= sum(max(0.0, gpu.ready - (self.start_seconds or 0.0)) for gpu in self.all_gpus)
        return {
            "requests": len(took),
            "p50_seconds": round(percentile(took, 50), 2),
            "p95_seconds": round(percentile(took, 95), 2),
            "p99_seconds": round(percentile(took, 99), 2),
            "busy_share": round(sum(gpu.busy for gpu in self.all_gpus) / held, 3),
            "gpu_seconds_per_minute_of_sound": round(60 * held / sound, 2),
        }


def simulate(num_gpus: int, load: float, seconds: float, **options: Any) -> dict[str, Any]:
    """Return the figures of a fleet under a steady load.

    Args:
        num_gpus: of the fleet.
        load: share of what full evaluations on all GPUs would give.
        seconds: in which requests come; those of the first third are not counted.
        options: of `Fleet`.
    """
    rate = load * num_gpus * compute_capacity(MEAN_SECONDS)
    requests = list(draw_requests(random.Random(7), rate, 0.0, seconds))
    fleet = Fleet(num_gpus, **options).run(requests)
    return {"gpus": num_gpus, "load": load, **fleet.report(seconds / 3, seconds)}


def simulate_rise(max_gpus: int, start_seconds: float, seconds: float) -> dict[str, Any]:
    """Return the figures of a fleet whose load rises at once from a fifth to nine tenths.

    Args:
        max_gpus: of the autoscaler; the load is a share of what they can do.
        start_seconds: of a new GPU.
        seconds: of the high load; that of the low one lasts a fifth as long.
    """
    rise = seconds / 5
    rng, whole = random.Random(7), max_gpus * compute_capacity(MEAN_SECONDS)
    before = list(draw_requests(rng, 0.2 * whole, 0.0, rise))
    after = list(draw_requests(rng, 0.9 * whole, rise, rise + seconds))
    num_gpus = max(1, math.ceil(0.3 * max_gpus))
    fleet = Fleet(num_gpus, start_seconds=start_seconds, max_gpus=max_gpus)
    fleet.run([*before, *after])
    waits = [(r.at, end - r.at) for r, end in fleet.finished if r.at >= rise]
    worst = max(wait for _, wait in waits)
    calm = max((at for at, wait in waits if wait > 20.0), default=rise)
    return {
        "max_gpus": max_gpus,
        "start_seconds": start_seconds,
        "worst_seconds": round(worst, 1),
        "slow_for_seconds": round(calm - rise, 1),
        **fleet.report(rise, rise + seconds),
    }


def measure(quick: bool) -> dict[str, Any]:
    """Run the study.

    Args:
        quick: small fleets and short times, to try the program.
    """
    sizes = (1, 4) if quick else (1, 4, 16, 64, 256, 1000)
    spans = {size: 8.0 if quick else max(30.0, min(300.0, 6000 / size)) for size in sizes}
    policies: tuple[Policy, ...] = ("queue", "fewest", "random")
    loads = (0.5, 0.9) if quick else (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
    return {
        "capacity_per_gpu": round(compute_capacity(MEAN_SECONDS), 3),
        "capacity_of_8s_per_gpu": round(compute_capacity(8.0), 3),
        "sizes": [
            {"policy": policy, **simulate(size, 0.8, spans[size], policy=policy)}
            for policy in policies
            for size in sizes
        ],
        "loads": [simulate(4 if quick else 16, load, 8.0 if quick else 600.0) for load in loads],
        "database": [
            simulate(size, 0.8, 8.0 if quick else 300.0, jobs_per_second=DATABASE_JOBS_PER_SECOND)
            for size in ((4,) if quick else (16, 24, 32, 40))
        ],
        "rise": [
            simulate_rise(2 if quick else 16, start, 20.0 if quick else 600.0)
            for start in (COLD_SECONDS, CACHED_SECONDS, 0.0)
        ],
    }


def plot(figures: dict[str, Any], out: Path) -> None:
    """Draw the slowest twentieth by the size of the fleet, and by its load.

    Args:
        figures: of `measure`.
        out: whose suffix selects the format, such as .svg.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "fleet"
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    names = {
        "queue": "one queue",
        "fewest": "balancer, fewest requests",
        "random": "balancer, at random",
    }
    for policy, label in names.items():
        rows = [row for row in figures["sizes"] if row["policy"] == policy]
        left.plot(
            [r["gpus"] for r in rows], [r["p95_seconds"] for r in rows], marker="o", label=label
        )
    left.set(xscale="log", xlabel="GPUs at 80 % load", ylabel="95th percentile, s", ylim=(0, None))
    left.legend(frameon=False)
    rows = figures["loads"]
    shares = [100 * row["load"] for row in rows]
    right.plot(shares, [row["p95_seconds"] for row in rows], marker="o", label="95th percentile, s")
    cost = [row["gpu_seconds_per_minute_of_sound"] for row in rows]
    right.plot(shares, cost, marker="s", label="GPU seconds a minute of sound")
    right.set(xlabel=f"load of {rows[0]['gpus']} GPUs, %", ylim=(0, None))
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)
    pyplot.close(figure)


def main() -> None:
    """Run the study, print it, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--hardware", default="simulated")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    figures = measure(args.quick)
    if args.out:
        plot(figures, args.out)
    record = {**environment(), "what": "fleet_simulation", **figures}
    finish(record, hardware=args.hardware, write=args.record)


if __name__ == "__main__":
    main()

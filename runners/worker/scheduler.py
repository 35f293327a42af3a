"""Continuous batching by model evaluation: admission, order and batches, without torch or threads.

    reserve ──► reserved ──queue──► waiting ──► encode *, sample * with others, decode_audio *

A request holds one of `capacity` places from `reserve`, while its clip is still being decoded, to
the end. It joins and leaves between two model evaluations, so a short request does not wait for a
long one, and no device idles while work waits.

The scheduler has no clock: its caller passes the time and reports how long each action took. The
rules, in order:

*   **Shares.** Of the two priorities, interactive and bulk, each gets its share of the devices'
    seconds (`SHARES`) while it has work. Bulk work neither delays interactive work by more than
    its share nor starves.
*   **Turns.** Within a priority the API key that got the fewest seconds goes first, so keys get
    equal seconds while they have work, however many requests each has. Of one key the request with
    the least work left goes first, where each second since its arrival counts as `AGEING` seconds
    less. So it is overtaken only by requests of its key that arrive within (its work / AGEING)
    seconds after it. Equal requests keep their order of arrival.
*   **Evaluations.** One evaluation takes requests in that order as long as their tokens fit its
    budget. A request larger than the budget is evaluated alone. Of a long sound it takes one
    window, so a long sound neither delays the others by more than that nor waits for them to end.
    A long sound is made in groups of windows: it is encoded, sampled and decoded again for each.
*   **Memory.** A request begins on a device when its state fits beside those that began there. If
    the next one in order does not fit, none after it begins before it.
*   **Frames.** A long clip is encoded while it is decoded. Without its next frames it is passed
    over, and keeps its place and its device. Its size is an estimate until its last frames.
*   **Pieces.** Encoding and decoding come in pieces. On a device where evaluations could run
    instead, pieces get half of the seconds.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar, get_args

from foley.errors import BusyError
from foley.types import Stage
from runners.messages import Priority

# The stages that a device works on. An action is one piece of a stage.
Kind = Literal[Stage.ENCODE, Stage.SAMPLE, Stage.DECODE_AUDIO]
KINDS: tuple[Kind, ...] = get_args(Kind)
SHARES: dict[Priority, float] = {"interactive": 0.8, "bulk": 0.2}
AGEING = 0.1
# The weight of the latest measurement in a rate.
_LATEST_WEIGHT = 0.05


@dataclass(frozen=True, kw_only=True)
class JobSize:
    """The work of a request.

    Attributes:
        tokens: of the first model evaluation, which no other exceeds: latent frames of one window,
            of all variations and halves of guidance.
        num_evaluations: of the model, each of one window.
        num_halved: the last evaluations, after guidance has ended; each has half of the tokens.
        num_pieces: in which its conditions are encoded.
        num_sounds: pieces of sound to decode.
        num_latents: latent frames of one of them.
        num_windows: of a group of the sound; the state holds the tokens of all.
    """

    tokens: int
    num_evaluations: int
    num_pieces: int
    num_sounds: int
    num_latents: int
    num_halved: int = 0
    num_windows: int = 1

    def count_actions(self, kind: Kind) -> int:
        """Return the number of actions of a kind, at least 1."""
        counts = {
            Stage.ENCODE: self.num_pieces,
            Stage.SAMPLE: self.num_evaluations,
            Stage.DECODE_AUDIO: self.num_sounds,
        }
        return counts[kind]

    def count_tokens(self, num_done: int) -> int:
        """Return the tokens of the next evaluation.

        Args:
            num_done: evaluations before it.
        """
        halved = num_done >= self.num_evaluations - self.num_halved
        return self.tokens // 2 if halved else self.tokens

    def count_units(self, kind: Kind, num_done: int) -> int:
        """Return the size of the next action of a kind, to which its seconds are proportional.

        Args:
            kind: a piece of encoding has 1 unit, an evaluation its tokens, a sound its frames.
            num_done: actions of the kind before it.
        """
        if kind is Stage.ENCODE:
            return 1
        return self.count_tokens(num_done) if kind is Stage.SAMPLE else self.num_latents

    def count_units_left(self, kind: Kind, num_done: int) -> int:
        """Return the size of all actions of a kind that are still to come.

        Args:
            kind: as in `count_units`.
            num_done: actions of the kind before them.
        """
        left = max(0, self.count_actions(kind) - num_done)
        if kind is not Stage.SAMPLE:
            return left * self.count_units(kind, num_done)
        halved = min(left, self.num_halved)
        return (left - halved) * self.tokens + halved * (self.tokens // 2)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The work that a device takes at once.

    Attributes:
        tokens: of one evaluation; more would delay all requests and gain no throughput.
        lanes: actions executed at once.
        state_bytes: memory for the states of requests; infinite without a limit.
        bytes_per_request: of one state, whatever its size.
        bytes_per_token: of one state, for each token.
    """

    tokens: int
    lanes: int = 1
    state_bytes: float = math.inf
    bytes_per_request: float = 0.0
    bytes_per_token: float = 0.0

    def estimate_bytes(self, size: JobSize) -> float:
        """Return the memory in bytes that the state of a request of this size takes."""
        return self.bytes_per_request + self.bytes_per_token * size.tokens * size.num_windows


@dataclass(eq=False, kw_only=True)
class ScheduledJob:
    """A request that holds a place, as the scheduler knows it.

    Attributes:
        id: unique among all requests.
        owner: who takes turns with others; see `runners.auth.caller_of`.
        priority: interactive or bulk.
        deadline: when its time is up, in seconds of the caller's clock.
        size: its work; set when it is queued, as are `arrived` and `serial`.
        arrived: when it was queued, in seconds of the caller's clock.
        serial: its rank in the order of arrival.
        device: where it began; None before that.
        executing: whether an action on it is being executed.
        starved: whether its next action needs frames that are still being decoded.
        dropped: whether it leaves as soon as no action on it is being executed.
        units: the size of the action that is being executed.
        done: finished actions by kind.
        device_seconds: that devices have worked on it; of an evaluation with others, its part.
    """

    id: str
    priority: Priority
    deadline: float
    owner: str = ""
    size: JobSize = field(init=False)
    arrived: float = field(init=False)
    serial: int = field(init=False)
    device: int | None = field(default=None, init=False)
    executing: bool = field(default=False, init=False)
    starved: bool = field(default=False, init=False)
    dropped: bool = field(default=False, init=False)
    units: int = field(default=0, init=False)
    done: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0), init=False)
    device_seconds: float = field(default=0.0, init=False)

    def count_left(self, kind: Kind) -> int:
        """Return the number of actions of a kind that are still to come."""
        return self.size.count_actions(kind) - self.done[kind]

    @property
    def tokens(self) -> int:
        """Tokens of its next evaluation."""
        return self.size.count_tokens(self.done[Stage.SAMPLE])

    def count_units(self, kind: Kind) -> int:
        """Return the size of its next action of a kind; see `JobSize.count_units`."""
        return self.tokens if kind is Stage.SAMPLE else self.size.count_units(kind, self.done[kind])

    @property
    def next_kind(self) -> Kind | None:
        """The kind of its next action; None when all are done."""
        return next((kind for kind in KINDS if self.count_left(kind)), None)


JobT = TypeVar("JobT", bound=ScheduledJob)


@dataclass(frozen=True, eq=False)
class Action(Generic[JobT]):
    """The next work of a device: one piece of one request, or one evaluation of several."""

    kind: Kind
    device: int
    jobs: tuple[JobT, ...]

    @property
    def tokens(self) -> int:
        """Tokens of an evaluation, until it is completed."""
        return sum(job.units for job in self.jobs)


class Scheduler(Generic[JobT]):
    """The queue of all devices.

    Args:
        budgets: of each device.
        rates: seconds for each unit of an action, to start with; see `JobSize.count_units`.
        capacity: places for requests, at least 1.
        key_share: largest share of them that the requests of one owner may hold, above 0; each
            owner may hold one.
    """

    def __init__(
        self,
        budgets: Sequence[Budget],
        rates: Mapping[Kind, float],
        *,
        capacity: int,
        key_share: float = 1.0,
    ) -> None:
        self._budgets = tuple(budgets)
        self._capacity = capacity
        self._capacity_of_key = max(1, int(key_share * capacity))
        self._reserved: list[JobT] = []
        self._queued: list[JobT] = []  # waiting or begun
        self._num_queued = 0
        self._rates = dict(rates)
        # Seconds that each priority got, divided by its share.
        self._served: dict[Priority, float] = dict.fromkeys(SHARES, 0.0)
        # Seconds that each owner of a queued request got, from the least of the others on.
        self._served_owner: dict[str, float] = {}
        # Seconds of pieces minus seconds of the evaluations that they delayed, on each device.
        self._ahead = [0.0] * len(self._budgets)
        # Of actions whose seconds are not known yet: those that were expected, and units of jobs.
        self._expected: dict[Action[JobT], tuple[float, dict[JobT, int]]] = {}

    @property
    def jobs(self) -> tuple[JobT, ...]:
        """All requests that hold a place: the queued ones in order of arrival, then the others."""
        return (*self._queued, *self._reserved)

    @property
    def waiting(self) -> list[JobT]:
        """The queued requests that have not begun, in the order in which they will."""
        return [job for job in self._sort(self._queued) if job.device is None]

    @property
    def num_begun(self) -> int:
        """The number of requests that began on a device."""
        return sum(job.device is not None for job in self._queued)

    def reserve(self, job: JobT) -> None:
        """Give a request a place, before its size is known.

        Args:
            job: new, with a deadline on the clock of `queue` and `list_late`.

        Raises:
            BusyError: all places are taken, or those of its owner; it has the expected time until
                one is free.
        """
        num_own = sum(other.owner == job.owner for other in self.jobs)
        message = ""
        if len(self.jobs) >= self._capacity:
            message = f"{self._capacity} requests are being worked on; try again later"
        elif num_own >= self._capacity_of_key:
            message = f"{num_own} requests of this caller are being worked on; try again later"
        if message:
            busy = BusyError(message)
            busy.retry_after_seconds = self.estimate_seconds_to_place()
            raise busy
        self._reserved.append(job)

    def queue(self, job: JobT, size: JobSize, *, now: float) -> None:
        """Let a request that has a place wait for a device.

        Args:
            job: reserved, and not dropped since.
            size: its work.
            now: the time.
        """
        self._reserved.remove(job)
        present = {other.priority for other in self._queued}
        if job.priority not in present:  # a priority without work saves nothing up
            others = present or set(SHARES)
            self._served[job.priority] = max(self._served[p] for p in (job.priority, *others))
        if job.owner not in self._served_owner:  # nor does an owner
            self._served_owner[job.owner] = min(self._served_owner.values(), default=0.0)
        job.size, job.arrived, job.serial = size, now, self._num_queued
        self._num_queued += 1
        self._queued.append(job)

    def drop(self, job: JobT) -> bool:
        """Take a request out, now or when the action that is being executed on it is complete.

        Args:
            job: in any state; one that has left stays away.

        Returns:
            Whether it has left.
        """
        job.dropped = True
        self._remove_dropped()
        return job not in self.jobs

    def list_late(self, now: float) -> list[JobT]:
        """Return the requests whose time is up and that were not dropped.

        Args:
            now: the time, in seconds of the caller's clock.
        """
        return [job for job in self.jobs if not job.dropped and job.deadline <= now]

    def find_next_deadline(self) -> float:
        """Return the earliest deadline of all requests; infinite without any."""
        return min((job.deadline for job in self.jobs if not job.dropped), default=math.inf)

    def next(self, device: int) -> Action[JobT] | None:
        """Start the next action of a device, if there is one. `complete` ends it.

        Args:
            device: index of its budget.
        """
        action = self._choose(device)
        if action is not None:
            for job in action.jobs:
                job.executing, job.device = True, device
                job.units = job.count_units(action.kind)
        return action

    def complete(
        self,
        action: Action[JobT],
        seconds: float | None,
        restarted: Collection[JobT] = (),
    ) -> list[JobT]:
        """End an action.

        Args:
            action: of `next`.
            seconds: that it took, more than 0. None where its device is still at work on it: then
                those that are expected count, until `correct` is called.
            restarted: those of its requests that sample from the beginning now.

        Returns:
            Its requests that have left: finished, or dropped meanwhile.
        """
        units = {job: job.units for job in action.jobs}
        if seconds is None:
            expected = self._rates[action.kind] * sum(units.values())
            self._expected[action] = expected, units
            self._count(action, expected, units)
        else:
            self._measure(action.kind, seconds / sum(units.values()))
            self._count(action, seconds, units)
        for job in action.jobs:
            job.executing = False
            job.done[action.kind] += 1
            if job in restarted:
                job.done[Stage.SAMPLE] = job.done[Stage.DECODE_AUDIO] = 0
            if job.next_kind is None:
                job.dropped = True
        self._remove_dropped()
        return [job for job in action.jobs if job.dropped]

    def correct(self, action: Action[JobT], seconds: float) -> None:
        """Count the seconds that an action took in place of the expected ones.

        Args:
            action: of `complete`, without its seconds.
            seconds: that it took, more than 0.
        """
        expected, units = self._expected.pop(action)
        self._measure(action.kind, seconds / sum(units.values()))
        self._count(action, seconds - expected, units)

    def _count(self, action: Action[JobT], seconds: float, units: Mapping[JobT, int]) -> None:
        """Add seconds of an action to what each of its requests, and their owners, have got."""
        self._ahead[action.device] += -seconds if action.kind == Stage.SAMPLE else seconds
        total = sum(units.values())
        for job, own in units.items():
            part = seconds * own / total
            self._served[job.priority] += part / SHARES[job.priority]
            if job.owner in self._served_owner:
                self._served_owner[job.owner] += part
            job.device_seconds += part

    def estimate_seconds_left(self, job: JobT) -> float:
        """Return the device seconds that a request still takes, at the measured rates.

        Args:
            job: queued, so that its size is known.
        """
        return sum(
            job.size.count_units_left(kind, job.done[kind]) * rate
            for kind, rate in self._rates.items()
        )

    def estimate_seconds_to_place(self) -> float | None:
        """Return the mean time until a request leaves, at the measured rates.

        None if no request is queued: the size of one that is being decoded is not known.
        """
        if not self._queued:
            return None
        work = sum(self.estimate_seconds_left(job) for job in self._queued)
        return work / len(self._queued) / sum(budget.lanes for budget in self._budgets)

    def _choose(self, device: int) -> Action[JobT] | None:
        pieces, batch = self._select(device)
        if not pieces:
            self._ahead[device] = 0.0
            return Action(Stage.SAMPLE, device, tuple(batch)) if batch else None
        if not batch:
            self._ahead[device] = 0.0
        elif self._ahead[device] > 0:
            return Action(Stage.SAMPLE, device, tuple(batch))
        assert pieces[0].next_kind is not None
        return Action(pieces[0].next_kind, device, (pieces[0],))

    def _select(self, device: int) -> tuple[list[JobT], list[JobT]]:
        """Return the requests whose turn it is on a device: with a piece, and for an evaluation."""
        budget = self._budgets[device]
        begun = [job for job in self._queued if job.device == device]
        bytes_left = budget.state_bytes - sum(budget.estimate_bytes(job.size) for job in begun)
        empty, full = not begun, False
        tokens_left = budget.tokens
        pieces: list[JobT] = []
        batch: list[JobT] = []
        free = [
            j
            for j in self._queued
            if not j.executing and not j.starved and j.device in (None, device)
        ]
        for job in self._sort(free):
            if job.device is None:
                # A request that is alone on a device may always try.
                full = full or (budget.estimate_bytes(job.size) > bytes_left and not empty)
                if full:
                    continue
            if job.next_kind != Stage.DECODE_AUDIO:
                if budget.tokens > tokens_left < job.tokens:
                    continue
                tokens_left -= job.tokens
            if job.device is None:
                bytes_left -= budget.estimate_bytes(job.size)
                empty = False
            (batch if job.next_kind == Stage.SAMPLE else pieces).append(job)
        return pieces, batch

    def _sort(self, jobs: Iterable[JobT]) -> list[JobT]:
        """Order requests: by the share that priorities and owners got, then by work left."""
        jobs = list(jobs)
        present = {job.priority for job in jobs}
        turns = sorted(present, key=lambda p: (self._served[p], p == "bulk"))
        return sorted(
            jobs,
            key=lambda job: (
                turns.index(job.priority),
                self._served_owner[job.owner],
                self.estimate_seconds_left(job) + AGEING * job.arrived,
                job.serial,
            ),
        )

    def _measure(self, kind: Kind, rate: float) -> None:
        self._rates[kind] = (1 - _LATEST_WEIGHT) * self._rates[kind] + _LATEST_WEIGHT * rate

    def _remove_dropped(self) -> None:
        self._queued = [job for job in self._queued if job.executing or not job.dropped]
        owners = {job.owner for job in self._queued}
        self._served_owner = {o: s for o, s in self._served_owner.items() if o in owners}
        self._reserved = [job for job in self._reserved if not job.dropped]

"""Who is in the next model evaluation, and what runs between two of them.

Step-level batching: a request joins and leaves between model evaluations, so a short one never
waits for a long one to end, and a device never idles while work waits.

    submit ──► waiting ──Encode *──► Evaluate *, with others ──Decode *──► done

No torch, no threads, no clock: the time is told, and whoever executes an action tells how long it
took. The rules, in order:

*   **Turns.** Of two classes with work, interactive and bulk, each gets its share of the devices'
    seconds (`SHARES`), so that bulk work neither delays the other by more than its share nor
    starves. Within a class the request with the least work left goes first, where each second
    since its arrival counts as `AGEING` seconds less: so a request is overtaken only by those that
    arrive within (its work / AGEING) seconds after it. Equal requests keep their order of arrival.
*   **Evaluations.** One takes requests in that order as long as their tokens fit its budget; a
    request larger than the budget is evaluated alone.
*   **Memory.** A request begins on a device when its state fits beside those that began there.
    Where the next one in order does not fit, none after it begins before it.
*   **Stalls.** Encoding and decoding come in pieces, and where steps could run instead, they get
    half of the seconds.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from foley.errors import BusyError
from foley.types import Stage
from runners.messages import Priority

# The stages that a device works on. An action is one piece of a stage.
Kind = Literal[Stage.ENCODE, Stage.SAMPLE, Stage.DECODE_AUDIO]
KINDS: tuple[Kind, ...] = get_args(Kind)
SHARES: dict[Priority, float] = {"interactive": 0.8, "bulk": 0.2}
AGEING = 0.1
# The newest measurement's weight in a rate.
_NEWEST = 0.05


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a request takes.

    Attributes:
        tokens: of one model evaluation: latent frames, of all variations and halves of guidance.
        num_evaluations: of the model.
        num_pieces: in which its conditions are encoded.
        num_sounds: to decode.
        num_latents: latent frames of one sound.
    """

    tokens: int
    num_evaluations: int
    num_pieces: int
    num_sounds: int
    num_latents: int

    def count(self, kind: Kind) -> int:
        """How many actions of a kind it takes."""
        counts = {
            Stage.ENCODE: self.num_pieces,
            Stage.SAMPLE: self.num_evaluations,
            Stage.DECODE_AUDIO: self.num_sounds,
        }
        return counts[kind]

    def units(self, kind: Kind) -> float:
        """How large one action of this kind is for this request, in what its seconds grow with."""
        return {Stage.ENCODE: 1, Stage.SAMPLE: self.tokens, Stage.DECODE_AUDIO: self.num_latents}[
            kind
        ]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a device takes at once.

    Attributes:
        tokens: of one evaluation; more would be slower for all and not faster in sum.
        lanes: actions that it executes at once.
        state_bytes: that the states of requests may take; infinite where nothing limits them.
        bytes_per_request: of one state, whatever its size.
        bytes_per_token: of one state, for each token.
    """

    tokens: int
    lanes: int = 1
    state_bytes: float = math.inf
    bytes_per_request: float = 0.0
    bytes_per_token: float = 0.0

    def bytes_of(self, size: Size) -> float:
        """The memory that the state of such a request takes."""
        return self.bytes_per_request + self.bytes_per_token * size.tokens


@dataclass(eq=False, kw_only=True)
class Entry:
    """A request in the house.

    Attributes:
        device: where it began; None while it waits.
        executing: whether an action on it is being executed.
        dropped: whether it leaves as soon as it is in nobody's hand.
    """

    id: str
    priority: Priority
    size: Size
    arrived: float
    deadline: float
    serial: int
    device: int | None = None
    executing: bool = False
    dropped: bool = False
    done: dict[Kind, int] = field(
        default_factory=lambda: {Stage.ENCODE: 0, Stage.SAMPLE: 0, Stage.DECODE_AUDIO: 0}
    )

    def left(self, kind: Kind) -> int:
        """Actions of a kind that are still to come."""
        return self.size.count(kind) - self.done[kind]

    @property
    def needs(self) -> Kind | None:
        """What comes next; None when all is done."""
        return next((kind for kind in KINDS if self.left(kind)), None)


@dataclass(frozen=True)
class Action:
    """What a device does next: one piece of one request, or one evaluation of several."""

    kind: Kind
    device: int
    entries: tuple[Entry, ...]

    @property
    def tokens(self) -> int:
        """Tokens of an evaluation."""
        return sum(entry.size.tokens for entry in self.entries)


class Scheduler:
    """The queue of all devices.

    Args:
        budgets: of each device.
        rates: seconds for each unit of an action, to begin with; see `Size.units`.
        capacity: requests in the house at once.
    """

    def __init__(
        self, budgets: Sequence[Budget], rates: Mapping[Kind, float], *, capacity: int
    ) -> None:
        self._budgets = tuple(budgets)
        self._capacity = capacity
        self._entries: list[Entry] = []
        self._serial = 0
        self._rates = dict(rates)
        # Seconds that each class got, over its share.
        self._served: dict[Priority, float] = dict.fromkeys(SHARES, 0.0)
        # Seconds by which pieces ran ahead of the steps that they kept waiting, on each device.
        self._ahead = [0.0] * len(self._budgets)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The requests in the house, in order of arrival."""
        return tuple(self._entries)

    @property
    def waiting(self) -> list[Entry]:
        """Those that have not begun, in the order in which they will."""
        return [entry for entry in self._in_order(self._entries) if entry.device is None]

    def submit(
        self, id: str, size: Size, *, priority: Priority, now: float, deadline: float
    ) -> Entry:
        """Take a request in.

        Raises:
            BusyError: as many as the capacity are in the house; it tells when to come again.
        """
        if len(self._entries) >= self._capacity:
            busy = BusyError(f"{self._capacity} requests are being worked on; try again later")
            busy.retry_after_seconds = self.seconds_to_a_place()
            raise busy
        present = {entry.priority for entry in self._entries}
        if priority not in present:  # a class that was away has saved nothing up
            self._served[priority] = max(self._served[kind] for kind in (priority, *present))
        entry = Entry(
            id=id,
            priority=priority,
            size=size,
            arrived=now,
            deadline=deadline,
            serial=self._serial,
        )
        self._serial += 1
        self._entries.append(entry)
        return entry

    def drop(self, entry: Entry) -> bool:
        """Give a request up; whether it has left already, or leaves when its action is done."""
        if entry in self._entries:
            entry.dropped = True
            self._remove_dropped()
        return entry not in self._entries

    def late(self, now: float) -> list[Entry]:
        """The requests whose time is up."""
        return [entry for entry in self._entries if not entry.dropped and entry.deadline <= now]

    def next_deadline(self) -> float:
        """When `late` has something to tell, at the earliest."""
        return min((e.deadline for e in self._entries if not e.dropped), default=math.inf)

    def next(self, device: int) -> Action | None:
        """What the device does now; its entries are in its hands until `complete`."""
        action = self._choose(device)
        if action is not None:
            for entry in action.entries:
                entry.executing, entry.device = True, device
        return action

    def complete(self, action: Action, seconds: float) -> list[Entry]:
        """Tell that an action was executed, and how long it took.

        Returns:
            Its requests that have left: finished, or dropped meanwhile.
        """
        total = sum(entry.size.units(action.kind) for entry in action.entries)
        self._measure(action.kind, seconds / total)
        self._balance(action, seconds)
        for entry in action.entries:
            entry.executing = False
            entry.done[action.kind] += 1
            part = seconds * entry.size.units(action.kind) / total
            self._served[entry.priority] += part / SHARES[entry.priority]
            if entry.needs is None:
                entry.dropped = True
        self._remove_dropped()
        return [entry for entry in action.entries if entry.dropped]

    def seconds_left(self, entry: Entry) -> float:
        """The seconds of a device that a request still takes, at the measured rates."""
        return sum(
            entry.left(kind) * entry.size.units(kind) * rate for kind, rate in self._rates.items()
        )

    def seconds_to_a_place(self) -> float:
        """After how long a request leaves, on average, at the measured rates."""
        if not self._entries:
            return 0.0
        work = sum(self.seconds_left(entry) for entry in self._entries)
        return work / len(self._entries) / sum(budget.lanes for budget in self._budgets)

    def position(self, entry: Entry) -> int:
        """How many requests go before one that waits: those that began, and those before it."""
        waiting = self.waiting
        return len(self._entries) - len(waiting) + waiting.index(entry)

    def _choose(self, device: int) -> Action | None:
        pieces, steps = self._admitted(device)
        # Always in one order: a batch that stays the same need not be put together again.
        batch = tuple(sorted(steps, key=lambda entry: entry.serial))
        if not pieces:
            self._ahead[device] = 0.0
            return Action(Stage.SAMPLE, device, batch) if batch else None
        if not steps:
            self._ahead[device] = 0.0
        elif self._ahead[device] > 0:
            return Action(Stage.SAMPLE, device, batch)
        assert pieces[0].needs is not None
        return Action(pieces[0].needs, device, (pieces[0],))

    def _admitted(self, device: int) -> tuple[list[Entry], list[Entry]]:
        """Those whose turn it is on a device: the ones with a piece to do, and with a step."""
        budget = self._budgets[device]
        began = [entry for entry in self._entries if entry.device == device]
        bytes_left = budget.state_bytes - sum(budget.bytes_of(entry.size) for entry in began)
        empty, full = not began, False
        tokens_left = budget.tokens
        pieces: list[Entry] = []
        steps: list[Entry] = []
        free = [e for e in self._entries if not e.executing and e.device in (None, device)]
        for entry in self._in_order(free):
            if entry.device is None:
                # Alone on a device, any one request may try.
                full = full or (budget.bytes_of(entry.size) > bytes_left and not empty)
                if full:
                    continue
            if entry.needs != Stage.DECODE_AUDIO:
                if budget.tokens > tokens_left < entry.size.tokens:
                    continue
                tokens_left -= entry.size.tokens
            if entry.device is None:
                bytes_left -= budget.bytes_of(entry.size)
                empty = False
            (steps if entry.needs == Stage.SAMPLE else pieces).append(entry)
        return pieces, steps

    def _in_order(self, entries: Iterable[Entry]) -> list[Entry]:
        """The class whose turn it is first; within a class, those that should go first."""
        entries = list(entries)
        present = {entry.priority for entry in entries}
        turns = sorted(present, key=lambda p: (self._served[p], p == "bulk"))
        return sorted(
            entries,
            key=lambda e: (
                turns.index(e.priority),
                self.seconds_left(e) + AGEING * e.arrived,
                e.serial,
            ),
        )

    def _measure(self, kind: Kind, rate: float) -> None:
        self._rates[kind] = (1 - _NEWEST) * self._rates[kind] + _NEWEST * rate

    def _balance(self, action: Action, seconds: float) -> None:
        self._ahead[action.device] += -seconds if action.kind == Stage.SAMPLE else seconds

    def _remove_dropped(self) -> None:
        self._entries = [e for e in self._entries if e.executing or not e.dropped]

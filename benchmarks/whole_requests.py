"""The service with whole-request batching, for comparison with step-level batching.

    bentoml serve benchmarks.whole_requests:FoleyApi

A batch takes the requests that have waited longest, as long as their tokens fit the budget. The
next batch begins when all requests of the batch are finished. Everything else is the same as in the
service: engines, threads, packed evaluations.
"""

from dataclasses import dataclass

import runners.worker.worker
from foley.types import Stage
from runners.worker.scheduler import KINDS, Action, Entry, Scheduler


@dataclass
class RequestBatch:
    """Requests that are computed together from their first stage to their last."""

    device: int
    entries: list[Entry]

    @property
    def is_idle(self) -> bool:
        """Whether no request of the batch is being computed."""
        return not any(entry.executing for entry in self.entries)

    def action(self) -> Action | None:
        """The next action: first all encoding, then all evaluations, then all decoding."""
        for kind in KINDS:
            members = tuple(entry for entry in self.entries if entry.left(kind))
            if members:
                return Action(kind, self.device, members if kind is Stage.SAMPLE else members[:1])
        return None


class WholeRequests(Scheduler):
    """Schedules whole batches in the order of arrival, one on each lane."""

    _batches: list[RequestBatch]

    def _choose(self, device: int) -> Action | None:
        batches = [batch for batch in getattr(self, "_batches", ()) if not self._done(batch)]
        self._batches = batches
        here = [batch for batch in batches if batch.device == device]
        for batch in here:
            if batch.is_idle and (action := batch.action()) is not None:
                return action
        if len(here) >= self._budgets[device].lanes:
            return None
        taken = {entry for batch in batches for entry in batch.entries}
        members: list[Entry] = []
        for entry in (e for e in self.entries if e not in taken):
            tokens = sum(member.size.tokens for member in members)
            if members and tokens + entry.size.tokens > self._budgets[device].tokens:
                break
            members.append(entry)
        if not members:
            return None
        self._batches.append(RequestBatch(device, members))
        return self._batches[-1].action()

    def _done(self, batch: RequestBatch) -> bool:
        batch.entries = [entry for entry in batch.entries if entry in self.entries]
        return not batch.entries


runners.worker.worker.Scheduler = WholeRequests  # type: ignore[misc]

from service import FoleyApi, GpuRunner  # noqa: E402, F401 - after the replacement

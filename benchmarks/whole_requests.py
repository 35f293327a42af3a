"""The service with whole-request batching, for comparison with step-level batching.

    bentoml serve benchmarks.whole_requests:FoleyApi

A batch takes those that wait longest, as long as their tokens fit the same budget; the next batch
begins when all of it is done. All else is the same: engines, threads, packed evaluations.
"""

from dataclasses import dataclass

import runners.worker.worker
from foley.types import Stage
from runners.worker.scheduler import KINDS, Action, Entry, Scheduler


@dataclass
class Batch:
    device: int
    entries: list[Entry]

    @property
    def resting(self) -> bool:
        return not any(entry.executing for entry in self.entries)

    def action(self) -> Action | None:
        """All conditions, then all evaluations, then all sounds."""
        for kind in KINDS:
            members = tuple(entry for entry in self.entries if entry.left(kind))
            if members:
                return Action(kind, self.device, members if kind is Stage.SAMPLE else members[:1])
        return None


class WholeRequests(Scheduler):
    """First come, first served, a batch at a time on each lane."""

    _batches: list[Batch]

    def _choose(self, device: int) -> Action | None:
        batches = [batch for batch in getattr(self, "_batches", ()) if not self._done(batch)]
        self._batches = batches
        here = [batch for batch in batches if batch.device == device]
        for batch in here:
            if batch.resting and (action := batch.action()) is not None:
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
        self._batches.append(Batch(device, members))
        return self._batches[-1].action()

    def _done(self, batch: Batch) -> bool:
        batch.entries = [entry for entry in batch.entries if entry in self.entries]
        return not batch.entries


runners.worker.worker.Scheduler = WholeRequests  # type: ignore[misc]

from service import FoleyApi, GpuRunner  # noqa: E402, F401 - after the scheduler was exchanged

"""The service with whole-request batching, for comparison with step-level batching.

    bentoml serve benchmarks.whole_requests:FoleyApi

A batch takes the requests that have waited longest, as long as their tokens fit the budget. The
next batch begins when all requests of the batch are finished. Everything else is the same as in the
service: engines, threads, packed evaluations.
"""

from dataclasses import dataclass
from typing import Generic

from foley.types import Stage
from runners.worker import worker
from runners.worker.scheduler import KINDS, Action, JobT, Scheduler


@dataclass
class RequestBatch(Generic[JobT]):
    """Requests that are computed together from their first stage to their last."""

    device: int
    jobs: list[JobT]

    @property
    def is_idle(self) -> bool:
        """Whether no request of the batch is being computed."""
        return not any(job.executing for job in self.jobs)

    def choose_action(self) -> Action[JobT] | None:
        """The next action: first all encoding, then all evaluations, then all decoding."""
        for kind in KINDS:
            members = tuple(job for job in self.jobs if job.count_left(kind))
            if members:
                return Action(kind, self.device, members if kind is Stage.SAMPLE else members[:1])
        return None


class WholeRequests(Scheduler[JobT]):
    """Schedules whole batches in the order of arrival, one on each lane."""

    _batches: list[RequestBatch[JobT]]

    def _choose(self, device: int) -> Action[JobT] | None:
        batches = [batch for batch in getattr(self, "_batches", ()) if not self._is_done(batch)]
        self._batches = batches
        here = [batch for batch in batches if batch.device == device]
        for batch in here:
            action: Action[JobT] | None = batch.choose_action() if batch.is_idle else None
            if action is not None:
                return action
        if len(here) >= self._budgets[device].lanes:
            return None
        taken = {job for batch in batches for job in batch.jobs}
        members: list[JobT] = []
        for job in (job for job in self._queued if job not in taken):
            tokens = sum(member.size.tokens for member in members)
            if members and tokens + job.size.tokens > self._budgets[device].tokens:
                break
            members.append(job)
        if not members:
            return None
        self._batches.append(RequestBatch(device, members))
        return self._batches[-1].choose_action()

    def _is_done(self, batch: RequestBatch[JobT]) -> bool:
        batch.jobs = [job for job in batch.jobs if job in self._queued]
        return not batch.jobs


# The worker makes its scheduler by this name.
worker.Scheduler = WholeRequests  # type: ignore[attr-defined]

from service import FoleyApi, GpuRunner  # noqa: E402, F401 - after the replacement

"""Progress of one job as callers see it, with an estimate of the time left."""

import time
from typing import Any

from runners.messages import ProgressUpdate


class Pace:
    """How long the rest of the steps will take, by the rate of those before."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None  # step, and when

    def described(self, update: ProgressUpdate) -> dict[str, Any]:
        """The update as callers see it, with `seconds_left` of its stage where that is known."""
        told = update.model_dump(exclude_none=True)
        if update.step is None or update.num_steps is None:
            return told
        now = time.monotonic()
        if self._first is None or update.step <= self._first[0]:
            self._first = (update.step, now)
            return told
        step, since = self._first
        seconds_a_step = (now - since) / (update.step - step)
        return told | {"seconds_left": round(seconds_a_step * (update.num_steps - update.step), 3)}

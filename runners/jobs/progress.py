"""The progress of one job as callers see it, with an estimate of the time left."""

import time
from typing import Any

from runners.messages import ProgressUpdate


class ProgressEstimator:
    """Adds the time left to the updates of one job, from the rate of its solver steps so far."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None  # a step, and when it was done

    def describe(self, update: ProgressUpdate) -> dict[str, Any]:
        """Return an update as a JSON object.

        Args:
            update: of the job, in the order in which they come.

        Returns:
            The fields of the update that are set, and `seconds_left` of the stage from the second
            solver step on.
        """
        fields = update.model_dump(exclude_none=True)
        if update.step is None or update.num_steps is None:
            return fields
        now = time.monotonic()
        if self._first is None or update.step <= self._first[0]:
            self._first = (update.step, now)
            return fields
        step, since = self._first
        seconds_per_step = (now - since) / (update.step - step)
        seconds_left = seconds_per_step * (update.num_steps - update.step)
        return fields | {"seconds_left": round(seconds_left, 3)}

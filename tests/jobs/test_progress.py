"""The estimate of the time left."""

import time

import pytest

from runners.jobs.progress import ProgressEstimator
from runners.messages import ProgressUpdate


def test_the_rate_of_the_steps_gives_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    estimator = ProgressEstimator()
    assert estimator.describe(ProgressUpdate(stage="queue", queue_position=3)) == {
        "stage": "queue",
        "queue_position": 3,
    }
    left = []
    for step in (1, 2, 3, 5):
        left.append(estimator.describe(ProgressUpdate(stage="sample", step=step, num_steps=5)))
        now += 2.0
    assert [update.get("seconds_left") for update in left] == [None, 6.0, 4.0, 0.0]

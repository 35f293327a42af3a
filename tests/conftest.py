"""GPU tests are left out where there is no GPU, unless one is required."""

import os
from collections.abc import Iterator

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available() or os.environ.get("FOLEY_REQUIRE_GPU") == "1":
        return
    left_out = pytest.mark.skip(reason="no CUDA device; FOLEY_REQUIRE_GPU=1 makes that a failure")
    for item in items:
        if "needs_gpu" in item.keywords:
            item.add_marker(left_out)


@pytest.fixture(autouse=True)
def ordinary_priority() -> Iterator[None]:
    """A real-time process, as root's encoders may leave us, starts browsers that stop machines."""
    yield
    assert os.sched_getscheduler(0) == os.SCHED_OTHER

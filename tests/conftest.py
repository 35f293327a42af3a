"""Markers: GPU tests are left out where there is no GPU, unless one is required."""

import os

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available() or os.environ.get("FOLEY_REQUIRE_GPU") == "1":
        return
    left_out = pytest.mark.skip(reason="no CUDA device; FOLEY_REQUIRE_GPU=1 makes that a failure")
    for item in items:
        if "needs_gpu" in item.keywords:
            item.add_marker(left_out)

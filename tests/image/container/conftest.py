"""These tests run containers of images that scripts/test-image has built, which calls them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image.container.containers import Containers

if os.environ.get("TEST_IMAGE") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    wheels = Path(os.environ["TEST_IMAGE_WHEELS"])
    containers = Containers(tmp_path_factory.mktemp("containers"), wheels)
    yield containers
    containers.close()

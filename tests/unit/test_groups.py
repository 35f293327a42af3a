"""How the processes of the tests are run."""

import gc

import pytest


def test_groups_reach_the_scheduler(request: pytest.FixtureRequest) -> None:
    """A version of pytest-xdist that forgets them makes each process start every server."""
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("not run by pytest-xdist in groups")
    assert request.node.nodeid.endswith("@tests/unit/test_groups.py")


def test_what_the_tests_import_is_left_out_of_garbage_collection() -> None:
    assert gc.get_freeze_count() > 100_000

"""Messages of the command line name options as they are typed."""

import pytest

from foley.cli.plan import name_flags


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("set duration_seconds, such as 5", "set --seconds, such as 5"),
        ("start_seconds: is 5, and the clip ends", "--start: is 5, and the clip ends"),
        ("folder/frame_rate/start_seconds.mp4 is empty",) * 2,
        ("my_start_seconds and frame_rate_2",) * 2,
    ],
)
def test_options_have_the_names_that_are_typed(message: str, shown: str) -> None:
    assert name_flags(message) == shown

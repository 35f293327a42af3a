"""Messages of the command line name options as they are typed."""

from pathlib import Path

import pytest

from foley.cli.plan import choose_default_output, name_flags
from foley.errors import ParameterError


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


def test_a_result_s_name_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    clip = tmp_path / ("\u00e4" * 125 + ".mp4")  # 254 bytes
    with pytest.raises(ParameterError, match=r"260 bytes, the limit .* 255; .* --output"):
        choose_default_output(clip, None)
    assert choose_default_output(tmp_path / ("x" * 245 + ".mp4"), None).name.endswith("x.foley.mp4")

"""Edits as people write them."""

from pathlib import Path

import pytest

from foley.cli.edits import find_source, make_edit
from foley.cli.options import SoundOptions
from foley.errors import ParameterError


def test_an_edit_names_a_file_the_original_or_what_a_service_knows(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.touch()
    edit = make_edit(str(path), ["1.2 - 3.5"], None)
    assert edit == {
        "source": "file",
        "ranges": [{"start_seconds": 1.2, "stop_seconds": 3.5}],
        "strength": None,
    }
    assert find_source(str(path)) == path
    for source in ("original", "3f2a/foley-2.wav", "take-1.mp4", "https://example.com/a.wav"):
        made = make_edit(source, [], 0.5)
        assert made is not None
        assert made["source"] == source
        assert find_source(source) is None
    assert make_edit(None, [], None) is None
    request = SoundOptions(edit_source="original", edit_range=("0-1",)).parse()
    assert request.edit is not None
    assert request.edit.is_original


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"edit_range": ("0-1",)}, "--edit-range needs --edit-source"),
        ({"edit_strength": 0.5}, "--edit-strength needs --edit-source"),
        ({"edit_source": "original", "edit_range": ("1",)}, "'1' is no range of seconds"),
        ({"edit_source": "original", "edit_range": ("2-1",)}, "at least 0.1 s after start"),
        ({"edit_source": "/no/such"}, "--edit-source: there is no file /no/such"),
        ({"edit_source": "./a.wav"}, "--edit-source: there is no file ./a.wav"),
        ({"edit_source": "a b"}, "edit.source: must be original"),
    ],
)
def test_a_wrong_edit_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        SoundOptions(**options).parse()  # type: ignore[arg-type]

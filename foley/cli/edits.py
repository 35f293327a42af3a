"""Edits on the command line: `--edit-source original --edit-range 1.2-3.5 --edit-strength 0.5`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foley.errors import ParameterError

_NUMBER = r"\s*(\d*\.?\d+)\s*"
_RANGE = re.compile(f"{_NUMBER}-{_NUMBER}", re.ASCII)


def make_edit(
    source: str | None, ranges: Sequence[str], strength: float | None
) -> dict[str, Any] | None:
    """Return the edit that options describe; its fields may be out of bounds. None without one.

    Args:
        source: original, the path of a file, or what a service knows.
        ranges: of seconds, such as 1.2-3.5.
        strength: how far the new sound may go from the source.

    Raises:
        ParameterError: a range cannot be read, or there is no source, or no such file.
    """
    if source is None:
        if ranges or strength is not None:
            option = "--edit-range" if ranges else "--edit-strength"
            raise ParameterError(
                f"{option} needs --edit-source; name the sound to start from, or leave it out"
            )
        return None
    # Neither ids nor addresses begin so. Another name may be an id that a service knows.
    if source.startswith(("/", ".", "~")) and find_source(source) is None:
        raise ParameterError(
            f"--edit-source: there is no file {source}; check the path, or name a result by its id"
        )
    return {
        "source": "file" if find_source(source) else source,
        "ranges": [_parse_range(text) for text in ranges],
        "strength": strength,
    }


def find_source(source: str | None) -> Path | None:
    """Return the path of the file that an edit starts from; None where it is none.

    Args:
        source: as the user named it; None without an edit.
    """
    if source is None or source == "original":
        return None
    path = Path(source)
    return path if path.is_file() else None


def _parse_range(text: str) -> dict[str, float]:
    matched = _RANGE.fullmatch(text)
    if matched is None:
        raise ParameterError(f"--edit-range {text!r} is no range of seconds; write it as 1.2-3.5")
    return {"start_seconds": float(matched[1]), "stop_seconds": float(matched[2])}

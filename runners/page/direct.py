"""Cues, layers and edits as texts of the page's fields."""

import json
import re
from collections.abc import Iterator
from typing import Any

from foley.errors import ParameterError
from foley.request import Cue, Edit, Layer

_NUMBER = r"\d+(?:\.\d*)?|\.\d+"
_RANGE = re.compile(rf"\s*({_NUMBER})\s*-\s*({_NUMBER})\s*", re.ASCII)
_CUE = re.compile(rf"{_RANGE.pattern}:\s*(\S.*)", re.ASCII)
_TIMES = ("start_seconds", "stop_seconds")


def parse_cues(text: str) -> list[dict[str, Any]]:
    """Return the cues of lines such as `1.2-3.5: glass shatters`, or of objects, one a line.

    Args:
        text: of the field.

    Raises:
        ParameterError: a line is neither.
    """
    cues = []
    for number, line in _number_lines(text):
        if line.startswith("{"):
            cues.append(_read_object("cues", number, line))
            continue
        matched = _CUE.fullmatch(line)
        if matched is None:
            raise ParameterError(
                f"cues: line {number} is {line[:40]!r}; write START-STOP: PROMPT with seconds, "
                "such as 1.2-3.5: glass shatters"
            )
        cues.append(dict(zip((*_TIMES, "prompt"), matched.groups(), strict=True)))
    return cues


def parse_layers(text: str) -> list[dict[str, Any]]:
    """Return the layers of lines that are a prompt or an object.

    Args:
        text: of the field.

    Raises:
        ParameterError: an object cannot be read.
    """
    return [
        _read_object("layers", number, line) if line.startswith("{") else {"prompt": line}
        for number, line in _number_lines(text)
    ]


def make_edit(source: str, ranges: str, strength: float | None) -> dict[str, Any] | None:
    """Return the edit of three fields; None without one.

    Args:
        source: of the field; empty without an edit.
        ranges: such as `1.2-3.5, 4-5`.
        strength: 1, or None, where it was not set.

    Raises:
        ParameterError: a range cannot be read, or there is no source.
    """
    has_strength = strength is not None and strength < 1
    if not source.strip():
        if ranges.strip() or has_strength:
            name = "Make anew" if ranges.strip() else "Strength"
            raise ParameterError(
                f"edit: {name} needs a sound to start from; name it, or leave {name} as it was"
            )
        return None
    parts = []
    for part in filter(str.strip, re.split(r"[,;\n]", ranges)):
        matched = _RANGE.fullmatch(part)
        if matched is None:
            raise ParameterError(
                f"edit: {part.strip()[:40]!r} is no range of seconds; write it as 1.2-3.5"
            )
        parts.append(dict(zip(_TIMES, map(float, matched.groups()), strict=True)))
    return {
        "source": source.strip(),
        **({"ranges": parts} if parts else {}),
        **({"strength": strength} if has_strength else {}),
    }


def write_cue(cue: Cue) -> str:
    """Return the line of a cue.

    Args:
        cue: any.
    """
    given = cue.model_dump(exclude_defaults=True)
    if given.keys() == {*_TIMES, "prompt"} and _is_line(cue.prompt):
        return f"{_write_number(cue.start_seconds)}-{_write_number(cue.stop_seconds)}: {cue.prompt}"
    return json.dumps(given, ensure_ascii=False)


def write_layer(layer: Layer) -> str:
    """Return the line of a layer.

    Args:
        layer: any.
    """
    given = layer.model_dump(exclude_defaults=True)
    is_plain = given.keys() == {"prompt"} and _is_line(layer.prompt)
    return layer.prompt if is_plain else json.dumps(given, ensure_ascii=False)


def write_ranges(edit: Edit) -> str:
    """Return the ranges of an edit as its field has them.

    Args:
        edit: any.
    """
    return ", ".join(
        f"{_write_number(part.start_seconds)}-{_write_number(part.stop_seconds)}"
        for part in edit.ranges
    )


def _write_number(seconds: float) -> str:
    """Return a number of seconds that reads as the same number, without an exponent."""
    return f"{seconds:.9f}".rstrip("0").rstrip(".")


def _is_line(prompt: str) -> bool:
    """Whether a prompt is read from a line as it was."""
    return prompt.splitlines() == [prompt.strip()] and not prompt.startswith("{")


def _number_lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def _read_object(place: str, number: int, line: str) -> dict[str, Any]:
    try:
        read = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ParameterError(f"{place}: line {number} is no JSON object: {error}") from error
    return dict(read)

"""Cues on the command line: `--cue "1.2-3.5: glass shatters"`, and files of cues."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from foley.cli.option_files import read_option_file
from foley.errors import ParameterError

_NUMBER = r"\d+(?:\.\d*)?|\.\d+"
_CUE = re.compile(rf"\s*({_NUMBER})\s*-\s*({_NUMBER})\s*:\s*(\S.*)", re.ASCII | re.DOTALL)
_STAMP = r"(?:(\d+):)?(\d{1,2}):(\d{1,2}[.,]\d{1,3})"
_TIMES = re.compile(rf"\s*{_STAMP}\s*-->\s*{_STAMP}(?:\s.*)?", re.ASCII)
_EXAMPLE = '{"start_seconds": 1, "stop_seconds": 2, "prompt": "rain", "gain_db": -6}'
_TAG = re.compile(r"<[^>]*>")
_COLUMNS = ("start_seconds", "stop_seconds", "prompt")
_MORE_COLUMNS = ("negative_prompt", "gain_db", "mode")


def parse_cue(text: str) -> dict[str, Any]:
    """Return the cue of an option; its fields may be missing or out of bounds.

    Args:
        text: such as `1.2-3.5: glass shatters`, in seconds, or an object of JSON.

    Raises:
        ParameterError: it is written in another way.
    """
    if text.lstrip().startswith("{"):
        return _parse_object(text)
    match = _CUE.fullmatch(text)
    if match is None:
        raise ParameterError(
            f"--cue {text!r} cannot be read; write START-STOP: PROMPT with seconds, such as "
            '"1.2-3.5: glass shatters"'
        )
    return dict(zip(_COLUMNS, (match[1], match[2], match[3].strip()), strict=True))


def _parse_object(text: str) -> dict[str, Any]:
    try:
        cue = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ParameterError(f"--cue is not JSON ({error}); an object is {_EXAMPLE}") from error
    return dict(cue)


def read_cues(path: Path) -> list[dict[str, Any]]:
    """Return the cues of a file; their fields may be out of bounds.

    Args:
        path: of a .csv file with the columns start_seconds, stop_seconds and prompt, and perhaps
            negative_prompt, gain_db and mode, or of WebVTT or SRT subtitles; UTF-8.

    Raises:
        ParameterError: the file cannot be read, or has no cue.
    """
    suffix = path.suffix.lower()
    text = read_option_file(path, "--cues")
    if suffix == ".csv":
        cues = list(_read_csv(path, text))
    elif suffix in (".vtt", ".srt"):
        cues = list(_read_subtitles(text.splitlines()))
    else:
        raise ParameterError(f"--cues {path} ends in none of .csv, .vtt and .srt; rename it")
    if not cues:
        raise ParameterError(f"--cues {path} holds no cue; leave it out, or add one")
    return cues


def _read_csv(path: Path, text: str) -> Iterator[dict[str, Any]]:
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        rows = [(reader.line_num, [value.strip() for value in row]) for row in reader]
    except csv.Error as error:
        raise ParameterError(f"--cues {path}, line {reader.line_num}: {error}") from error
    rows = [(line, row) for line, row in rows if any(row)]
    if not rows:
        return
    _, header = rows[0]
    missing = [name for name in _COLUMNS if name not in header]
    if missing:
        raise ParameterError(
            f"--cues {path} has no column {missing[0]}; its first line must be {','.join(_COLUMNS)}"
        )
    for line, row in rows[1:]:
        if len(row) != len(header):
            raise ParameterError(
                f"--cues {path}, line {line} has {len(row)} values for {len(header)} columns; put "
                "quotation marks around a prompt with commas"
            )
        cells = dict(zip(header, row, strict=True))
        known = (name for name in _COLUMNS + _MORE_COLUMNS if name in _COLUMNS or cells.get(name))
        yield {name: cells[name] for name in known}


def _read_subtitles(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield the cues of WebVTT or SRT: a line of times, then lines of text up to an empty one."""
    times: re.Match[str] | None = None
    words: list[str] = []
    for line in (*lines, ""):
        if times is None:
            times = _TIMES.fullmatch(line)
            continue
        if line.strip():
            words.append(_TAG.sub("", line).strip())
            continue
        prompt = " ".join(filter(None, words))
        if prompt:
            values = (_to_seconds(*times.groups()[:3]), _to_seconds(*times.groups()[3:]), prompt)
            yield dict(zip(_COLUMNS, values, strict=True))
        times, words = None, []


def _to_seconds(hours: str | None, minutes: str, seconds: str) -> float:
    whole = 3600 * int(hours or 0) + 60 * int(minutes)
    return round(whole + float(seconds.replace(",", ".")), 3)

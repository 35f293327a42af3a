"""The CSV table of `foley generate --csv`, as spreadsheets and people write it."""

import codecs
import csv
import io
from collections import Counter
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from foley.cli.plan import SUFFIXES, ClipTask, choose_default_output
from foley.errors import ParameterError
from foley.request import GenerationRequest

_OPTION_COLUMNS = ("prompt", "negative_prompt", "seed")
_COLUMNS = ("clip", *_OPTION_COLUMNS, "output")
_SEPARATORS = (",", ";", "\t", "|")
# A mark of UTF-32 begins with that of UTF-16, so it is looked for first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Formats that spreadsheets save by default: a zip (xlsx, ods), and the older xls.
_SPREADSHEETS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")


class TableRow(NamedTuple):
    """A row of a table.

    Attributes:
        line: of the file, where the row ends.
        values: in the order of the columns.
    """

    line: int
    values: list[str]


def read_table(
    table: Path, request: GenerationRequest, output: Path | None, console: Console
) -> list[ClipTask]:
    """Return one task for each row of a CSV file.

    Args:
        table: text with a header, whose values are separated by commas, semicolons, tabs or bars.
            It is UTF-8, UTF-16 or UTF-32, or else read as Windows-1252, which has the letters of
            Latin-1. The column `clip` is required; `prompt`, `negative_prompt`, `seed` and
            `output` are optional. Paths are relative to the table. Empty rows are skipped.
        request: the options that a row does not set.
        output: folder of the results that a row does not name, or the file of a single row; None
            for each clip's folder. The second such result of one clip is named
            CLIP.foley-2.mp4, and so on.
        console: receives a line if the encoding is a guess.

    Raises:
        ParameterError: the table cannot be read, a column or value is missing, a value is out of
            bounds, or `output` is one file for several rows.
    """
    header, *rows = read_rows(table, console)
    columns = _read_header(table, header)
    if not rows:
        raise ParameterError(f"--csv {table} has a header only; add a line for each clip")
    is_file = output is not None and output.suffix.lower() in SUFFIXES and not output.is_dir()
    if is_file and len(rows) > 1:
        raise ParameterError(f"--output {output} is one file for {len(rows)} clips; name a folder")
    tasks = []
    unnamed: Counter[Path] = Counter()
    for line, values in rows:
        try:
            cells = _pair(columns, values)
            clip = table.parent / cells["clip"]
            if "output" in cells:
                path = table.parent / cells["output"]
                _check_suffix(path)
            elif output is not None and is_file:
                path = output
            else:
                unnamed[clip.resolve()] += 1
                path = choose_default_output(clip, output, unnamed[clip.resolve()])
            options = {key: cells[key] for key in _OPTION_COLUMNS if key in cells}
            options = request.model_dump() | options
            tasks.append(ClipTask(clip, GenerationRequest.parse(**options), path))
        except ParameterError as error:
            raise ParameterError(f"{table}, line {line}: {error}") from error
    return tasks


def read_rows(table: Path, console: Console, known: Collection[str] = _COLUMNS) -> list[TableRow]:
    """Return the header and the rows of a table that are not empty.

    Args:
        table: as for `read_table`.
        console: receives a line if the encoding is a guess.
        known: columns by which the separator is found.

    Raises:
        ParameterError: the table cannot be read, or is empty.
    """
    rows = list(_read_rows(table, console, known))
    if not rows:
        raise ParameterError(
            f"{table} is empty; its first line names the columns, such as clip,prompt"
        )
    return rows


def _read_rows(table: Path, console: Console, known: Collection[str]) -> Iterator[TableRow]:
    text = _read_text(table, console)
    lines = io.StringIO(text, newline="")
    separator = _find_separator(text, known)
    start = 0
    if text[:4].lower() == "sep=":  # a line by which Excel knows the separator
        separator = text[4:5]
        lines.readline()
        start = 1
    if separator in ("", "\r", "\n", '"', " "):
        raise ParameterError(f"{table} names no separator after sep=; leave that line out")
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    try:
        for row in reader:
            values = [value.strip() for value in row]
            if any(values):
                yield TableRow(start + reader.line_num, values)
    except csv.Error as error:
        raise ParameterError(
            f"{table}, line {start + reader.line_num}: {error}; close each quotation mark that "
            "begins a value, and write two for one inside it"
        ) from error


def _read_text(table: Path, console: Console) -> str:
    try:
        data = table.read_bytes()
    except OSError as error:
        raise ParameterError(
            f"{table} cannot be read ({error.strerror}); name a CSV file"
        ) from error
    if data.startswith(_SPREADSHEETS):
        raise ParameterError(f"{table} is a spreadsheet; save it as CSV (in Excel: CSV UTF-8)")
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    if encoding is None and 0 in data[:2]:  # the first letter of a header is an ASCII one
        encoding = "utf-16-be" if data[0] == 0 else "utf-16-le"
    try:
        text = data.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        try:
            text = data.decode(encoding or "cp1252")
        except UnicodeDecodeError:
            raise ParameterError(f"{table} is no text ({error}); save it as UTF-8") from error
        console.print(
            f"{table} is not UTF-8 and was read as Windows-1252; save it as UTF-8 if letters are "
            "wrong",
            style="yellow",
        )
    if "\0" in text:
        raise ParameterError(f"{table} is no text; save it as UTF-8")
    return text


def _find_separator(text: str, known: Collection[str]) -> str:
    """Return the separator with which the header has the most known columns."""
    header = next((line for line in text.splitlines() if line.strip()), "")

    def count_known(separator: str) -> int:
        names = header.replace('"', "").split(separator)
        return sum(normalise_column(name) in known for name in names)

    return max(_SEPARATORS, key=count_known)  # a comma where none fits better


def normalise_column(column: str) -> str:
    """Return a column's name as that of an option: `Negative Prompt` is negative_prompt.

    Args:
        column: as the table has it.
    """
    return column.strip().lower().replace(" ", "_").replace("-", "_")


def _read_header(table: Path, header: TableRow) -> list[str]:
    columns = [normalise_column(name) for name in header.values]
    named = [name for name in columns if name]  # spreadsheets add columns without a name
    remedy = f"{', '.join(_COLUMNS[:-1])} and {_COLUMNS[-1]} are known"
    if "clip" not in named:
        raise ParameterError(
            f"--csv {table} has no column clip; its first line must name the columns, such as "
            f"clip,prompt, and is {', '.join(filter(None, header.values))}"
        )
    for name in named:
        if name not in _COLUMNS:
            close = get_close_matches(name, _COLUMNS, n=1)
            question = f" (is {close[0]} meant?)" if close else ""
            raise ParameterError(
                f"--csv {table} has the column {name}{question}; rename it or leave it out: "
                f"{remedy}"
            )
        if named.count(name) > 1:
            raise ParameterError(f"--csv {table} has the column {name} twice; leave one out")
    return columns


def _pair(columns: list[str], values: list[str]) -> dict[str, str]:
    """Return the values of a row that are not empty, by column."""
    names = [*columns, *[""] * (len(values) - len(columns))]
    cells = [(name, value) for name, value in zip(names, values, strict=False) if value]
    surplus = [value for name, value in cells if not name]
    if surplus:
        raise ParameterError(
            f"the value {surplus[0]!r} has no column; a text that holds the separator needs "
            "quotation marks around it"
        )
    row = dict(cells)
    if "clip" not in row:
        raise ParameterError("clip is empty; name a video file, or leave the line out")
    return row


def _check_suffix(output: Path) -> None:
    if output.suffix.lower() not in SUFFIXES:
        raise ParameterError(
            f"output {output.name} ends in none of {' '.join(SUFFIXES)}; give it one of these"
        )

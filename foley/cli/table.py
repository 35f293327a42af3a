"""The CSV table of `foley generate --csv`."""

import csv
from pathlib import Path

from foley.cli.plan import SUFFIXES, ClipTask, choose_default_output
from foley.errors import ParameterError
from foley.request import GenerationRequest

_OPTION_COLUMNS = ("prompt", "negative_prompt", "seed")
_COLUMNS = {"clip", *_OPTION_COLUMNS, "output"}


def read_table(table: Path, request: GenerationRequest, output: Path | None) -> list[ClipTask]:
    """Return one task for each row of a CSV file.

    Args:
        table: UTF-8 text with a header. The column `clip` is required; `prompt`,
            `negative_prompt`, `seed` and `output` are optional. Paths are relative to the table.
        request: the options that a row does not set.
        output: folder of the results that a row does not name; None for each clip's folder.

    Raises:
        ParameterError: the table cannot be read, a column or value is missing, a value is out of
            bounds, or `output` is a file.
    """
    if output is not None and output.suffix.lower() in SUFFIXES:
        raise ParameterError(f"--output {output} is one file for a table of clips; name a folder")
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = set(reader.fieldnames or ())
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ParameterError(f"--csv {table} cannot be read: {error}") from error
    if "clip" not in columns or not columns <= _COLUMNS:
        raise ParameterError(
            f"--csv {table} has the columns {', '.join(sorted(columns)) or 'none'}; clip is "
            "needed, and prompt, negative_prompt, seed and output are known"
        )
    tasks = []
    for line, row in rows:
        try:
            tasks.append(_read_row(row, table.parent, request, output))
        except ParameterError as error:
            raise ParameterError(f"{table}, line {line}: {error}") from error
    return tasks


def _read_row(
    row: dict[str, str], folder: Path, request: GenerationRequest, output: Path | None
) -> ClipTask:
    if not row.get("clip") or None in row:  # the csv module puts surplus values under None
        raise ParameterError("the row does not match the columns")
    options = {key: row[key] for key in _OPTION_COLUMNS if row.get(key)}
    request = GenerationRequest.parse(**(request.model_dump() | options))
    clip = folder / row["clip"]
    named = row.get("output")
    path = folder / named if named else choose_default_output(clip, output)
    if path.suffix.lower() not in SUFFIXES:
        raise ParameterError(f"output {named} ends in none of {' '.join(SUFFIXES)}")
    return ClipTask(clip, request, path)

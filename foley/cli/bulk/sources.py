"""Where rows come from: a folder, a pattern, or a table as CSV, JSON lines or Parquet."""

import glob
import importlib.util
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any

from rich.console import Console

from foley.cli.bulk.rows import COLUMNS, SourceRow
from foley.cli.table import normalise_column, read_rows
from foley.errors import ConfigError, ParameterError
from foley.media.numbering import is_pattern, name_pictures
from foley.storage import is_remote, open_storage

CLIP_SUFFIXES = (
    *(".mp4", ".mov", ".mkv", ".webm", ".m4v", ".avi", ".mpg", ".mpeg", ".ts", ".mts"),
    *(".ogv", ".wmv", ".flv", ".3gp"),
)
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
# Columns that a template may name where the source is a folder.
NAME, PARENT = "name", "folder"


def read_source(
    source: str, output: str, fields: list[str], console: Console, *, with_zips: bool = False
) -> list[SourceRow]:
    """Return the rows of a source, in an order that stays the same.

    Args:
        source: path of a folder or of a table, a pattern such as `clips/*.mp4`, numbered pictures
            such as `frames/%04d.png`, or the s3:// address of a prefix or of a table.
        output: of the results, whose files are no clips.
        fields: columns that the template of the prompt names.
        console: receives a line about columns that are left out.
        with_zips: whether zips in a folder are clips: numbered pictures.

    Raises:
        ParameterError: there is no such source, it has no row, or a column is unknown or missing.
        ConfigError: an extra is missing that reads it.
    """
    suffix = PurePosixPath(source).suffix.lower()
    if suffix in TABLE_SUFFIXES and not Path(source).is_dir():
        return _read_table(source, suffix, fields, console)
    if is_remote(source):
        rows = _read_prefix(source, output, with_zips)
    elif Path(source).is_dir():
        rows = _read_folder(Path(source), output, with_zips)
    elif glob.has_magic(source):
        rows = _read_pattern(source, output)
    elif Path(source).is_file() or is_pattern(Path(source)):
        rows = [_make_file_row(Path(source), Path(source).name)]
    else:
        raise ParameterError(
            f"there is no {source}; name a folder, a pattern such as 'clips/*.mp4', a table "
            f"({' '.join(TABLE_SUFFIXES)}) or an s3:// address"
        )
    if not rows:
        raise ParameterError(
            f"{source} holds no clip; clips end in {' '.join(CLIP_SUFFIXES)}, or match the pattern"
        )
    _check_fields(fields, {NAME, PARENT}, source)
    return rows


def _read_folder(folder: Path, output: str, with_zips: bool) -> list[SourceRow]:
    if not is_remote(output) and folder.resolve() == Path(output).resolve():
        raise ParameterError(f"{folder} is the source and the output; name another folder")
    return [
        _make_file_row(folder / name, name)
        for name in open_storage(str(folder)).list_sizes()
        if _is_clip(name, with_zips) and not _is_below(folder / name, output)
    ]


def _read_pattern(pattern: str, output: str) -> list[SourceRow]:
    parts = Path(pattern).parts
    first = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    base = Path(*parts[:first])
    paths = (Path(found) for found in sorted(glob.glob(pattern, recursive=True)))
    return [
        _make_file_row(path, path.relative_to(base).as_posix())
        for path in paths
        if path.is_file() and not _is_below(path, output)
    ]


def _read_prefix(source: str, output: str, with_zips: bool) -> list[SourceRow]:
    source = source.rstrip("/")
    inside = output.removeprefix(source + "/") if output.startswith(source + "/") else None
    if source == output:
        raise ParameterError(f"{source} is the source and the output; name another prefix")
    return [
        _make_row(f"{source}/{name}", f"{source}/{name}", name, {})
        for name in sorted(open_storage(source).list_sizes())
        if _is_clip(name, with_zips) and not (inside and name.startswith(inside.rstrip("/") + "/"))
    ]


def _is_clip(name: str, with_zips: bool) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") for part in path.parts)
    suffixes = (*CLIP_SUFFIXES, ".zip") if with_zips else CLIP_SUFFIXES
    return path.suffix.lower() in suffixes and not hidden


def _is_below(path: Path, output: str) -> bool:
    return not is_remote(output) and Path(output).resolve() in path.resolve().parents


def _make_file_row(path: Path, name: str) -> SourceRow:
    return _make_row(str(path), str(path.absolute()), name, {})


def _make_row(place: str, clip: str, name: str, values: Mapping[str, Any]) -> SourceRow:
    path = PurePosixPath(name)
    if not is_remote(clip) and is_pattern(Path(clip)):
        path = path.with_name(name_pictures(Path(clip)))
    else:
        path = path.with_suffix("")
    about = {NAME: path.name, PARENT: PurePosixPath(clip).parent.name}
    return SourceRow(place, {**about, **values}, clip, str(path))


def _read_table(source: str, suffix: str, fields: list[str], console: Console) -> list[SourceRow]:
    with tempfile.TemporaryDirectory(prefix="foley-") as scratch:
        path = Path(source)
        base = str(path.parent.absolute())
        if is_remote(source):
            base, _, name = source.rpartition("/")
            path = Path(scratch, name)
            path.write_bytes(open_storage(base).read(name))
        elif not path.is_file():
            raise ParameterError(f"there is no table {source}; check the path")
        if suffix in (".csv", ".tsv"):
            read = list(_read_csv(path, fields, console))
        elif suffix == ".parquet":
            read = list(_read_parquet(path))
        else:
            read = list(_read_json_lines(path))
    if not read:
        raise ParameterError(f"{source} has no row; add one for each clip")
    _check_columns({name for _, values in read for name in values}, fields, source, console)
    return [_make_table_row(f"{source}, {place}", values, base) for place, values in read]


def _make_table_row(place: str, values: dict[str, Any], base: str) -> SourceRow:
    given = values.get("clip")
    if given is None:
        return SourceRow(place, values, None, "")
    given = str(given)
    if is_remote(given) or os.path.isabs(given):
        return _make_row(place, given, PurePosixPath(given).name, values)
    clip = f"{base}/{given}" if is_remote(base) else os.path.normpath(os.path.join(base, given))
    name = os.path.normpath(given)
    # A clip beside the table's folder must not lead its result out of the output.
    return _make_row(place, clip, Path(name).name if name.startswith("..") else name, values)


def _read_csv(
    path: Path, fields: list[str], console: Console
) -> Iterator[tuple[str, dict[str, Any]]]:
    header, *rows = read_rows(path, console, known={*COLUMNS, *fields})
    names = [_name_column(name) for name in header.values]
    for name in filter(None, names):
        if names.count(name) > 1:
            raise ParameterError(f"{path} has the column {name} twice; leave one out")
    for line, values in rows:
        if any(values[len(names) :]):
            raise ParameterError(
                f"{path}, line {line}: the value {values[len(names)]!r} has no column; a text that "
                "holds the separator needs quotation marks around it"
            )
        pairs = zip(names, values, strict=False)
        yield f"line {line}", {name: value for name, value in pairs if name and value}


def _name_column(name: str) -> str:
    """Return an option's name however it is written, and any other column as it is."""
    known = normalise_column(name)
    return known if known in COLUMNS else name.strip()


def _read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ParameterError(f"{path} is no text ({error}); save it as UTF-8") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ParameterError(f"{path}, line {number}: is no JSON ({error})") from error
        if not isinstance(values, dict):
            raise ParameterError(
                f'{path}, line {number}: must be an object such as {{"clip": "one.mp4"}}'
            )
        yield f"line {number}", _drop_empty(values)


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if importlib.util.find_spec("pyarrow") is None:
        raise ConfigError(f"{path} needs the extra 'bulk': pip install 'foley-serving[bulk]'")
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ParameterError(f"{path} cannot be read as Parquet ({error})") from error
    for number, values in enumerate(table.to_pylist(), start=1):
        yield f"row {number}", _drop_empty(values)


def _drop_empty(values: dict[str, Any]) -> dict[str, Any]:
    kept = {k: _drop_nothing(v) for k, v in values.items() if v is not None and v != ""}
    return {_name_column(k): v for k, v in kept.items()}


def _drop_nothing(value: Any) -> Any:
    """Return a value without the fields that are null, as Parquet fills up its structures."""
    if isinstance(value, dict):
        return {k: _drop_nothing(v) for k, v in value.items() if v is not None}
    return [_drop_nothing(v) for v in value] if isinstance(value, list) else value


def _check_columns(found: set[str], fields: list[str], source: str, console: Console) -> None:
    """Refuse a column that looks like a misspelt option; name the others that are left out."""
    _check_fields(fields, {*found, NAME, PARENT}, source)
    unknown = sorted(found - {*COLUMNS, *fields})
    for name in unknown:
        close = get_close_matches(normalise_column(name), COLUMNS, n=1, cutoff=0.8)
        if close:
            raise ParameterError(
                f"{source} has the column {name} (is {close[0]} meant?); rename it or leave it out"
            )
    if unknown:
        console.print(
            f"{source}: columns that are no option are left out: {', '.join(unknown)}",
            style="yellow",
        )


def _check_fields(fields: list[str], found: set[str], source: str) -> None:
    for name in fields:
        if name not in found:
            raise ParameterError(
                f"--prompt names the column {name}, and {source} has {', '.join(sorted(found))}; "
                "write {{ and }} for braces that are meant as such"
            )

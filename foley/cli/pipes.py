"""Clips on standard input and results on standard output, which `-` names."""

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from foley.errors import OutputError, ParameterError

PIPE = Path("-")


def check_pipes(
    clips: Sequence[Path],
    output: Path | None,
    *,
    has_table: bool,
    num_files: int,
    as_json: bool,
) -> None:
    """Check that standard input and output can be used as they were asked for.

    Args:
        clips: as the user named them.
        output: as the user named it.
        has_table: whether a table names more clips.
        num_files: results of each clip.
        as_json: whether standard output gets JSON.

    Raises:
        ParameterError: `-` is given twice, without a name for the result, or where standard output
            would get more than one file; or a pipe is a terminal.
    """
    if PIPE in clips:
        if clips.count(PIPE) > 1:
            raise ParameterError("- is standard input, which holds one clip; name it once")
        if output is None:
            raise ParameterError(
                "a clip from standard input has no name for its result; add -o FILE, or -o - for "
                "standard output"
            )
        if sys.stdin.isatty():
            raise ParameterError("standard input is a terminal; pipe a clip into it")
    if output == PIPE:
        if as_json:
            raise ParameterError("--json and -o - both use standard output; leave one out")
        if len(clips) > 1 or has_table or num_files > 1:
            raise ParameterError("standard output holds one result; name a folder with -o")
        if sys.stdout.isatty():
            raise ParameterError("standard output is a terminal; pipe the result, or name a file")


def store_input(path: Path) -> None:
    """Write standard input to a file.

    Args:
        path: of the file.

    Raises:
        ParameterError: standard input is empty.
        OutputError: it cannot be read, or the file cannot be written.
    """
    try:
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
    except OSError as error:
        raise OutputError(
            f"standard input cannot be kept in {path.parent} ({error.strerror}); make room there, "
            "or set TMPDIR to another folder"
        ) from error
    if path.stat().st_size == 0:
        raise ParameterError("standard input is empty; pipe a clip into it")


def write_line(line: bytes) -> None:
    """Write a line to standard output at once, so that the next program can begin.

    Args:
        line: as bytes, since a path need not be text.

    Raises:
        OutputError: standard output cannot be written.
        BrokenPipeError: its reader has ended.
    """
    _write(lambda output: output.write(line + b"\n"))


def write_file(path: Path) -> None:
    """Write a file to standard output.

    Args:
        path: of the file.

    Raises:
        OutputError: standard output cannot be written.
        BrokenPipeError: its reader has ended.
    """
    with path.open("rb") as file:
        _write(lambda output: shutil.copyfileobj(file, output))


def _write(write: Callable[[BinaryIO], object]) -> None:
    try:
        write(sys.stdout.buffer)
        sys.stdout.buffer.flush()
    except OSError as error:
        # Python writes what is left in the buffer when it ends, and would fail once more.
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise OutputError(
            f"standard output cannot be written ({error.strerror}); finished files are kept, and "
            "--skip-existing continues after them"
        ) from error

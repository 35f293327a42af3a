"""Which files this process opens for writing."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_recorders: list[list[Path]] = []


def _record(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not _recorders:
        return
    path, _mode, flags = arguments
    if isinstance(path, str | bytes) and flags & (os.O_WRONLY | os.O_RDWR):
        opened = Path(os.fsdecode(path))
        if opened.parent.name == "__pycache__":  # Python keeps what it compiled at a first import
            return
        for recorder in _recorders:
            recorder.append(opened)


sys.addaudithook(_record)  # there is no way to remove one


@contextmanager
def record_opened_files() -> Iterator[list[Path]]:
    """The paths that are opened for writing inside the block; temporary files are among them."""
    opened: list[Path] = []
    _recorders.append(opened)
    try:
        yield opened
    finally:
        _recorders.remove(opened)

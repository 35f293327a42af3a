"""Media files that appear whole or not at all."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import av

from foley import atomic
from foley.errors import OutputError


@contextmanager
def complete_or_absent(destination: Path) -> Iterator[Path]:
    """A temporary path beside `destination`, renamed to it on success and removed on any error.

    Raises:
        OutputError: the folder is missing or cannot be written, the name is too long, or the
            encoder refused the data.
    """
    with _writable(destination), atomic.complete_or_absent(destination) as temporary:
        yield temporary


@contextmanager
def unclaimed(wanted: Path) -> Iterator[Path]:
    """`wanted`, or where something has this name, the first free of `name-2`, `name-3`, ...

    An empty file holds the name, so that nobody else takes it; it is removed on any error.

    Raises:
        OutputError: no file can be made there.
    """
    others = (wanted.with_stem(f"{wanted.stem}-{number}") for number in itertools.count(2))
    with _writable(wanted):
        path = next(path for path in itertools.chain([wanted], others) if _claim(path))
    try:
        yield path
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


def _claim(path: Path) -> bool:
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@contextmanager
def _writable(destination: Path) -> Iterator[None]:
    """Turns errors while writing `destination` into ours."""
    try:
        yield
    except (OSError, av.FFmpegError) as error:  # FFmpeg's errors are not all OSErrors
        raise OutputError(
            f"{destination} cannot be written ({error.strerror or error}); "
            "check the folder, its permissions and the space left"
        ) from error

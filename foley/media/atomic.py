"""Atomic writing of media files, with errors that name the destination."""

import errno
import itertools
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import av

from foley.atomic import atomic_path
from foley.errors import OutputError

_ERRORS_OF_THE_PLACE = frozenset(
    {
        errno.EACCES,
        errno.EBUSY,
        errno.EDQUOT,
        errno.EEXIST,
        errno.EFBIG,
        errno.EIO,
        errno.EISDIR,
        errno.EMFILE,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOSPC,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
    }
)


@contextmanager
def atomic_media_path(destination: Path) -> Iterator[Path]:
    """Yield a temporary path for a muxer, as `atomic_path`, with its errors as `OutputError`.

    Args:
        destination: an existing file there is replaced.

    Raises:
        OutputError: the folder is missing or cannot be written, the name is too long, or the
            encoder refused the data.
    """
    with _translate_write_errors(destination), atomic_path(destination) as temporary:
        yield temporary


@contextmanager
def claim_path(wanted: Path) -> Iterator[Path]:
    """Yield `wanted` or, if a file of that name exists, the first free of `name-2`, `name-3`, ...

    An empty file reserves the name until the caller replaces it. It is removed when the block
    raises.

    Args:
        wanted: the preferred path.

    Raises:
        OutputError: no file can be created in that folder.
    """
    others = (wanted.with_stem(f"{wanted.stem}-{number}") for number in itertools.count(2))
    with _translate_write_errors(wanted):
        path = next(path for path in itertools.chain([wanted], others) if _create(path))
    try:
        yield path
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


def _create(path: Path) -> bool:
    """Create an empty file; returns False if one exists."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@contextmanager
def _translate_write_errors(destination: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, av.FFmpegError) as error:  # some of FFmpeg's errors are not OSErrors
        reason = error.strerror or error
        if error.errno in _ERRORS_OF_THE_PLACE or not isinstance(error, av.FFmpegError):
            raise OutputError(
                f"{destination} cannot be written ({reason}); "
                "check the folder, its permissions and the space left"
            ) from error
        raise OutputError(
            f"{destination.name} cannot be written: its format does not take the clip's picture or "
            f"the sound ({reason}); ask for mkv or wav, or convert the clip first"
        ) from error

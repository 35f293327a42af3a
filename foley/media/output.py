"""Files that appear whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av

from foley.errors import OutputError


@contextmanager
def complete_or_absent(destination: Path) -> Iterator[Path]:
    """A temporary path beside `destination`, renamed to it on success and removed on any error.

    Raises:
        OutputError: the folder is missing or cannot be written, or the encoder refused the data.
    """
    temporary = destination.with_name(f".{destination.name}.{secrets.token_hex(8)}.partial")
    try:
        yield temporary
        os.replace(temporary, destination)
    except (OSError, av.FFmpegError) as error:  # FFmpeg's errors are not all OSErrors
        raise OutputError(
            f"{destination} cannot be written ({error.strerror or error}); "
            "check the folder, its permissions and the space left"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)

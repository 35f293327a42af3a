"""Files that appear whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def complete_or_absent(destination: Path) -> Iterator[Path]:
    """A temporary path beside `destination`, renamed to it on success and removed on any error.

    Raises:
        OSError: the folder is missing or cannot be written, or the name is too long.
    """
    # Its length does not follow the destination's, whose name may be as long as names can be.
    temporary = destination.parent / f".foley-{secrets.token_hex(8)}.partial"
    try:
        yield temporary
        os.replace(temporary, destination)
    finally:
        with suppress(OSError):
            temporary.unlink()

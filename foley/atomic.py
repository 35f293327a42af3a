"""Files that appear complete or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_path(destination: Path) -> Iterator[Path]:
    """Yield a temporary path beside `destination`, and rename it to `destination` on success.

    The caller creates the temporary file. It is removed when the block raises.

    Args:
        destination: an existing file there is replaced.

    Raises:
        OSError: the folder is missing or cannot be written, or the name is too long.
    """
    # The temporary name has a fixed length, because the destination's may already be the longest
    # that the file system allows.
    temporary = destination.parent / f".foley-{secrets.token_hex(8)}.partial"
    try:
        yield temporary
        os.replace(temporary, destination)
    finally:
        with suppress(OSError):
            temporary.unlink()

"""Whether an error says that a disk is full, whichever library has met it."""

import errno
import sqlite3

NUMBERS = (errno.ENOSPC, errno.EDQUOT)


def is_storage_full(error: BaseException | None) -> bool:
    """Return whether the error, or one that has led to it, is that of a full disk.

    Args:
        error: any; None for none.
    """
    while error is not None:
        if getattr(error, "errno", None) in NUMBERS:
            return True
        # safetensors has the number in its text alone.
        if any(f"(os error {number})" in str(error) for number in NUMBERS):
            return True
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            return True
        # SQLAlchemy wraps the database's own.
        error = getattr(error, "orig", None) or error.__cause__ or error.__context__
    return False

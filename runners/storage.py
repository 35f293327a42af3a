"""Whether an error says that a disk is full, whichever library has met it."""

import errno
import sqlite3

from foley.errors import iterate_causes

NUMBERS = (errno.ENOSPC, errno.EDQUOT)


def is_storage_full(error: BaseException | None) -> bool:
    """Return whether the error, or one that has led to it, is that of a full disk.

    Args:
        error: any; None for none.
    """
    for cause in iterate_causes(error):
        if getattr(cause, "errno", None) in NUMBERS:
            return True
        # safetensors has the number in its text alone.
        if any(f"(os error {number})" in str(cause) for number in NUMBERS):
            return True
        # SQLAlchemy wraps the database's own.
        if getattr(getattr(cause, "orig", cause), "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            return True
    return False

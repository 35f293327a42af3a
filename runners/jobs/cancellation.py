"""Requests that are being worked on, so that any process of the server can cancel them.

Each has a file in a folder that the API's processes share, locked by the process that works on it:
whoever cancels writes into the file, and a file that nobody holds is a dead process's.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

LOOK_SECONDS = 0.1  # a look costs 1 us; nothing but the wish to cancel waits for it


class CancellationToken:
    """One request that is being worked on."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    async def cancelled(self) -> str:
        """Returns, with the reason, when somebody cancels the request."""
        while not os.fstat(self._descriptor).st_size:
            await asyncio.sleep(LOOK_SECONDS)
        return "the request was cancelled"


class CancellationRegistry:
    """The requests that all API processes work on.

    Args:
        folder: shared by them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextlib.contextmanager
    def enter(self, owner: str, request_id: str) -> Iterator[CancellationToken]:
        """Let a request be cancelled while the block lasts.

        Args:
            owner: whose it is; others cannot cancel it.
            request_id: may be in use: they are then cancelled together.
        """
        # Locked before it gets the name that others look for, so it never seems a dead one's.
        descriptor, unnamed = tempfile.mkstemp(prefix=".", dir=self._folder)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        path = self._folder / (digest(owner, request_id) + Path(unnamed).name)
        os.rename(unnamed, path)
        try:
            yield CancellationToken(descriptor)
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)

    def cancel(self, owner: str, request_id: str) -> bool:
        """Cancel a request, whichever process works on it; False when none does."""
        found = False
        for path in self._folder.glob(digest(owner, request_id) + ".*"):
            with contextlib.suppress(FileNotFoundError), path.open("r+b", buffering=0) as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    file.write(b"cancelled")
                    found = True
                else:
                    path.unlink(missing_ok=True)
        return found


def digest(owner: str, request_id: str) -> str:
    """A file name for a request; that of another owner is another, whatever id was chosen."""
    return hashlib.sha256(f"{owner}/{request_id}".encode()).hexdigest()

"""The registry of active requests, through which any API process can cancel them.

Each request has a file in a folder that the API's processes share. The process that works on the
request holds a lock on its file. Another process cancels the request by writing into the file. A
file without a lock belongs to a dead process.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

POLL_SECONDS = 0.1  # the time until a cancellation takes effect; a poll takes 1 us


class CancellationToken:
    """Tells one request whether it was cancelled.

    Args:
        descriptor: of the request's file.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    async def wait(self) -> str:
        """Wait until the request is cancelled; returns a reason for `run_until_cancelled`."""
        while not os.fstat(self._descriptor).st_size:
            await asyncio.sleep(POLL_SECONDS)
        return "the request was cancelled"


class CancellationRegistry:
    """The active requests of all API processes.

    Args:
        folder: shared by the processes. Files of dead ones are removed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for path in folder.glob("[!.]*"):  # one that begins with a dot is about to be locked
            with contextlib.suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()

    @contextlib.contextmanager
    def enter(self, owner: str, request_id: str) -> Iterator[CancellationToken]:
        """Make a request known while the block lasts.

        Args:
            owner: of the request. Other owners cannot cancel it.
            request_id: need not be unique. Requests with one id are cancelled together.
        """
        # Locked before it gets the name that others look for, so that it never looks like the file
        # of a dead process.
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
        """Cancel the requests of an id; returns whether there was one.

        Args:
            owner: of the request.
            request_id: of the request, in any process of the server.
        """
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


def has_active_request(folder: Path) -> bool:
    """Return whether any living API process works on a request.

    Args:
        folder: as of `CancellationRegistry`; need not exist.
    """
    for path in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def digest(owner: str, request_id: str) -> str:
    """Return a file name for a request. Different owners never share one.

    Args:
        owner: of the request.
        request_id: any text.
    """
    return hashlib.sha256(f"{owner}/{request_id}".encode()).hexdigest()

"""The files of finished requests, kept for a while for their owners, by all API processes.

<folder>/<digest of owner and request id>.<bytes>.<random>/foley-1.mp4  foley-1.wav ...

A folder appears complete, by a rename, and its modification time says since when it is kept.
"""

import asyncio
import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from foley.errors import NotFoundError, OutputError
from runners.jobs.cancellation import digest

FILE_NAME = re.compile(r"foley-\d+(-layer-\d+|-piece-\d+)?\.[a-z0-9]+", re.ASCII)
MAX_SWEEP_SECONDS = 30.0


def find_sound(folder: Path, name: str | None) -> Path | None:
    """Return a file of a result whose sound can be edited; None if there is none.

    Args:
        folder: of the files.
        name: of one of them; None for the first variation, without losses if it is there so.
    """
    if name is None:
        suffixes = ("wav", "flac", "mov", "mp4", "mkv", "webm")
        names = [f"foley-1.{suffix}" for suffix in suffixes]
    else:
        names = [name] if FILE_NAME.fullmatch(name) else []
    return next((folder / one for one in names if (folder / one).is_file()), None)


class _StoredResult(NamedTuple):
    since: float  # Unix time
    num_bytes: int
    folder: Path


class ResultStore:
    """Keeps the files of finished requests until they expire or newer ones need the room.

    Args:
        folder: shared by the API's processes, on the file system where results are made.
        keep_seconds: how long files are kept.
        keep_bytes: how many bytes are kept in all; the oldest files go first.
    """

    def __init__(self, folder: Path, *, keep_seconds: float, keep_bytes: int) -> None:
        self.keep_seconds = keep_seconds
        self._folder = folder
        self._keep_bytes = keep_bytes

    def check_room(self, num_bytes: int) -> None:
        """Refuse a result that is larger than all files that may be kept.

        Args:
            num_bytes: size of the result, or a lower bound of it.

        Raises:
            OutputError: it is too large.
        """
        if num_bytes > self._keep_bytes:
            raise OutputError(
                f"the files would take {num_bytes} bytes, this service keeps {self._keep_bytes}; "
                "ask for fewer variations, or for the file itself instead of a stream of events"
            )

    def store(self, owner: str, request_id: str, paths: Iterable[Path]) -> None:
        """Move the files of a request here; the oldest results make room for them.

        Args:
            owner: see `runners.auth.ApiKeys.owner_of`.
            request_id: may have been used before; `find` then returns the newest.
            paths: of the files, on the same file system.

        Raises:
            OutputError: they are larger than all files that may be kept.
        """
        paths = list(paths)
        num_bytes = sum(path.stat().st_size for path in paths)
        self.check_room(num_bytes)
        self.sweep(needed_bytes=num_bytes)
        folder = Path(tempfile.mkdtemp(prefix=".", dir=self._folder))
        for path in paths:
            path.rename(folder / path.name)
        folder.rename(self._folder / f"{digest(owner, request_id)}.{num_bytes}{folder.name}")

    def find(self, owner: str, request_id: str, name: str) -> Path:
        """Return the path of a file; of the newest request where an id was used more than once.

        Args:
            owner: of the request.
            request_id: as the caller sent it; any text.
            name: of the file, as the caller sent it; any text.

        Raises:
            NotFoundError: there is no such file, or it belongs to another owner.
        """
        stored = self._list_stored(digest(owner, request_id) + ".")
        if FILE_NAME.fullmatch(name):
            # Each piece of a sound has been stored by itself, while the others were made.
            for result in reversed(stored if "-piece-" in name else stored[-1:]):
                path = result.folder / name
                if result.since + self.keep_seconds > time.time() and path.is_file():
                    return path
        raise NotFoundError(
            f"there is no such result; they are kept for {self.keep_seconds:g} s, "
            "and less where they would take too much room"
        )

    def find_sound(self, owner: str, request_id: str, name: str | None) -> Path | None:
        """Return a file of a request whose sound can be edited; None if there is none.

        Args:
            owner: of the request.
            request_id: as the caller sent it; any text.
            name: of the file; None for the first variation, without losses if it is there so.
        """
        stored = self._list_stored(digest(owner, request_id) + ".")
        if not stored or stored[-1].since + self.keep_seconds <= time.time():
            return None
        return find_sound(stored[-1].folder, name)

    def sweep(self, *, needed_bytes: int = 0) -> None:
        """Remove what has expired, and then the oldest results until there is enough room.

        Args:
            needed_bytes: size of a result that is about to be stored.
        """
        stored = self._list_stored()
        total_bytes = needed_bytes + sum(result.num_bytes for result in stored)
        oldest_since = time.time() - self.keep_seconds
        for result in stored:
            if result.since > oldest_since and total_bytes <= self._keep_bytes:
                break
            shutil.rmtree(result.folder, ignore_errors=True)
            total_bytes -= result.num_bytes
        for folder in self._folder.glob(".*"):  # being filled, which takes no time at all
            with contextlib.suppress(FileNotFoundError):
                if folder.stat().st_mtime < oldest_since:
                    shutil.rmtree(folder, ignore_errors=True)

    async def sweep_forever(self) -> None:
        """Sweep at intervals of a tenth of the time that results are kept, at most 30 s."""
        while True:
            await asyncio.sleep(min(self.keep_seconds / 10, MAX_SWEEP_SECONDS))
            await asyncio.to_thread(self.sweep)

    def _list_stored(self, prefix: str = "") -> list[_StoredResult]:
        """Return the results whose folders have a prefix, the oldest first."""
        stored = []
        names: list[str] = []
        with contextlib.suppress(FileNotFoundError):  # at the end of the service
            names = os.listdir(self._folder)  # pathlib would compile a pattern for each request
        for name in names:
            if name.startswith(".") or not name.startswith(prefix):
                continue  # it is being filled, or another's
            folder = self._folder / name
            try:
                since = folder.stat().st_mtime
            except FileNotFoundError:
                continue  # another process has just removed it
            stored.append(_StoredResult(since, int(name.split(".")[1]), folder))
        return sorted(stored)

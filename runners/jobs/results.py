"""Results that are kept for a while, for whoever asked for them, in all processes of the server.

<folder>/<digest of owner and request id>.<bytes>.<random>/foley-1.mp4  foley-1.wav ...

A folder appears whole, by renaming, and its time of change says since when it is kept.
"""

import asyncio
import re
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from foley.errors import NotFoundError, OutputError
from runners.jobs.cancellation import digest

FILE_NAME = re.compile(r"foley-\d+\.[a-z0-9]+", re.ASCII)

MAX_SWEEP_SECONDS = 30.0


class _Kept(NamedTuple):
    since: float
    num_bytes: int
    folder: Path


class Results:
    """Files of finished requests.

    Args:
        folder: shared by the API's processes, in the file system where results are made.
        keep_seconds: how long they are kept.
        keep_bytes: how much they take in all; the oldest go first.
    """

    def __init__(self, folder: Path, *, keep_seconds: float, keep_bytes: int) -> None:
        self.keep_seconds = keep_seconds
        self._folder = folder
        self._keep_bytes = keep_bytes

    def check_room(self, num_bytes: int) -> None:
        """Refuse a result that cannot be kept even alone.

        Raises:
            OutputError: it is larger than all that may be kept.
        """
        if num_bytes > self._keep_bytes:
            raise OutputError(
                f"the files would take {num_bytes} bytes, this service keeps {self._keep_bytes}; "
                "ask for fewer variations, or for the file itself instead of a stream of events"
            )

    def keep(self, owner: str, request_id: str, files: Iterable[Path]) -> None:
        """Move files here; the oldest results make room.

        Raises:
            OutputError: they are larger than all that may be kept.
        """
        files = list(files)
        num_bytes = sum(file.stat().st_size for file in files)
        self.check_room(num_bytes)
        self.sweep(room_bytes=num_bytes)
        folder = Path(tempfile.mkdtemp(prefix=".", dir=self._folder))
        for file in files:
            file.rename(folder / file.name)
        folder.rename(self._folder / f"{digest(owner, request_id)}.{num_bytes}{folder.name}")

    def find(self, owner: str, request_id: str, name: str) -> Path:
        """A file of a result; of the latest, where an id was used again.

        Raises:
            NotFoundError: there is none, or it is another's.
        """
        kept = self._kept(digest(owner, request_id) + ".*")
        if kept and FILE_NAME.fullmatch(name):
            path = kept[-1].folder / name
            if kept[-1].since + self.keep_seconds > time.time() and path.is_file():
                return path
        raise NotFoundError(
            f"there is no such result; they are kept for {self.keep_seconds:g} s, "
            "and less where they would take too much room"
        )

    def sweep(self, *, room_bytes: int = 0) -> None:
        """Remove what was kept long enough, and what stands in the way of so many bytes more."""
        kept = self._kept("*.*")
        total_bytes = room_bytes + sum(result.num_bytes for result in kept)
        oldest_since = time.time() - self.keep_seconds
        for result in kept:
            if result.since > oldest_since and total_bytes <= self._keep_bytes:
                break
            shutil.rmtree(result.folder, ignore_errors=True)
            total_bytes -= result.num_bytes

    async def sweep_always(self) -> None:
        """Sweep again and again."""
        while True:
            await asyncio.sleep(min(self.keep_seconds / 10, MAX_SWEEP_SECONDS))
            await asyncio.to_thread(self.sweep)

    def _kept(self, pattern: str) -> list[_Kept]:
        """The results whose folders have such names, the oldest first."""
        found = []
        for folder in self._folder.glob(pattern):
            if folder.name.startswith("."):
                continue  # just being filled
            try:
                since = folder.stat().st_mtime
            except FileNotFoundError:
                continue  # just swept by another process
            found.append(_Kept(since, int(folder.name.split(".")[1]), folder))
        return sorted(found)

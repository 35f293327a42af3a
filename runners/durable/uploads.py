"""Clips that are uploaded in pieces, before their job is submitted, over any number of connections.

<FOLEY_JOBS_DIR>/clips/<id>/
    upload.json   whose it is, and how long it will be
    data          what has arrived; locked by the request that writes it
"""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from foley.errors import (
    BusyError,
    ConflictError,
    FoleyError,
    NotFoundError,
    StorageFullError,
    UploadTooLargeError,
)
from runners.durable.files import JOB_ID, MIN_ROOM_BYTES

KEEP_SECONDS = 86_400.0  # after the last byte
# Where room is short, an unfinished upload of which nothing came for so long makes room. Else two
# that were begun and never sent would keep all others away for a day.
IDLE_SECONDS = 600.0
MAX_UPLOADS = 1000
MIN_RETRY_SECONDS = 5.0
FOLDER = "clips"
DATA = "data"
DESCRIPTION = "upload.json"


@dataclass(frozen=True, kw_only=True)
class StoredUpload:
    """An upload that may be unfinished.

    Attributes:
        id: matches `JOB_ID`.
        owner: see `runners.auth.ApiKeys.owner_of`.
        caller: whose share of the room it takes; see `runners.auth.caller_of`.
        num_bytes: that it will have.
        metadata: header Upload-Metadata, as it came.
    """

    id: str
    owner: str
    caller: str
    num_bytes: int
    metadata: str


class UploadStore:
    """The uploads of a folder. Its methods read or write the disk.

    Args:
        folder: of the jobs.
        max_bytes: that all uploads may have together.
        key_share: largest share of them, and of `MAX_UPLOADS`, that the uploads of one caller may
            take, above 0; each may have one.
    """

    def __init__(self, folder: Path, *, max_bytes: int, key_share: float) -> None:
        self._folder = folder / FOLDER
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._max_bytes = max_bytes
        self._max_bytes_of_caller = key_share * max_bytes
        self._max_uploads_of_caller = max(1, int(key_share * MAX_UPLOADS))

    def create(self, owner: str, caller: str, num_bytes: int, metadata: str) -> StoredUpload:
        """Set room aside for an upload.

        Args:
            owner: of the upload.
            caller: whose share of the room it takes.
            num_bytes: that it will have.
            metadata: visible ASCII.

        Raises:
            BusyError: the uploads together, or those of the caller, would be too many or too large,
                and none of them may be dropped.
            StorageFullError: the disk has no room for it.
            UploadTooLargeError: it alone has more bytes than all may have together.
        """
        remove_old_uploads(self._folder)
        with self._lock_folder():
            self._check_room(caller, num_bytes)
            upload = StoredUpload(
                id=uuid.uuid4().hex,
                owner=owner,
                caller=caller,
                num_bytes=num_bytes,
                metadata=metadata,
            )
            partial = Path(tempfile.mkdtemp(prefix=".", dir=self._folder))
            (partial / DATA).touch(mode=0o600)
            (partial / DESCRIPTION).write_text(json.dumps(asdict(upload)))
            partial.rename(self._folder / upload.id)
        return upload

    def find(self, owner: str, upload_id: str) -> StoredUpload:
        """Return an upload.

        Args:
            owner: of the upload.
            upload_id: as the caller sent it; any text.

        Raises:
            NotFoundError: there is none, or it belongs to another owner.
        """
        if JOB_ID.fullmatch(upload_id):
            with contextlib.suppress(FileNotFoundError):
                text = (self._folder / upload_id / DESCRIPTION).read_text()
                upload = StoredUpload(**json.loads(text))
                if upload.owner == owner and self.find_expiry(upload) > time.time():
                    return upload
        raise NotFoundError("there is no such upload; it may have expired or been deleted")

    def find_offset(self, upload: StoredUpload) -> int:
        """Return how many bytes have arrived.

        Raises:
            NotFoundError: it was deleted.
        """
        return self._stat(upload).st_size

    def find_expiry(self, upload: StoredUpload) -> float:
        """Return the Unix time at which an upload is removed.

        Raises:
            NotFoundError: it was deleted.
        """
        return self._stat(upload).st_mtime + KEEP_SECONDS

    @contextlib.contextmanager
    def open(self, upload: StoredUpload, offset: int) -> Iterator["UploadWriter"]:
        """Yield a writer that adds to an upload.

        Args:
            upload: of the caller.
            offset: where the next byte belongs, by the caller.

        Raises:
            NotFoundError: it was deleted.
            ConflictError: another request writes it, or it has another number of bytes.
        """
        try:
            file = self._path(upload).open("r+b", buffering=0)
        except FileNotFoundError as error:
            raise NotFoundError("there is no such upload; it was deleted") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConflictError(
                    "another request writes this upload; try again when it has ended"
                ) from error
            arrived = file.seek(0, os.SEEK_END)
            if arrived != offset:
                raise ConflictError(
                    f"Upload-Offset: must be {arrived}, where the next byte belongs, got {offset}"
                )
            yield UploadWriter(file.fileno(), upload.num_bytes - arrived)

    def link(self, owner: str, upload_id: str, path: Path) -> None:
        """Give the data of a complete upload a second name.

        Args:
            owner: of the upload.
            upload_id: as the caller sent it; any text.
            path: on the same file system; what is there is replaced.

        Raises:
            NotFoundError: there is none, or it belongs to another owner.
            ConflictError: it is not complete.
        """
        upload = self.find(owner, upload_id)
        arrived = self.find_offset(upload)
        if arrived < upload.num_bytes:
            raise ConflictError(
                f"upload: has {arrived} of {upload.num_bytes} bytes; send the rest first"
            )
        path.unlink(missing_ok=True)  # gRPC has an empty file there
        os.link(self._path(upload), path)

    def find_complete(self, owner: str, upload_id: str) -> Path | None:
        """Return the data of an upload that is complete; None for another, or for none.

        Args:
            owner: of the upload.
            upload_id: as the caller sent it; any text.
        """
        with contextlib.suppress(NotFoundError):
            upload = self.find(owner, upload_id)
            if self.find_offset(upload) == upload.num_bytes:
                return self._path(upload)
        return None

    def remove(self, upload_id: str) -> None:
        """Remove an upload, which may be gone already."""
        shutil.rmtree(self._folder / upload_id, ignore_errors=True)

    def _check_room(self, caller: str, num_bytes: int) -> None:
        """Return if there is room, once idle uploads were dropped that stand in the way.

        None is dropped if that makes too little room.
        """
        if num_bytes > self._max_bytes:
            raise UploadTooLargeError(
                f"Upload-Length: {num_bytes} bytes are more than the {self._max_bytes} that all "
                "uploads may have together; send a smaller clip"
            )
        kept = sorted(self._list_kept(), key=lambda one: one.changed_at)
        dropped: list[_KeptUpload] = []

        def drop_idle(in_the_way: Sequence[_KeptUpload], refusal: FoleyError) -> None:
            idle = next((one for one in in_the_way if one.is_idle), None)
            if idle is None:
                raise refusal
            dropped.append(idle)
            kept.remove(idle)

        while (found := self._find_refusal(kept, caller, num_bytes)) is not None:
            reason, in_the_way = found
            drop_idle(in_the_way, _refuse(reason, in_the_way))
        stats = os.statvfs(self._folder)
        free = stats.f_bavail * stats.f_frsize
        while free + sum(one.num_arrived for one in dropped) < (
            sum(one.num_missing for one in kept) + num_bytes + MIN_ROOM_BYTES
        ):
            drop_idle(kept, StorageFullError())
        for one in dropped:
            self.remove(one.upload.id)

    def _list_kept(self) -> Iterator["_KeptUpload"]:
        for folder in self._folder.iterdir():
            if not JOB_ID.fullmatch(folder.name):
                continue
            with contextlib.suppress(FileNotFoundError):
                upload = StoredUpload(**json.loads((folder / DESCRIPTION).read_text()))
                stat = (folder / DATA).stat()
                yield _KeptUpload(upload, upload.num_bytes - stat.st_size, stat.st_mtime)

    def _find_refusal(
        self, kept: Sequence["_KeptUpload"], caller: str, num_bytes: int
    ) -> tuple[str, Sequence["_KeptUpload"]] | None:
        """Return why a further upload has no room, and which ones take it; None if it has."""
        own = [one for one in kept if one.upload.caller == caller]
        own_bytes = num_bytes + sum(one.upload.num_bytes for one in own)
        if own and own_bytes > self._max_bytes_of_caller:
            return (
                f"the uploads of this caller would have {own_bytes} bytes, more than its share of "
                f"{self._max_bytes_of_caller:.0f}; submit their jobs, or delete some",
                own,
            )
        if len(own) >= self._max_uploads_of_caller:
            return (
                f"this caller has {len(own)} uploads, its share; submit their jobs, or delete some",
                own,
            )
        all_bytes = num_bytes + sum(one.upload.num_bytes for one in kept)
        if all_bytes > self._max_bytes:
            return (
                f"all uploads together would have {all_bytes} bytes, the limit is "
                f"{self._max_bytes}; try again later",
                kept,
            )
        if len(kept) >= MAX_UPLOADS:
            return f"there are {len(kept)} uploads, the limit; try again later", kept
        return None

    @contextlib.contextmanager
    def _lock_folder(self) -> Iterator[None]:
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _path(self, upload: StoredUpload) -> Path:
        return self._folder / upload.id / DATA

    def _stat(self, upload: StoredUpload) -> os.stat_result:
        try:
            return self._path(upload).stat()
        except FileNotFoundError as error:
            raise NotFoundError("there is no such upload; it was deleted") from error


@dataclass(frozen=True)
class _KeptUpload:
    upload: StoredUpload
    num_missing: int  # bytes that have not come
    changed_at: float  # Unix time of the last byte

    @property
    def num_arrived(self) -> int:
        """Bytes that have come."""
        return self.upload.num_bytes - self.num_missing

    @property
    def is_idle(self) -> bool:
        """Whether it makes room for others now."""
        return self.drops_at <= time.time()

    @property
    def drops_at(self) -> float:
        """The Unix time from which it makes room for others."""
        is_whole = self.upload.num_bytes > 0 and self.num_missing == 0
        return self.changed_at + (KEEP_SECONDS if is_whole else IDLE_SECONDS)


def _refuse(reason: str, in_the_way: Iterable[_KeptUpload]) -> BusyError:
    busy = BusyError(reason)
    seconds = min(one.drops_at for one in in_the_way) - time.time()
    # The job of an upload may be submitted at any time, and then there is room too.
    busy.retry_after_seconds = min(IDLE_SECONDS, max(MIN_RETRY_SECONDS, seconds))
    return busy


def remove_old_uploads(folder: Path) -> None:
    """Remove the uploads that have expired, and what a killed process left.

    Args:
        folder: of the uploads; may be absent.
    """
    before = time.time() - KEEP_SECONDS
    for path in folder.glob("*"):
        data = path / DATA
        with contextlib.suppress(FileNotFoundError):
            if (data if data.exists() else path).stat().st_mtime < before:
                shutil.rmtree(path, ignore_errors=True)


class UploadWriter:
    """Adds bytes to an upload.

    Args:
        descriptor: of the open file, at its end.
        num_missing: bytes that it may still get.

    Attributes:
        num_missing: as above, at the moment.
    """

    def __init__(self, descriptor: int, num_missing: int) -> None:
        self._descriptor = descriptor
        self.num_missing = num_missing

    def write(self, content: bytes) -> None:
        """Add bytes.

        Args:
            content: at most `num_missing` bytes.

        Raises:
            OSError: the disk is full, or broken. What was written until then stays.
        """
        view = memoryview(content)
        while view:
            written = os.write(self._descriptor, view)
            self.num_missing -= written
            view = view[written:]

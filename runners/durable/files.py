"""The folder of the jobs. A job is accepted when its folder gets its name, by one rename.

<FOLEY_JOBS_DIR>/
    jobs.sqlite       the queue, see `runners.durable.queue`
    jobs.secret       see `runners.durable.secret`
    jobs.lost         names in jobs/ that a new queue does not know, since the one before is gone
    executor.lock     locked by the one executor of this folder
    uploads/<random>/ a job that is being received
    clips/<id>/       see `runners.durable.uploads`
    jobs/<id>/
        request.json  what was accepted
        clip, source  until the job has succeeded
        results/      the files and `result.json`; appears whole
"""

import contextlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from foley.atomic import atomic_path
from foley.errors import NotFoundError, StorageFullError
from foley.request import AUDIO_FORMATS
from runners.durable.request import JobRequest
from runners.handoff import CLIP, SOURCE
from runners.jobs.results import find_sound

MIN_ROOM_BYTES = 32 * 1024 * 1024
FULL_BYTES = 256 * 1024
LEFTOVER_SECONDS = 86_400.0  # the longest that receiving a job may take
FILE_NAME = re.compile(r"foley-\d+(-layer-\d+)?\.[a-z0-9]+", re.ASCII)
JOB_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
REQUEST = "request.json"
RESULT = "result.json"


class JobFiles:
    """The folder that holds all jobs of a service.

    Args:
        folder: created if missing, for this user alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._uploads = folder / "uploads"
        self._jobs = folder / "jobs"
        for path in (folder, self._uploads, self._jobs):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def database(self) -> Path:
        """The file of the queue."""
        return self.folder / "jobs.sqlite"

    @property
    def executor_lock(self) -> Path:
        """The file that the executor holds locked."""
        return self.folder / "executor.lock"

    def keep_lost(self) -> int:
        """Where no queue is left, have the folders of its jobs kept; returns how many there are.

        Called before a new queue is begun, which would take them for leftovers.
        """
        if self.database.exists() and self.database.stat().st_size:
            return 0
        lost = sorted(path.name for path in self._jobs.iterdir())
        if lost:
            with atomic_path(self._lost) as partial:
                partial.write_text("\n".join(sorted({*lost, *self._read_lost()})) + "\n")
        return len(lost)

    @property
    def _lost(self) -> Path:
        return self.folder / "jobs.lost"

    def _read_lost(self) -> list[str]:
        return self._lost.read_text().split() if self._lost.exists() else []

    def clip(self, job_id: str) -> Path:
        """The clip of a job."""
        return self._jobs / job_id / CLIP

    def source(self, job_id: str) -> Path:
        """The file that the edit of a job starts from."""
        return self._jobs / job_id / SOURCE

    @contextlib.contextmanager
    def open_inputs(self, job_id: str, _request: JobRequest) -> Iterator[Path]:
        """Yield the folder that holds the clip of a job, and what its edit starts from.

        Args:
            job_id: of the job.
        """
        yield self._jobs / job_id

    def check_room(self, num_bytes: int = 0) -> None:
        """Return if there is room for so many bytes, and for `MIN_ROOM_BYTES` beside them.

        Args:
            num_bytes: that are to be written.

        Raises:
            StorageFullError: there is not.
        """
        stats = os.statvfs(self.folder)
        if stats.f_bavail * stats.f_frsize < MIN_ROOM_BYTES + num_bytes:
            raise StorageFullError()

    def is_full(self) -> bool:
        """Whether not even the state of a job can be written, so that nobody is told by that."""
        stats = os.statvfs(self.folder)
        return stats.f_bavail * stats.f_frsize < FULL_BYTES

    @contextlib.contextmanager
    def receive(self) -> Iterator[Path]:
        """Yield an empty folder for a job, which is removed unless `accept` has moved it.

        Raises:
            StorageFullError: the file system has less than `MIN_ROOM_BYTES`.
        """
        self.check_room()
        folder = Path(tempfile.mkdtemp(dir=self._uploads))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def accept(self, received: Path, job_id: str, request: JobRequest) -> JobRequest:
        """Give a received folder its name; returns the request that is accepted under the id.

        Where the id has a folder already, nothing changes, and its own request is returned.

        Args:
            received: of `receive`, with the clip if there is one.
            job_id: matches `JOB_ID`.
            request: of the job.

        Raises:
            StorageFullError: there is no room for the result.
        """
        self.check_room(count_copied(request, received / CLIP))
        (received / REQUEST).write_text(request.model_dump_json(exclude_unset=True))
        sync([*received.iterdir(), received])
        folder = self._jobs / job_id
        with contextlib.suppress(FileExistsError):
            _rename_if_absent(received, folder)
        sync([self._jobs])
        return JobRequest.model_validate_json((folder / REQUEST).read_text())

    def find_result(self, job_id: str) -> dict[str, Any] | None:
        """Return the description of a job's result; None before there is one."""
        try:
            found: dict[str, Any] = json.loads((self._results(job_id) / RESULT).read_text())
        except FileNotFoundError:
            return None
        return found

    def take_up(self, job_id: str) -> dict[str, Any] | None:
        """Return the description of a result that a killed try has left; None without one."""
        result = self.find_result(job_id)
        if result is not None:  # the try may have been killed before it removed the clip
            self._remove_inputs(job_id)
        return result

    @contextlib.contextmanager
    def partial_results(self, job_id: str) -> Iterator[Path]:
        """Yield an empty folder for the files of a result; what an earlier try left is removed.

        Raises:
            FileNotFoundError: the job was deleted.
        """
        folder = self._jobs / job_id
        for leftover in folder.glob(".partial-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def publish(self, partial: Path, job_id: str, result: dict[str, Any]) -> dict[str, Any]:
        """Make the files of a result appear, unless there is one already; returns the one.

        Args:
            partial: of `partial_results`.
            job_id: of the job.
            result: describes the files.
        """
        (partial / RESULT).write_text(json.dumps(result))
        sync([*partial.iterdir(), partial])
        with contextlib.suppress(FileExistsError):
            _rename_if_absent(partial, self._results(job_id))
        sync([self._jobs / job_id])
        self._remove_inputs(job_id)
        return self.find_result(job_id) or result

    def _remove_inputs(self, job_id: str) -> None:
        for path in (self.clip(job_id), self.source(job_id)):
            path.unlink(missing_ok=True)

    def find_sound(self, job_id: str, name: str | None, _result: dict[str, Any]) -> Path | None:
        """Return a file of a result whose sound can be edited; None if there is none.

        Args:
            job_id: of a job that exists.
            name: of the file, as the caller sent it; None for the first variation.
        """
        return find_sound(self._results(job_id), name)

    def finish(self, job_id: str, _result: dict[str, Any]) -> None:
        """Remove what a job that has succeeded needs no more."""
        self._remove_inputs(job_id)

    def find_file(self, job_id: str, name: str, _result: dict[str, Any]) -> Path:
        """Return the path of a file of a result.

        Args:
            job_id: of a job that exists.
            name: of the file, as the caller sent it; any text.

        Raises:
            NotFoundError: there is no such file.
        """
        path = self._results(job_id) / name
        if not FILE_NAME.fullmatch(name) or not path.is_file():
            raise NotFoundError("this job has no such file; its `result` names them")
        return path

    def remove(self, job_id: str) -> None:
        """Remove the folder of a job, which may be gone already."""
        shutil.rmtree(self._jobs / job_id, ignore_errors=True)

    def remove_old_copies(self) -> None:
        """There are none: the files lie here."""

    def remove_leftovers(self, known: Iterable[str]) -> None:
        """Remove old folders that no job has: of uploads that broke off, and of deleted jobs.

        Those of a queue that is gone are kept.

        Args:
            known: the ids of all jobs.
        """
        kept = {*known, *self._read_lost()}
        before = time.time() - LEFTOVER_SECONDS
        for folder in (*self._uploads.iterdir(), *self._jobs.iterdir()):
            with contextlib.suppress(FileNotFoundError):
                if folder.name not in kept and folder.stat().st_mtime < before:
                    shutil.rmtree(folder, ignore_errors=True)

    def _results(self, job_id: str) -> Path:
        return self._jobs / job_id / "results"


def count_copied(request: JobRequest, clip: Path) -> int:
    """Return the bytes of the pictures in a result: each variation has a copy.

    Args:
        request: of a job.
        clip: of the job; absent if it has none.
    """
    copies = 0 if request.options.format in AUDIO_FORMATS else request.options.num_variations
    return copies * clip.stat().st_size if clip.exists() else 0


def sync(paths: Iterable[Path]) -> None:
    """Wait until files and folders are on the disk, so that a power cut does not undo them.

    Args:
        paths: of files and folders that exist.
    """
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _rename_if_absent(source: Path, target: Path) -> None:
    """Rename a folder that holds a file.

    Raises:
        FileExistsError: the target exists and holds a file.
    """
    try:
        source.rename(target)
    except OSError as error:  # the kernel answers ENOTEMPTY or EEXIST, by the file system
        if target.is_dir():
            raise FileExistsError(str(target)) from error
        raise

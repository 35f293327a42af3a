"""The files of jobs that several machines share: in a bucket of S3.

<FOLEY_RESULTS>/<id>/
    request.json    what was accepted; created once, or not at all
    inputs/<digest of the request>/
                    clip, source: until the job has succeeded
    tries/<random>/ the files of a try; the queue says which one is the result

<FOLEY_JOBS_DIR>/   of each machine
    uploads/, clips/, executor.lock, jobs.secret: as in `runners.durable.files`
    fetched/<id>/   results that were asked for lately
"""

import contextlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog

from foley.atomic import atomic_path
from foley.errors import NotFoundError, NotReadyError, OutputError, VideoDecodeError
from foley.storage import Bucket
from runners.durable.files import FILE_NAME, REQUEST, JobFiles, count_copied
from runners.durable.request import JobRequest
from runners.handoff import CLIP, SOURCE
from runners.jobs.results import find_sound

log = structlog.get_logger(__name__)

RETRY_SECONDS = 10.0
KEEP_FETCHED_SECONDS = 600.0
TRY = "try"  # key of a result's description that names the folder of its files


class BucketFiles:
    """The files of all jobs of a queue. Its methods have the errors of `JobFiles`.

    Each that calls the bucket raises NotReadyError where that does not answer, or refuses.

    Args:
        address: s3://bucket/prefix.
        local: of this machine.
    """

    def __init__(self, address: str, local: JobFiles) -> None:
        self._bucket = Bucket(address, retry_seconds=RETRY_SECONDS)
        self._fetched = local.folder / "fetched"
        self._fetched.mkdir(mode=0o700, exist_ok=True)
        self.folder = local.folder
        self.executor_lock = local.executor_lock
        self.check_room = local.check_room
        self.receive = local.receive
        self.remove_leftovers = local.remove_leftovers  # of uploads that broke off

    def is_full(self) -> bool:
        """Whether the state of a job cannot be written. It is in the database, and can."""
        return False

    def accept(self, received: Path, job_id: str, request: JobRequest) -> JobRequest:
        """See `JobFiles.accept`."""
        clip = received / CLIP
        self.check_room(count_copied(request, clip))
        name = f"{job_id}/{REQUEST}"
        with translate_errors():
            for path in (clip, received / SOURCE):
                if path.exists():  # under a name that no other request uses
                    self._bucket.put(
                        path, f"{_name_inputs(job_id, request)}/{path.name}", replace=True
                    )
            self._bucket.create(name, request.model_dump_json(exclude_unset=True).encode())
            return JobRequest.model_validate_json(self._bucket.read(name))

    @contextlib.contextmanager
    def open_inputs(self, job_id: str, request: JobRequest) -> Iterator[Path]:
        """See `JobFiles.open_inputs`."""
        self.check_room()
        with tempfile.TemporaryDirectory(prefix=".inputs-", dir=self._fetched) as name:
            folder = Path(name)
            with translate_errors():
                for stored in self._bucket.list_sizes(_name_inputs(job_id, request)):
                    self._bucket.fetch(stored, folder / Path(stored).name)
            yield folder

    def take_up(self, _job_id: str) -> dict[str, Any] | None:
        """See `JobFiles.take_up`. The queue has each result that is to be taken up."""
        return None

    @contextlib.contextmanager
    def partial_results(self, job_id: str) -> Iterator[Path]:
        """See `JobFiles.partial_results`."""
        with tempfile.TemporaryDirectory(prefix=f".{job_id}-", dir=self._fetched) as folder:
            yield Path(folder)

    def publish(self, partial: Path, job_id: str, result: dict[str, Any]) -> dict[str, Any]:
        """Store the files of a try. They are the result once the queue has what is returned.

        Args:
            partial: of `partial_results`.
            job_id: of the job.
            result: describes the files.
        """
        folder = f"{job_id}/tries/{secrets.token_hex(8)}"
        with translate_errors():
            for path in sorted(partial.iterdir()):
                self._bucket.put(path, f"{folder}/{path.name}", replace=True)
        return {**result, TRY: folder}

    def finish(self, job_id: str, result: dict[str, Any]) -> None:
        """Remove what a job that has succeeded needs no more.

        Args:
            job_id: of the job.
            result: that the queue has.
        """
        with translate_errors():
            self._bucket.remove_all(f"{job_id}/tries", without=f"{result[TRY]}/")
            self._bucket.remove_all(f"{job_id}/inputs")

    def find_sound(self, job_id: str, name: str | None, result: dict[str, Any]) -> Path | None:
        """See `JobFiles.find_sound`."""
        for file in result["files"]:
            if name in (None, file["name"]):
                self.find_file(job_id, file["name"], result)
        return find_sound(self._fetched / job_id, name)

    def find_file(self, job_id: str, name: str, result: dict[str, Any]) -> Path:
        """See `JobFiles.find_file`. It is fetched, and kept here for `KEEP_FETCHED_SECONDS`."""
        described = {file["name"]: file for file in result["files"]}
        if not FILE_NAME.fullmatch(name) or name not in described:
            raise NotFoundError("this job has no such file; its `result` names them")
        path = self._fetched / job_id / name
        try:
            os.utime(path)
        except FileNotFoundError:
            self.check_room(described[name]["bytes"])
            path.parent.mkdir(mode=0o700, exist_ok=True)
            with atomic_path(path) as partial, translate_errors():
                self._bucket.fetch(f"{result[TRY]}/{name}", partial)
        return path

    def remove(self, job_id: str) -> None:
        """See `JobFiles.remove`."""
        shutil.rmtree(self._fetched / job_id, ignore_errors=True)
        with translate_errors():
            self._bucket.remove_all(job_id)

    def remove_old_copies(self) -> None:
        """Remove what was fetched long ago, and what a killed process left."""
        before = time.time() - KEEP_FETCHED_SECONDS
        for folder in self._fetched.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if all(path.stat().st_mtime < before for path in (folder, *folder.iterdir())):
                    shutil.rmtree(folder, ignore_errors=True)


AnyFiles = JobFiles | BucketFiles


def _name_inputs(job_id: str, request: JobRequest) -> str:
    return f"{job_id}/inputs/{request.digest}"


@contextlib.contextmanager
def translate_errors() -> Iterator[None]:
    """Turn errors of a bucket into those of a service that is not ready, which pass.

    Raises:
        NotReadyError: the bucket does not answer, or refuses.
    """
    try:
        yield
    except (OutputError, VideoDecodeError) as error:
        log.warning("bucket_away", reason=str(error))
        raise NotReadyError(
            "the bucket of the job does not answer or refuses; the service tries again"
        ) from error

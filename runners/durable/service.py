"""The jobs of one API process: accepts them, and keeps an executor running."""

import hashlib
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import structlog
from sqlalchemy.exc import SQLAlchemyError

from foley.errors import (
    BusyError,
    ConfigError,
    ConflictError,
    NotFoundError,
    ParameterError,
    StorageFullError,
)
from foley.storage import require_library
from runners.buckets import check_prefix
from runners.durable.executor_settings import ExecutorSettings
from runners.durable.files import JobFiles
from runners.durable.job import Job
from runners.durable.launcher import ExecutorLauncher
from runners.durable.queue import JobQueue
from runners.durable.receivers import WebhookSettings
from runners.durable.request import JobRequest
from runners.durable.uploads import UploadStore
from runners.handoff import CLIP
from runners.settings import Settings
from runners.storage import is_storage_full

log = structlog.get_logger(__name__)


class JobService:
    """Accepts jobs and tells about them.

    Args:
        settings: with a folder for jobs.

    Attributes:
        files: of the jobs.
        uploads: that jobs may name.
        queue: of the jobs.
        keep_seconds: how long ended jobs are kept.
        webhooks: how they are sent.
    """

    def __init__(self, settings: Settings) -> None:
        assert settings.jobs_dir is not None
        self.webhooks = WebhookSettings(
            secrets=settings.webhook_secrets, networks=settings.private_networks
        )
        executor = ExecutorSettings(
            folder=settings.jobs_dir.absolute(),
            keep_seconds=settings.keep_jobs_seconds,
            webhooks=self.webhooks,
            database_url=settings.jobs_database,
            results=settings.results,
        )
        try:
            self.files = executor.open_files()
            self.uploads = UploadStore(
                settings.jobs_dir,
                max_bytes=settings.max_uploads_bytes,
                key_share=settings.key_share,
            )
            if isinstance(self.files, JobFiles) and (num_lost := self.files.keep_lost()):
                _tell_lost(self.files.database, num_lost)
            self.queue = JobQueue(
                executor.find_database(),
                max_waiting=settings.max_jobs,
                key_share=settings.key_share,
            )
        except OSError as error:
            raise ConfigError(f"FOLEY_JOBS_DIR: {error}") from error
        self.keep_seconds = settings.keep_jobs_seconds
        self._buckets = settings.writable_buckets
        if self._buckets:
            require_library("FOLEY_OUTPUT_BUCKETS")
        self._launcher = ExecutorLauncher(
            self.files.executor_lock,
            # Jobs must not hold all places, or callers who wait would be refused.
            num_running=max(1, settings.max_concurrency // 2) if settings.has_model else 0,
            settings=executor,
        )

    def start(self) -> None:
        """Keep an executor running; needs the event loop."""
        self._launcher.start()

    def close(self) -> None:
        """End the executor and close the queue."""
        self._launcher.close()
        self.queue.close()

    def check_room(self, owner: str, caller: str, idempotency_key: str | None) -> None:
        """Return if a further job may wait; the repetition of one needs no room.

        Args:
            owner: see `runners.auth.ApiKeys.owner_of`.
            caller: whose share it takes, see `runners.auth.caller_of`.
            idempotency_key: of the request; None for none.

        Raises:
            BusyError: as many wait as may, of all callers or of this one.
        """
        try:
            self.queue.check_room(caller)
        except BusyError:
            if idempotency_key is None or not self._find(owner, _make_id(owner, idempotency_key)):
                raise

    def accept(
        self,
        owner: str,
        received: Path,
        request: JobRequest,
        *,
        caller: str | None = None,
        upload: str | None,
        idempotency_key: str | None,
        root: str,
    ) -> Job:
        """Accept a job. When this returns, the job is finished whatever dies.

        Args:
            owner: see `runners.auth.ApiKeys.owner_of`.
            received: of `JobFiles.receive`.
            request: with nothing left to chance.
            caller: whose turn it takes, see `runners.auth.caller_of`; the owner's by default.
            upload: id of the upload that is its clip; None without one.
            idempotency_key: the same request under the same key is the same job; None for none.
            root: path below which the caller reached the service.

        Raises:
            NotFoundError: there is no such upload, or it belongs to another owner.
            ConflictError: the upload is not complete.
            ParameterError: the webhook cannot be sent, the time to start by has passed, or the
                output lies in no bucket that the service writes to.
            StorageFullError: there is no room for the result.
            ConflictError: another request came under this key.
        """
        receiver = request.webhook_url and self.webhooks.check_url(request.webhook_url)
        if request.output is not None:
            check_prefix("output", request.output, self._buckets, "FOLEY_OUTPUT_BUCKETS")
        job_id = uuid.uuid4().hex
        if idempotency_key is not None:
            job_id = _make_id(owner, idempotency_key)
            if (known := self._find(owner, job_id)) is not None:
                _check_same(known, request)
                # The job has its clip already. What was uploaded again would lie there for a day.
                if upload is not None and self.uploads.find_complete(owner, upload) is not None:
                    self.uploads.remove(upload)
                return known
        if request.start_by is not None and request.start_by <= datetime.now(UTC):
            raise ParameterError(
                f"start_by: {request.start_by.isoformat()} has passed; give a later time"
            )
        if upload is not None:
            self.uploads.link(owner, upload, received / CLIP)
        accepted = self.files.accept(received, job_id, request)
        # It is that of another call under this key, if that got here first or was cut off here.
        _check_same(accepted, request)
        if receiver:
            self.queue.webhooks.add(
                job_id, owner, str(receiver), host=receiver.host or "", root=root
            )
        if accepted.start_by is not None:
            self.queue.starts.add(job_id, accepted.start_by)
        job = self.queue.submit(owner, job_id, accepted, caller=caller)
        if upload is not None:
            self.uploads.remove(upload)
        return job

    def find(self, owner: str, job_id: str) -> Job:
        """Return a job. A running one tells if it waits for room on the disk.

        Args:
            owner: of the job.
            job_id: as the caller sent it; any text.

        Raises:
            NotFoundError: there is none, or it belongs to another owner.
        """
        job = self.queue.find(owner, job_id)
        if job.state == "running" and self.files.is_full():
            full = StorageFullError("the service has no room for files; the job goes on later")
            return replace(job, progress={"code": full.code, "message": str(full)})
        return job

    def find_sound(self, owner: str, job_id: str, name: str | None) -> Path | None:
        """Return a file of a job whose sound can be edited; None if there is none.

        Args:
            owner: of the job.
            job_id: as the caller sent it; any text.
            name: of the file; None for the first variation.
        """
        job = self._find(owner, job_id)
        if job is None or job.result is None or job.output is not None:
            return None
        return self.files.find_sound(job.id, name, job.result)

    def find_file(self, job: Job, name: str) -> Path:
        """Return the path of a file of a job's result.

        Args:
            job: that has a result.
            name: of the file, as the caller sent it; any text.

        Raises:
            NotFoundError: there is no such file.
            ConflictError: the files are in a bucket of the caller's choice.
            NotReadyError: the bucket of the job does not answer.
        """
        assert job.result is not None
        if job.output is not None:
            raise ConflictError(
                f"the files of this job were written to {job.output}, as its output asked; read "
                "them there"
            )
        return self.files.find_file(job.id, name, job.result)

    def delete(self, owner: str, job_id: str) -> None:
        """Forget a job that has ended, and remove its files.

        Raises:
            NotFoundError: there is none, or it belongs to another owner.
            ConflictError: it waits or runs.
        """
        try:
            self.queue.delete(owner, job_id)
        except SQLAlchemyError as error:
            if not is_storage_full(error):
                raise
            # The queue can note nothing more. What the caller gives up makes room for that.
            self.files.remove(job_id)
            self.queue.delete(owner, job_id)
        self.files.remove(job_id)

    def _find(self, owner: str, job_id: str) -> Job | None:
        try:
            return self.queue.find(owner, job_id)
        except NotFoundError:
            return None


def _make_id(owner: str, idempotency_key: str) -> str:
    return hashlib.sha256(f"{owner}/{idempotency_key}".encode()).hexdigest()[:32]


def _tell_lost(database: Path, num_lost: int) -> None:
    jobs = "1 job" if num_lost == 1 else f"{num_lost} jobs"
    log.warning(
        "jobs_lost",
        message=f"{database} is gone, and the files of {jobs} are in {database.parent / 'jobs'}. "
        "They are left alone, and a new queue is begun, which does not know them. Put back a copy "
        "of the file while the service is stopped, or remove the folders that jobs.lost names",
    )


def _check_same(known: Job | JobRequest, request: JobRequest) -> None:
    # A job that has taken an upload is asked for by the id of one that is gone.
    by_upload = request.upload_digest is not None and request.upload_digest in (
        known.upload_digest,
        known.digest,  # as services wrote it before they knew what is in an upload
    )
    if known.digest != request.digest and not by_upload:
        raise ConflictError(
            "Idempotency-Key: another request came with this key before; use a new key for a new "
            "request"
        )

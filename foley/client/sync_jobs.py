"""The durable jobs of the blocking client."""

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Protocol, Unpack

import httpx

from foley.client.jobs import (
    FAILED_WEBHOOKS_PATH,
    JOBS_PATH,
    JobEvents,
    JobState,
    PreparedJob,
    RemoteJob,
    RemoteJobList,
    format_time,
    get_job_path,
    get_page,
    get_resend_path,
    pair_job_files,
)
from foley.client.request import Clip, RequestOptions
from foley.client.response import parse_body
from foley.client.results import RemoteFile
from foley.client.transport import RETRYABLE_JOB_ERRORS, RetryPolicy
from foley.client.uploads import RETRYABLE_UPLOAD_ERRORS, PiecewiseUpload
from foley.client.webhooks import RemoteWebhook, RemoteWebhookList
from foley.errors import NotFoundError


class _Send(Protocol):
    def __call__(
        self, method: str, path: str, **content: object
    ) -> AbstractContextManager[httpx.Response]: ...


class Jobs:
    """The durable jobs of a service: they are finished even if the service is restarted.

    Args:
        send: sends a request of the client.
        download: of the client.
    """

    def __init__(self, send: _Send, download: Callable[[RemoteFile, Path], Path]) -> None:
        self._send = send
        self._download = download

    def submit(
        self,
        clip: Clip | None,
        *,
        idempotency_key: str | None = None,
        webhook_url: str | None = None,
        start_by: datetime | None = None,
        output: str | None = None,
        max_wait_seconds: float = 0.0,
        **options: Unpack[RequestOptions],
    ) -> RemoteJob:
        """Submit a job, and return it when the service has accepted it.

        Args:
            clip: path of the video, or its bytes; None with a `clip_url`, or with
                `duration_seconds` and a prompt. A large one is uploaded in pieces, and goes on
                after a broken connection.
            idempotency_key: the same request under the same key is the same job.
            webhook_url: address that is told when the job has ended; see `verify_webhook`.
            start_by: the job fails with NotStartedError if it is not begun by then; of the local
                zone, if it has none.
            output: s3://bucket/prefix that gets the files, where the service allows it.
            max_wait_seconds: how long to retry while the service is busy or cannot be reached.
            options: as for `FoleyClient.generate`. `priority` is bulk by default.

        Raises:
            ConflictError: another request came with this key before.
            NotFoundError: the service takes no jobs.
            FoleyError: as for `FoleyClient.generate`.
        """
        of_the_job = {"webhook_url": webhook_url, "start_by": format_time(start_by)}
        of_the_job["output"] = output
        prepared = PreparedJob(clip, options, idempotency_key, of_the_job)
        if (upload := prepared.begin_upload()) is not None:
            # Behind several machines each piece may reach another one, which does not know it.
            with contextlib.suppress(NotFoundError):
                self._upload(upload, max_wait_seconds)
                prepared.take_upload(upload)
        retries = RetryPolicy(max_wait_seconds)
        while True:
            try:
                with prepared.open_form() as form:
                    form["headers"] = prepared.headers
                    with self._send("POST", JOBS_PATH, **form) as answer:
                        return parse_body(RemoteJob, answer.read())
            except RETRYABLE_JOB_ERRORS as error:
                time.sleep(retries.compute_delay(error))

    def _upload(self, upload: PiecewiseUpload, max_wait_seconds: float) -> None:
        """Send a clip in pieces; go on after a broken connection where the service asks for it."""
        retries = RetryPolicy(max_wait_seconds)
        while not upload.is_complete:
            try:
                with self._send(**upload.begin()) as answer:
                    upload.take(answer.headers)
                retries = RetryPolicy(max_wait_seconds)
            except RETRYABLE_UPLOAD_ERRORS as error:
                upload.lose()
                time.sleep(retries.compute_delay(error))

    def get(self, job_id: str) -> RemoteJob:
        """Return a job.

        Raises:
            NotFoundError: there is none, or it belongs to another key.
        """
        with self._send("GET", get_job_path(job_id)) as response:
            return parse_body(RemoteJob, response.read())

    def list(
        self, state: JobState | None = None, *, limit: int = 20, offset: int = 0
    ) -> tuple[RemoteJob, ...]:
        """Return jobs of this key, the newest first.

        Args:
            state: of the jobs; None for all.
            limit: how many at most, 1 to 100.
            offset: how many of the newest to leave out.
        """
        page = get_page(state, limit, offset)
        with self._send("GET", JOBS_PATH, params=page) as response:
            return parse_body(RemoteJobList, response.read()).jobs

    def watch(self, job_id: str, *, max_wait_seconds: float = 300.0) -> Iterator[RemoteJob]:
        """Yield a job whenever it changes, until it has ended.

        Args:
            job_id: of the job.
            max_wait_seconds: for how long in a row the service may be out of reach.

        Raises:
            NotFoundError: there is none, or it belongs to another key.
            ConnectionFailedError: the service is out of reach for longer.
        """
        events = JobEvents()
        retries = RetryPolicy(max_wait_seconds)
        while events.job is None or not events.job.has_ended:
            try:
                path, headers = get_job_path(job_id, "events"), events.begin()
                with self._send("GET", path, headers=headers) as response:
                    for chunk in response.iter_bytes():
                        retries = RetryPolicy(max_wait_seconds)
                        yield from events.feed(chunk)
            except RETRYABLE_JOB_ERRORS as error:
                time.sleep(retries.compute_delay(error))

    def cancel(self, job_id: str) -> RemoteJob:
        """Cancel a job that has not ended, and return it.

        Raises:
            NotFoundError: there is none, or it belongs to another key.
        """
        with self._send("POST", get_job_path(job_id, "cancel")) as response:
            return parse_body(RemoteJob, response.read())

    def delete(self, job_id: str) -> None:
        """Remove a job that has ended, with its files.

        Raises:
            NotFoundError: there is none, or it belongs to another key.
            ConflictError: it has not ended.
        """
        with self._send("DELETE", get_job_path(job_id)) as response:
            response.read()

    def fetch(self, job_id: str, destination: Path | str) -> tuple[Path, ...]:
        """Write the files of a job that has succeeded; return their paths.

        Args:
            job_id: of the job.
            destination: folder for foley-1.mp4 and so on; created if it is missing.

        Raises:
            NotFoundError: there is no such job, or it belongs to another key.
            FoleyError: the job has failed, with its error, or has no result yet.
            OutputError: a file cannot be written.
        """
        pairs = pair_job_files(self.get(job_id), Path(destination))
        return tuple(self._download(file, path) for file, path in pairs)

    def list_failed_webhooks(
        self, *, limit: int = 20, offset: int = 0
    ) -> tuple[RemoteWebhook, ...]:
        """Return webhooks of this key that were given up, the latest first.

        Args:
            limit: how many at most, 1 to 100.
            offset: how many of the latest to leave out.
        """
        page = get_page(None, limit, offset)
        with self._send("GET", FAILED_WEBHOOKS_PATH, params=page) as response:
            return parse_body(RemoteWebhookList, response.read()).webhooks

    def resend_webhook(self, job_id: str) -> RemoteWebhook:
        """Send the webhook of a job that has ended again, and return it.

        Raises:
            NotFoundError: it has none, or there is no such job, or it belongs to another key.
            ConflictError: the job has not ended.
        """
        with self._send("POST", get_resend_path(job_id)) as response:
            return parse_body(RemoteWebhook, response.read())

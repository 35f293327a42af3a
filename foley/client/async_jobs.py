"""The durable jobs of the client for asyncio. `foley.client.sync_jobs` documents the methods."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
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
    ) -> AbstractAsyncContextManager[httpx.Response]: ...


class AsyncJobs:
    """The durable jobs of a service: they are finished even if the service is restarted.

    Args:
        send: sends a request of the client.
        download: of the client.
    """

    def __init__(
        self, send: _Send, download: Callable[[RemoteFile, Path], Awaitable[Path]]
    ) -> None:
        self._send = send
        self._download = download

    async def submit(
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
        """See `Jobs.submit`."""
        of_the_job = {"webhook_url": webhook_url, "start_by": format_time(start_by)}
        of_the_job["output"] = output
        prepared = PreparedJob(clip, options, idempotency_key, of_the_job)
        if (upload := prepared.begin_upload()) is not None:
            # Behind several machines each piece may reach another one, which does not know it.
            with contextlib.suppress(NotFoundError):
                await self._upload(upload, max_wait_seconds)
                prepared.take_upload(upload)
        retries = RetryPolicy(max_wait_seconds)
        while True:
            try:
                with prepared.open_form() as form:
                    form["headers"] = prepared.headers
                    async with self._send("POST", JOBS_PATH, **form) as answer:
                        return parse_body(RemoteJob, await answer.aread())
            except RETRYABLE_JOB_ERRORS as error:
                await asyncio.sleep(retries.compute_delay(error))

    async def _upload(self, upload: PiecewiseUpload, max_wait_seconds: float) -> None:
        """Send a clip in pieces; go on after a broken connection where the service asks for it."""
        retries = RetryPolicy(max_wait_seconds)
        while not upload.is_complete:
            try:
                async with self._send(**upload.begin()) as answer:
                    upload.take(answer.headers)
                retries = RetryPolicy(max_wait_seconds)
            except RETRYABLE_UPLOAD_ERRORS as error:
                upload.lose()
                await asyncio.sleep(retries.compute_delay(error))

    async def get(self, job_id: str) -> RemoteJob:
        """See `Jobs.get`."""
        async with self._send("GET", get_job_path(job_id)) as response:
            return parse_body(RemoteJob, await response.aread())

    async def list(
        self, state: JobState | None = None, *, limit: int = 20, offset: int = 0
    ) -> tuple[RemoteJob, ...]:
        """See `Jobs.list`."""
        page = get_page(state, limit, offset)
        async with self._send("GET", JOBS_PATH, params=page) as response:
            return parse_body(RemoteJobList, await response.aread()).jobs

    async def watch(
        self, job_id: str, *, max_wait_seconds: float = 300.0
    ) -> AsyncIterator[RemoteJob]:
        """See `Jobs.watch`."""
        events = JobEvents()
        retries = RetryPolicy(max_wait_seconds)
        while events.job is None or not events.job.has_ended:
            try:
                path, headers = get_job_path(job_id, "events"), events.begin()
                async with self._send("GET", path, headers=headers) as response:
                    async for chunk in response.aiter_bytes():
                        retries = RetryPolicy(max_wait_seconds)
                        for job in events.feed(chunk):
                            yield job
            except RETRYABLE_JOB_ERRORS as error:
                await asyncio.sleep(retries.compute_delay(error))

    async def cancel(self, job_id: str) -> RemoteJob:
        """See `Jobs.cancel`."""
        async with self._send("POST", get_job_path(job_id, "cancel")) as response:
            return parse_body(RemoteJob, await response.aread())

    async def delete(self, job_id: str) -> None:
        """See `Jobs.delete`."""
        async with self._send("DELETE", get_job_path(job_id)) as response:
            await response.aread()

    async def fetch(self, job_id: str, destination: Path | str) -> tuple[Path, ...]:
        """See `Jobs.fetch`."""
        pairs = pair_job_files(await self.get(job_id), Path(destination))
        return tuple([await self._download(file, path) for file, path in pairs])

    async def list_failed_webhooks(
        self, *, limit: int = 20, offset: int = 0
    ) -> tuple[RemoteWebhook, ...]:
        """See `Jobs.list_failed_webhooks`."""
        page = get_page(None, limit, offset)
        async with self._send("GET", FAILED_WEBHOOKS_PATH, params=page) as response:
            return parse_body(RemoteWebhookList, await response.aread()).webhooks

    async def resend_webhook(self, job_id: str) -> RemoteWebhook:
        """See `Jobs.resend_webhook`."""
        async with self._send("POST", get_resend_path(job_id)) as response:
            return parse_body(RemoteWebhook, await response.aread())

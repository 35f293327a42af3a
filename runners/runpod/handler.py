"""The queue worker: takes jobs from RunPod's queue and sends them to the service beside it.

    platform -- runpod SDK --> QueueWorker.handle --> AsyncFoleyClient -- loopback HTTP --> service

The SDK takes as many jobs as the service accepts at once, and the service batches them. If a job is
cancelled on the platform, the SDK cancels its task here, which cancels its request to the service.
"""

import asyncio
import base64
import binascii
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import runpod.serverless
import structlog
from runpod.serverless.modules.rp_logger import RunPodLogger

from foley.client import AsyncFoleyClient, RemoteGeneration, RemoteUpdate
from foley.errors import (
    ConnectionFailedError,
    FoleyError,
    ParameterError,
    UploadTooLargeError,
)
from foley.request import is_address
from runners.fetch import Fetcher
from runners.jobs.clip_url import decode_data_uri
from runners.jobs.scratch import Scratch
from runners.logs import configure_logging
from runners.runpod.delivery import BASE64_RATIO, check_bucket, embed_files, upload_files
from runners.runpod.job_input import JobInput, parse_job_input
from runners.runpod.service_process import ServiceProcess
from runners.settings import Settings, load_settings

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.25
PROGRESS_SECONDS = 1.0  # the SDK opens a connection for each update

QueueJob = dict[str, Any]  # "id" and "input"
ReportProgress = Callable[[QueueJob, dict[str, Any]], None]


class QueueWorker:
    """Runs queue jobs.

    Args:
        settings: limits and the bucket's name.
        client: a client of the service.
        fetcher: downloads clips that are given as URLs.
        report_progress: sends progress to the platform.
    """

    def __init__(
        self,
        settings: Settings,
        client: AsyncFoleyClient,
        fetcher: Fetcher,
        report_progress: ReportProgress,
    ) -> None:
        self._settings = settings
        self._client = client
        self._fetcher = fetcher
        self._report_progress = report_progress
        self._scratch = Scratch(settings.scratch_root)

    def close(self) -> None:
        """Remove all files."""
        self._scratch.close()

    def limit_concurrency(self, _current: int) -> int:
        """Return how many jobs to take at once: as many as the service runs at once.

        The number is constant, because the SDK takes no job while it changes the number and waits
        for the running ones.

        Args:
            _current: the number until now, which the SDK passes.
        """
        return self._settings.max_concurrency

    async def handle(self, job: QueueJob) -> dict[str, Any]:
        """Return the output of a job, or `{"error": "code: message"}`.

        Args:
            job: as the SDK received it.
        """
        try:
            return await self._run(job)
        except FoleyError as error:
            log.info("job_refused", job=job["id"], code=error.code)
            return {"error": f"{error.code}: {error}"}
        except Exception:  # the outermost boundary: the SDK would send the traceback to the caller
            log.exception("job_failed", job=job["id"])
            return {"error": "internal: something went wrong inside the worker"}

    async def _run(self, job: QueueJob) -> dict[str, Any]:
        job_input = parse_job_input(job.get("input"))
        bucket = self._choose_bucket(job_input)
        with self._scratch.workspace() as folder:
            clip = folder / "clip" if job_input.has_clip else None
            if clip is not None:
                await self._store_clip(job_input, clip)
            options = job_input.get_service_options()
            if job_input.edit is not None and is_address(job_input.edit.source):
                options["edit"]["source"] = await self._store_source(job_input.edit.source, folder)
            await wait_until_ready(self._client)  # the service restarts a runner that was lost
            result = await self._client.generate(
                clip,
                on_update=_ProgressThrottle(lambda update: self._report_progress(job, update)),
                max_wait_seconds=self._settings.request_timeout_seconds,
                **options,
            )
            files = await self._deliver(job, result, bucket, folder)
        description = result.model_dump(exclude={"files", "saved", "kept_seconds"}, mode="json")
        return {**description, "files": files}

    def _choose_bucket(self, job_input: JobInput) -> str | None:
        """Return the bucket for the job's files; None returns them as base64."""
        if job_input.output == "bucket" and self._settings.bucket is None:
            raise ParameterError(
                "output: this worker has no bucket; use base64, or have FOLEY_BUCKET set"
            )
        return None if job_input.output == "base64" else self._settings.bucket

    async def _store_clip(self, job_input: JobInput, clip: Path) -> None:
        if job_input.clip_url is not None:
            await self._fetcher.fetch(job_input.clip_url, clip)
            return
        assert job_input.clip_base64 is not None
        content = _decode_clip(job_input.clip_base64, self._settings.max_upload_bytes)
        await asyncio.to_thread(clip.write_bytes, content)

    async def _store_source(self, address: str, folder: Path) -> Path:
        """Return the path of the file that an edit starts from, once it is stored."""
        path = folder / "source"
        if address.startswith("data:"):
            content = decode_data_uri(address, int(self._settings.max_upload_bytes), "edit.source")
            await asyncio.to_thread(path.write_bytes, content)
        else:
            await self._fetcher.fetch(address, path)
        return path

    async def _deliver(
        self, job: QueueJob, result: RemoteGeneration, bucket: str | None, folder: Path
    ) -> list[dict[str, Any]]:
        if bucket is None:
            return await embed_files(self._client, result, self._settings.max_result_bytes)
        return await upload_files(
            self._client, result, bucket=bucket, prefix=str(job["id"]), folder=folder
        )


def _decode_clip(text: str, max_bytes: int) -> bytes:
    """Return the clip that base64 or a data: URI holds."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    if len(text) > max_bytes * BASE64_RATIO + 4:
        raise UploadTooLargeError(f"the clip is larger than the limit of {max_bytes} bytes")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ParameterError(f"clip_base64: is not base64 ({error})") from error


class _ProgressThrottle:
    """Reports each new stage at once, and at most one update a second within a stage."""

    def __init__(self, report: Callable[[dict[str, Any]], None]) -> None:
        self._report = report
        self._stage = ""
        self._next_seconds = 0.0

    def __call__(self, update: RemoteUpdate) -> None:
        now = time.monotonic()
        if update.stage == self._stage and now < self._next_seconds:
            return
        self._stage, self._next_seconds = update.stage, now + PROGRESS_SECONDS
        self._report(update.model_dump(exclude_none=True, mode="json"))


async def wait_until_ready(client: AsyncFoleyClient) -> None:
    """Return when the service is ready. `ServiceProcess` ends this process if it never listens.

    Args:
        client: a client of the service.

    Raises:
        ModelFailedError: the model could not be loaded.
    """
    while True:
        with contextlib.suppress(ConnectionFailedError):
            if await client.is_ready():
                return
        await asyncio.sleep(POLL_SECONDS)


def main() -> None:
    """Run queue jobs until the platform stops this process."""
    settings = load_settings()
    configure_logging(settings.log_level)
    RunPodLogger().set_level("INFO")  # at DEBUG the SDK logs whole jobs with clips and prompts
    service = ServiceProcess()
    key = next(iter(settings.keys), None)
    worker = QueueWorker(
        settings,
        AsyncFoleyClient(service.url, api_key=key),
        Fetcher(
            max_bytes=settings.max_upload_bytes, timeout_seconds=settings.fetch_timeout_seconds
        ),
        runpod.serverless.progress_update,
    )

    async def check_service() -> None:
        # A client of its own: the SDK runs the checks in another event loop, and connections
        # belong to one loop.
        async with AsyncFoleyClient(service.url, api_key=key) as client:
            await wait_until_ready(client)

    def check_bucket_settings() -> None:
        check_bucket(settings.bucket)

    runpod.serverless.register_fitness_check(check_bucket_settings)
    runpod.serverless.register_fitness_check(check_service)
    try:
        runpod.serverless.start(
            {"handler": worker.handle, "concurrency_modifier": worker.limit_concurrency}
        )
    finally:
        service.stop()
        worker.close()

"""A RunPod queue worker: takes jobs from the platform and has the service beside it fill them.

    platform -- runpod SDK --> Worker.handle --> AsyncFoleyClient -- loopback HTTP --> service

The SDK takes as many jobs as the service accepts at once, and the service batches them. A job that
is cancelled there ends its task here, which ends its request at the service's next step.
"""

import asyncio
import base64
import binascii
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import runpod.serverless
import structlog
from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]
from pydantic import Field, ValidationError, model_validator
from runpod.serverless.modules.rp_logger import RunPodLogger
from runpod.serverless.utils import rp_upload

from foley.client import AsyncFoleyClient, RemoteFile, RemoteGeneration, RemoteUpdate
from foley.errors import (
    ConnectionFailedError,
    FoleyError,
    OutputError,
    ParameterError,
    ServerError,
    UploadTooLargeError,
)
from foley.request import describe_validation_error
from runners.jobs.job import GenerationOptions
from runners.jobs.scratch import Scratch
from runners.logs import configure_logging
from runners.process import free_port
from runners.runpod.fetch import Fetcher
from runners.settings import Settings, load_settings

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.25
PROGRESS_SECONDS = 1.0  # the SDK opens a connection for each update
STOP_SECONDS = 40.0
BASE64_RATIO = 4 / 3
ADDRESS_SECONDS = 7 * 24 * 3600  # the most that S3 signs for

Job = dict[str, Any]


class JobInput(GenerationOptions):
    """What a job's `input` may hold: the clip one way or the other, and the service's options."""

    clip_url: Annotated[str | None, Field(description="https:// address of the clip.")] = None
    clip_base64: Annotated[
        str | None, Field(description="The clip itself; a data: URI is understood too.")
    ] = None
    output: Annotated[
        Literal["auto", "base64", "bucket"],
        Field(description="How results come back; auto: by the bucket where there is one."),
    ] = "auto"

    @model_validator(mode="after")
    def _one_clip(self) -> "JobInput":
        if (self.clip_url is None) == (self.clip_base64 is None):
            raise ValueError("give the clip as clip_url or as clip_base64, and not as both")
        return self

    @classmethod
    def read(cls, given: object) -> "JobInput":
        """The input of a job.

        Raises:
            ParameterError: a field is unknown, missing or out of bounds.
        """
        if not isinstance(given, dict):
            raise ParameterError(f"input: must be an object, got {type(given).__name__}")
        try:
            return cls(**given)
        except ValidationError as error:
            raise ParameterError(describe_validation_error(error)) from error

    def options(self) -> dict[str, Any]:
        """What is the service's of it."""
        own = {"clip_url", "clip_base64", "output"}
        return self.model_dump(exclude=own, exclude_none=True)


class Service:
    """`foley serve` as a process beside this one, on a free loopback port."""

    def __init__(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "foley.cli.app", "serve"]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        # Signals come to this process alone, so that jobs are finished before the service goes.
        self._process = subprocess.Popen(command, start_new_session=True)
        self._stopping = False
        threading.Thread(target=self._watch, name="service-watch", daemon=True).start()

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process.poll() is None

    def stop(self) -> None:
        """End the service; it finishes what it works on."""
        self._stopping = True
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _watch(self) -> None:
        """A worker without its service is of no use: the platform starts another, and its jobs."""
        status = self._process.wait()
        if not self._stopping:
            log.error("service_ended", exit_status=status)
            os._exit(1)


class Worker:
    """Fills jobs.

    Args:
        settings: limits, keys, bucket.
        client: of the service.
        fetcher: of clips that are given by their address.
        tell: how progress reaches the platform.
    """

    def __init__(
        self,
        settings: Settings,
        client: AsyncFoleyClient,
        fetcher: Fetcher,
        tell: Callable[[Job, Any], None],
    ) -> None:
        self._settings = settings
        self._client = client
        self._fetcher = fetcher
        self._tell = tell
        self._scratch = Scratch(settings.scratch_root)

    def close(self) -> None:
        """Leave no files."""
        self._scratch.close()

    def check_bucket(self) -> None:
        """Nothing, where the bucket that is named has its address and keys.

        Raises:
            OutputError: it has not; the SDK would quietly write to a folder of its own.
        """
        if self._settings.bucket is not None and rp_upload.get_boto_client()[0] is None:
            raise OutputError(
                "FOLEY_BUCKET is set, but not all of BUCKET_ENDPOINT_URL, BUCKET_ACCESS_KEY_ID and "
                "BUCKET_SECRET_ACCESS_KEY"
            )

    def concurrency(self, _current: int) -> int:
        """How many jobs to take: as many as the service has places.

        A constant, because the SDK takes no job while it changes this and waits for those it has.
        """
        return self._settings.max_concurrency

    async def handle(self, job: Job) -> dict[str, Any]:
        """The output of a job, or `{"error": "code: message"}`."""
        try:
            return await self._fill(job)
        except FoleyError as error:
            log.info("job_refused", job=job["id"], code=error.code)
            return {"error": f"{error.code}: {error}"}
        except Exception:
            # The SDK would send the traceback to the caller.
            log.exception("job_failed", job=job["id"])
            return {"error": "internal: something went wrong inside the worker"}

    async def _fill(self, job: Job) -> dict[str, Any]:
        given = JobInput.read(job.get("input"))
        by_bucket = self._by_bucket(given)
        with self._scratch.workspace() as folder:
            clip = folder / "clip"
            await self._obtain(given, clip)
            await wait_until_ready(self._client)  # a runner that was lost comes back
            progress = _Progress(lambda update: self._tell(job, update))
            made = await self._client.generate(
                clip,
                on_update=progress,
                max_wait_seconds=self._settings.request_timeout_seconds,
                **given.options(),
            )
            files = await self._deliver(job, made, folder if by_bucket else None)
        facts = made.model_dump(exclude={"files", "saved", "kept_seconds"}, mode="json")
        return {**facts, "files": files}

    def _by_bucket(self, given: JobInput) -> bool:
        if given.output == "bucket" and self._settings.bucket is None:
            raise ParameterError(
                "output: this worker has no bucket; use base64, or have FOLEY_BUCKET set"
            )
        return given.output != "base64" and self._settings.bucket is not None

    async def _obtain(self, given: JobInput, clip: Path) -> None:
        if given.clip_url is not None:
            await self._fetcher.fetch(given.clip_url, clip)
            return
        assert given.clip_base64 is not None
        text = given.clip_base64
        if text.startswith("data:"):
            text = text.partition(",")[2]
        limit = self._settings.max_upload_bytes
        if len(text) > limit * BASE64_RATIO + 4:
            raise UploadTooLargeError(f"the clip is larger than the limit of {limit} bytes")
        try:
            content = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ParameterError(f"clip_base64: is not base64 ({error})") from error
        await asyncio.to_thread(clip.write_bytes, content)

    async def _deliver(
        self, job: Job, made: RemoteGeneration, folder: Path | None
    ) -> list[dict[str, Any]]:
        """The files asked for, in the output itself, or by way of `folder` in the bucket."""
        num_bytes = int(sum(file.num_bytes for file in made.files) * BASE64_RATIO)
        limit = self._settings.max_result_bytes
        if folder is None and num_bytes > limit:
            raise OutputError(
                f"the result would take {num_bytes} bytes as base64, the limit is {limit}; ask for "
                "fewer variations or for flac, have a bucket set up, or raise "
                "FOLEY_MAX_RESULT_BYTES to 20MB where jobs come by /runsync"
            )
        files = []
        for file in made.files:
            described = file.model_dump(exclude={"url"}, mode="json")
            if folder is None:
                content = await self._client.read(file)
                described["base64"] = base64.b64encode(content).decode()
            else:
                name = f"foley-{file.variation}.{file.format}"
                path = await self._client.download(file, folder / name)
                place = f"{job['id']}/{name}"
                described["url"] = await asyncio.to_thread(self._upload, path, place, file)
            files.append(described)
        return files

    def _upload(self, path: Path, place: str, file: RemoteFile) -> str:
        """The address, signed for a week, at which a file lies in the bucket.

        Raises:
            ServerError: the bucket did not take it.
        """
        bucket, _ = rp_upload.get_boto_client()
        where = {"Bucket": self._settings.bucket, "Key": place}
        try:
            with path.open("rb") as content:
                bucket.put_object(**where, Body=content, ContentType=file.media_type)
            address: str = bucket.generate_presigned_url(
                "get_object", Params=where, ExpiresIn=ADDRESS_SECONDS
            )
        except (BotoCoreError, ClientError) as error:
            log.exception("upload_failed", place=place)
            raise ServerError("the result was made, but its bucket did not take it") from error
        return address


class _Progress:
    """Tells each new stage at once, and within a stage no more than one update a second."""

    def __init__(self, tell: Callable[[dict[str, Any]], None]) -> None:
        self._tell = tell
        self._stage = ""
        self._next = 0.0

    def __call__(self, update: RemoteUpdate) -> None:
        now = time.monotonic()
        if update.stage == self._stage and now < self._next:
            return
        self._stage, self._next = update.stage, now + PROGRESS_SECONDS
        self._tell(update.model_dump(exclude_none=True))


async def wait_until_ready(client: AsyncFoleyClient) -> None:
    """Return when the service can fill jobs.

    Raises:
        ModelFailedError: it never will be.
    """
    while True:
        # While it does not listen yet, `Service` watches its process.
        with contextlib.suppress(ConnectionFailedError):
            if await client.is_ready():
                return
        await asyncio.sleep(POLL_SECONDS)


def main() -> None:
    """Serve jobs until the platform ends this worker."""
    settings = load_settings()
    configure_logging(settings.log_level)
    RunPodLogger().set_level("INFO")  # below that the SDK prints whole jobs, clips and prompts
    service = Service()
    key = next(iter(settings.keys), None)
    worker = Worker(
        settings,
        AsyncFoleyClient(service.url, api_key=key),
        Fetcher(
            max_bytes=settings.max_upload_bytes, timeout_seconds=settings.fetch_timeout_seconds
        ),
        runpod.serverless.progress_update,
    )

    async def service_is_ready() -> None:
        # The SDK runs its checks in an event loop of their own, and connections belong to one loop.
        async with AsyncFoleyClient(service.url, api_key=key) as client:
            await wait_until_ready(client)

    runpod.serverless.register_fitness_check(worker.check_bucket)
    runpod.serverless.register_fitness_check(service_is_ready)
    try:
        runpod.serverless.start(
            {"handler": worker.handle, "concurrency_modifier": worker.concurrency}
        )
    finally:
        service.stop()
        worker.close()

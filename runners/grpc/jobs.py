"""The methods of `foley.v1.JobService`: durable jobs."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from foley.errors import (
    ConflictError,
    EndingError,
    NotFoundError,
    ParameterError,
    RequestTimeoutError,
)
from foley.mix import LoudnessReport
from foley.v1 import foley_pb2 as proto
from foley.v1.foley_pb2_grpc import JobServiceServicer
from runners.auth import ApiKeys
from runners.durable.job import JOB_STATES, UNFINISHED, Job, JobState, Webhook
from runners.durable.reception import Admit, JobReception
from runners.durable.request import JobOptions, check_key
from runners.grpc import JOB_SERVICE
from runners.grpc.boundary import guard_call
from runners.grpc.messages import describe_loudness
from runners.grpc.upload import parse_options, read_clip
from runners.jobs.intake import Upload
from runners.settings import Settings

CHUNK_BYTES = 256 * 1024
WATCH_SECONDS = 0.5  # how often a job is looked at for those who watch it
MAX_LISTED = 100
DEFAULT_LISTED = 20
MAX_OFFSET = 1_000_000


class JobServicer(JobServiceServicer):
    """Answers the calls about jobs.

    Args:
        settings: size limits.
        reception: of this process.
        keys: one of them must come with each call.
    """

    def __init__(self, settings: Settings, reception: JobReception, keys: ApiKeys) -> None:
        self._settings = settings
        self._reception = reception
        self._jobs = reception.jobs
        self._keys = keys
        self._stopping = asyncio.Event()

    def end_watches(self) -> None:
        """End the calls that watch a job, since the server waits for them."""
        self._stopping.set()

    async def SubmitJob(  # noqa: N802
        self,
        requests: AsyncIterator[proto.SubmitJobRequest],
        context: grpc.aio.ServicerContext,
    ) -> proto.Job:
        """Accept a job."""
        keys: list[str] = []

        def parse(options: proto.JobOptions) -> JobOptions:
            if options.HasField("idempotency_key"):
                check_key(options.idempotency_key, "idempotency_key")
                keys.append(options.idempotency_key)
            more: dict[str, object] = {}
            if options.HasField("webhook_url"):
                more["webhook_url"] = options.webhook_url
            if options.HasField("upload"):
                more["upload"] = options.upload
            if options.HasField("output"):
                more["output"] = options.output
            if options.HasField("start_by"):
                more["start_by"] = _read_time(options.start_by)
            return parse_options(options.generation, JobOptions, more)

        async def read(folder: Path, upload: Upload, admit: Admit) -> JobOptions:
            return await read_clip(
                requests,
                folder,
                parse,
                max_bytes=self._settings.max_upload_bytes,
                upload=upload,
                admit=lambda: admit(keys[0] if keys else None),
            )

        async with self._guard(context, "SubmitJob") as caller:
            job = await self._reception.submit(
                caller.owner,
                caller.caller,
                read,
                root="",
            )
            return await self._describe(job)

    async def GetJob(  # noqa: N802
        self, request: proto.GetJobRequest, context: grpc.aio.ServicerContext
    ) -> proto.Job:
        """Return a job."""
        async with self._guard(context, "GetJob") as caller:
            return await self._describe(await self._find(caller.owner, request.id))

    async def ListJobs(  # noqa: N802
        self, request: proto.ListJobsRequest, context: grpc.aio.ServicerContext
    ) -> proto.ListJobsResponse:
        """Return jobs, the newest first."""
        async with self._guard(context, "ListJobs") as caller:
            limit = request.limit if request.HasField("limit") else DEFAULT_LISTED
            _check_range("limit", limit, 1, MAX_LISTED)
            _check_range("offset", request.offset, 0, MAX_OFFSET)
            found = await asyncio.to_thread(
                self._jobs.queue.list_jobs,
                caller.owner,
                _read_state(request),
                limit=limit + 1,
                offset=request.offset,
            )
            more = request.offset + limit if len(found) > limit else None
            found = found[:limit]
            webhooks = await asyncio.to_thread(
                self._jobs.queue.webhooks.find, [job.id for job in found if job.has_webhook]
            )
            return proto.ListJobsResponse(
                jobs=[
                    describe_job(job, self._jobs.keep_seconds, None, webhooks.get(job.id))
                    for job in found
                ],
                next_offset=more,
            )

    async def WatchJob(  # noqa: N802
        self, request: proto.WatchJobRequest, context: grpc.aio.ServicerContext
    ) -> None:
        """Send a job whenever it changes, until it has ended."""
        async with self._guard(context, "WatchJob") as caller:
            sent: proto.Job | None = None
            while True:
                job = await self._find(caller.owner, request.id)
                described = await self._describe(job)
                if described != sent:
                    sent = described
                    await context.write(described)
                if job.state not in UNFINISHED:
                    return
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(WATCH_SECONDS):
                        await self._stopping.wait()
                    raise EndingError("the service is ending; watch the job again later")

    async def CancelJob(  # noqa: N802
        self, request: proto.CancelJobRequest, context: grpc.aio.ServicerContext
    ) -> proto.Job:
        """Cancel a job in any state."""
        async with self._guard(context, "CancelJob") as caller:
            return await self._describe(await self._reception.cancel(caller.owner, request.id))

    async def DeleteJob(  # noqa: N802
        self, request: proto.DeleteJobRequest, context: grpc.aio.ServicerContext
    ) -> proto.DeleteJobResponse:
        """Remove a job that has ended, with its files."""
        async with self._guard(context, "DeleteJob") as caller:
            await asyncio.to_thread(self._jobs.delete, caller.owner, request.id)
            return proto.DeleteJobResponse()

    async def FetchJob(  # noqa: N802
        self, request: proto.FetchJobRequest, context: grpc.aio.ServicerContext
    ) -> None:
        """Send a file of a job that has succeeded."""
        async with self._guard(context, "FetchJob") as caller:
            job = await self._find(caller.owner, request.id)
            if job.result is None:
                raise ConflictError(f"the job is {job.state}, and has no result")
            files = job.result["files"]
            if not 0 <= request.file_index < len(files):
                raise NotFoundError(
                    f"file_index: the job has {len(files)} files, got {request.file_index}"
                )
            name = files[request.file_index]["name"]
            path = await asyncio.to_thread(self._jobs.find_file, job, name)
            _check_range("offset", request.offset, 0, path.stat().st_size)
            # A caller who stops reading must not hold the file for ever.
            limit_seconds = self._settings.request_timeout_seconds
            try:
                async with asyncio.timeout(limit_seconds):
                    await _send_file(path, request, context)
            except TimeoutError as error:
                raise RequestTimeoutError(
                    f"the file was not read within {limit_seconds:g} s; go on from an offset"
                ) from error

    def _guard(self, context: grpc.aio.ServicerContext, method: str) -> Any:
        return guard_call(context, method, self._keys, service=JOB_SERVICE)

    async def _find(self, owner: str, job_id: str) -> Job:
        return await asyncio.to_thread(self._jobs.find, owner, job_id)

    async def _describe(self, job: Job) -> proto.Job:
        position = webhook = None
        if job.state == "queued":
            position = await asyncio.to_thread(self._jobs.queue.count_ahead, job)
        if job.has_webhook:
            found = await asyncio.to_thread(self._jobs.queue.webhooks.find, [job.id])
            webhook = found.get(job.id)
        return describe_job(job, self._jobs.keep_seconds, position, webhook)


def describe_job(
    job: Job, keep_seconds: float, queue_position: int | None, webhook: Webhook | None
) -> proto.Job:
    """Return a job as a message.

    Args:
        job: of the caller.
        keep_seconds: for how long ended jobs are kept.
        queue_position: how many jobs are started before it; None where that is not known.
        webhook: of the job; None without one.
    """
    described = proto.Job(
        id=job.id,
        state=job.state,
        priority=job.priority,
        created_at=_time(job.created_ms),
        started_at=_time(job.started_ms),
        finished_at=_time(job.finished_ms),
        queue_position=queue_position,
        starts=job.num_starts,
        output=job.output,
        result=None if job.result is None else _describe_result(job.id, job.result),
        webhook=None if webhook is None else _describe_webhook(webhook),
    )
    if job.finished_ms is not None:
        described.expires_at.CopyFrom(_time(job.finished_ms + round(1000 * keep_seconds)))
    if job.start_by is not None:
        described.start_by.FromJsonString(job.start_by)
    if job.error is not None:
        described.error.CopyFrom(proto.JobError(code=job.error[0], message=job.error[1]))
    if "code" in job.progress:
        waits_for = {name: job.progress[name] for name in ("code", "message")}
        described.waits_for.CopyFrom(proto.JobError(**waits_for))
        described.retries = job.progress.get("retries", 0)
    elif job.progress:
        known = {field.name for field in proto.Progress.DESCRIPTOR.fields}
        progress = {name: value for name, value in job.progress.items() if name in known}
        described.progress.CopyFrom(proto.Progress(**progress))
    return described


def _describe_result(job_id: str, result: dict[str, Any]) -> proto.Result:
    return proto.Result(
        request_id=job_id,
        model=result["model"],
        duration_seconds=result["duration_seconds"],
        sample_rate_hz=result["sample_rate_hz"],
        timings=[
            proto.Timing(stage=stage, seconds=seconds)
            for stage, seconds in result["timings_seconds"].items()
        ],
        device_seconds=result.get("device_seconds"),
        notices=result["notices"],
        files=[
            proto.File(
                variation=file["variation"],
                layer=file.get("layer"),
                speech_seconds=file.get("speech_seconds"),
                seed=file["seed"],
                format=file["format"],
                media_type=file["media_type"],
                num_bytes=file["bytes"],
                loudness=describe_loudness(
                    LoudnessReport.model_validate(file["loudness"])
                    if file.get("loudness")
                    else None
                ),
            )
            for file in result["files"]
        ],
    )


def _describe_webhook(webhook: Webhook) -> proto.Webhook:
    return proto.Webhook(
        id=webhook.message_id,
        url=webhook.url,
        state=webhook.state,
        tries=webhook.num_tries,
        last_error=webhook.last_error,
        next_try_at=_time(webhook.next_ms if webhook.state == "sending" else None),
        ended_at=_time(webhook.ended_ms or None),
    )


def _time(milliseconds: int | None) -> Message | None:
    if milliseconds is None:
        return None
    time = Timestamp()
    time.FromMilliseconds(milliseconds)
    return time


def _read_time(time: Timestamp) -> datetime:
    try:
        read: datetime = time.ToDatetime(UTC)
    except (ValueError, OverflowError) as error:
        raise ParameterError(f"start_by: is no time ({error})") from error
    return read


def _read_state(request: proto.ListJobsRequest) -> JobState | None:
    if not request.HasField("state"):
        return None
    for state in JOB_STATES:
        if state == request.state:
            return state
    raise ParameterError(
        f"state: {request.state[:80]!r} is none; use one of {', '.join(JOB_STATES)}"
    )


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ParameterError(f"{name}: must be {low} to {high}, got {value}")


async def _send_file(
    path: Path, request: proto.FetchJobRequest, context: grpc.aio.ServicerContext
) -> None:
    with path.open("rb") as file:
        file.seek(request.offset)
        while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
            await context.write(proto.FileChunk(file_index=request.file_index, data=data))

"""The routes of durable jobs: /v1/jobs."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from foley.errors import ConflictError, ParameterError, RequestTimeoutError
from runners.durable.job import JOB_STATES, UNFINISHED, Job, JobState
from runners.durable.request import JobRequest
from runners.handoff import CLIP
from runners.http.forms import read_form
from runners.http.job_bodies import describe_job, format_event
from runners.http.responses import KeptFile
from runners.http.sse import KEEP_ALIVE, KEEP_ALIVE_SECONDS, MEDIA_TYPE
from runners.jobs.cancellation import CancellationRegistry
from runners.jobs.clip_url import ClipLoader
from runners.jobs.deadline import run_until_cancelled
from runners.jobs.ending import Ending
from runners.jobs.intake import Intake
from runners.process import call_on_stop_signal
from runners.settings import Settings

if TYPE_CHECKING:  # the queue's library takes a second to import
    from runners.durable.service import JobService

IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,255}", re.ASCII)
MAX_LISTED = 100
MAX_OFFSET = 1_000_000
EVENT_SECONDS = 0.5  # how often a job is looked at for those who watch it


class JobHandlers:
    """Answers requests about jobs.

    `ErrorMiddleware` around them has put "foley.owner" and "foley.caller" into the scope.

    Args:
        settings: time and size limits.
        jobs: of this service.
        intake: bounds the uploads.
        clips: stores clips that are named by their address.
        ending: of this process.
        registry: of the requests that can be cancelled.
    """

    def __init__(
        self,
        settings: Settings,
        jobs: "JobService",
        intake: Intake,
        clips: ClipLoader,
        ending: Ending,
        registry: CancellationRegistry,
    ) -> None:
        self._settings = settings
        self._jobs = jobs
        self._intake = intake
        self._clips = clips
        self._ending = ending
        self._registry = registry
        self._stopping = asyncio.Event()

    def end_streams_on_stop_signal(self) -> None:
        """End the streams of events on SIGTERM or SIGINT, since the server waits for them."""
        call_on_stop_signal(self._stopping.set)

    async def submit(self, request: Request) -> Response:
        """POST /v1/jobs: accept a job.

        Raises:
            ConflictError: the idempotency key was used for another request.
            FoleyError: as for POST /v1/generate, before the work begins.
        """
        owner = request.scope["foley.owner"]
        key = request.headers.get("idempotency-key")
        if key is not None and not IDEMPOTENCY_KEY.fullmatch(key):
            raise ParameterError(
                f"Idempotency-Key: {key[:80]!r} is no key; use 1 to 255 visible ASCII characters"
            )
        with (
            self._ending.accept_work(),
            self._intake.receive(request.scope["foley.caller"]) as upload,
            self._jobs.files.receive() as folder,
        ):
            await asyncio.to_thread(self._jobs.queue.check_room)
            reading = read_form(
                request, folder, max_bytes=self._settings.max_upload_bytes, upload=upload
            )
            limit_seconds = self._settings.request_timeout_seconds
            try:
                async with asyncio.timeout(limit_seconds):
                    options = await run_until_cancelled(reading, upload.watch_rate())
                    options = await self._clips.load(options, folder, upload)
            except TimeoutError as error:
                raise RequestTimeoutError(
                    f"the upload took longer than {limit_seconds:g} s, and was dropped"
                ) from error
            clip = folder / CLIP if options.duration_seconds is None else None
            wanted = options.format or options.default_format
            options.check_files((wanted, *options.also), has_clip=clip is not None)
            settled = await asyncio.to_thread(JobRequest.settle, options, clip)
            job = await asyncio.to_thread(self._jobs.accept, owner, folder, settled, key)
        body = await self._describe(request, job)
        return JSONResponse(body, 202, headers={"Location": body["status_url"]})

    async def list_jobs(self, request: Request) -> Response:
        """GET /v1/jobs: jobs of the caller's key, the newest first.

        Raises:
            ParameterError: a parameter is out of bounds.
        """
        state = _read_state(request)
        limit = _read_count(request, "limit", default=20, low=1, high=MAX_LISTED)
        offset = _read_count(request, "offset", default=0, low=0, high=MAX_OFFSET)
        found = await asyncio.to_thread(
            self._jobs.queue.list_jobs,
            request.scope["foley.owner"],
            state,
            limit=limit + 1,
            offset=offset,
        )
        root = _root(request)
        jobs = [describe_job(job, root, self._jobs.keep_seconds) for job in found[:limit]]
        more = {"next_offset": offset + limit} if len(found) > limit else {}
        return JSONResponse({"jobs": jobs, **more})

    async def get(self, request: Request) -> Response:
        """GET /v1/jobs/{id}.

        Raises:
            NotFoundError: there is none, or it belongs to another key.
        """
        return JSONResponse(await self._describe(request, await self._find(request)))

    async def cancel(self, request: Request) -> Response:
        """POST /v1/jobs/{id}/cancel: cancel a job that has not ended.

        Raises:
            NotFoundError: there is none, or it belongs to another key.
        """
        owner, job_id = _name_job(request)
        job = await asyncio.to_thread(self._jobs.queue.cancel, owner, job_id)
        # The executor learns of it within a second, and its request is called as the job is.
        self._registry.cancel(owner, job_id)
        return JSONResponse(await self._describe(request, job))

    async def delete(self, request: Request) -> Response:
        """DELETE /v1/jobs/{id}: forget a job that has ended, and remove its files.

        Raises:
            NotFoundError: there is none, or it belongs to another key.
            ConflictError: it has not ended.
        """
        await asyncio.to_thread(self._jobs.delete, *_name_job(request))
        return Response(status_code=204)

    async def get_result(self, request: Request) -> Response:
        """GET /v1/jobs/{id}/result: the file that was asked for, or a range of it.

        Raises:
            NotFoundError: there is no such job, or it belongs to another key.
            ConflictError: it has no result.
        """
        job = await self._find_finished(request)
        assert job.result is not None
        return KeptFile(self._jobs.files.find_file(job.id, job.result["files"][0]["name"]))

    async def get_file(self, request: Request) -> Response:
        """GET /v1/jobs/{id}/result/{file}: one of several files, or a range of it.

        Raises:
            NotFoundError: there is no such job or file, or it belongs to another key.
            ConflictError: the job has no result.
        """
        job = await self._find_finished(request)
        return KeptFile(self._jobs.files.find_file(job.id, request.path_params["file"]))

    async def stream_events(self, request: Request) -> Response:
        """GET /v1/jobs/{id}/events: the job whenever it changes, until it ends.

        Raises:
            NotFoundError: there is none, or it belongs to another key.
        """
        job = await self._find(request)
        seen = request.headers.get("last-event-id")
        _, event_id = format_event(await self._describe(request, job))
        if job.state not in UNFINISHED and event_id == seen:
            return Response(status_code=204)  # this ends the reconnecting of a browser
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        events = self._watch(request, seen)
        return StreamingResponse(events, media_type=MEDIA_TYPE, headers=headers)

    async def _watch(self, request: Request, seen: str | None) -> AsyncIterator[bytes]:
        silent_seconds = 0.0
        while not self._stopping.is_set():
            job = await self._find(request)
            event, event_id = format_event(await self._describe(request, job))
            silent_seconds += EVENT_SECONDS
            if event_id != seen:
                seen, silent_seconds = event_id, 0.0
                yield event
            elif silent_seconds >= KEEP_ALIVE_SECONDS:
                silent_seconds = 0.0
                yield KEEP_ALIVE
            if job.state not in UNFINISHED:
                return
            try:
                await asyncio.wait_for(self._stopping.wait(), EVENT_SECONDS)
            except TimeoutError:
                continue

    async def _find(self, request: Request) -> Job:
        return await asyncio.to_thread(self._jobs.queue.find, *_name_job(request))

    async def _find_finished(self, request: Request) -> Job:
        job = await self._find(request)
        if job.result is None:
            raise ConflictError(f"the job is {job.state}, and has no result")
        return job

    async def _describe(self, request: Request, job: Job) -> dict[str, Any]:
        position = None
        if job.state == "queued":
            position = await asyncio.to_thread(self._jobs.queue.count_ahead, job)
        return describe_job(job, _root(request), self._jobs.keep_seconds, position)


class _Api(Protocol):
    job_handlers: JobHandlers | None


def build_job_routes(find_api: Callable[[], _Api]) -> list[Route]:
    """Return the routes of a service that takes jobs.

    Args:
        find_api: returns the instance of this process.
    """

    def bind(
        method: Callable[[JobHandlers, Request], Awaitable[Response]],
    ) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            handlers = find_api().job_handlers
            assert handlers is not None
            return await method(handlers, request)

        return handle

    return [
        Route("/v1/jobs", bind(JobHandlers.submit), methods=["POST"]),
        Route("/v1/jobs", bind(JobHandlers.list_jobs), methods=["GET"]),
        Route("/v1/jobs/{id}", bind(JobHandlers.get), methods=["GET"]),
        Route("/v1/jobs/{id}", bind(JobHandlers.delete), methods=["DELETE"]),
        Route("/v1/jobs/{id}/cancel", bind(JobHandlers.cancel), methods=["POST"]),
        Route("/v1/jobs/{id}/events", bind(JobHandlers.stream_events), methods=["GET"]),
        Route("/v1/jobs/{id}/result", bind(JobHandlers.get_result), methods=["GET"]),
        Route("/v1/jobs/{id}/result/{file}", bind(JobHandlers.get_file), methods=["GET"]),
    ]


def _root(request: Request) -> str:
    root: str = request.scope.get("root_path", "")
    return root


def _name_job(request: Request) -> tuple[str, str]:
    """Return the owner who asks, and the id of the job, which may be any text."""
    return request.scope["foley.owner"], request.path_params["id"]


def _read_state(request: Request) -> JobState | None:
    given = request.query_params.get("state")
    if given is None:
        return None
    for state in JOB_STATES:
        if state == given:
            return state
    raise ParameterError(f"state: {given[:80]!r} is none; use one of {', '.join(JOB_STATES)}")


def _read_count(request: Request, name: str, *, default: int, low: int, high: int) -> int:
    text = request.query_params.get(name, str(default))
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or not low <= int(text) <= high:
        raise ParameterError(f"{name}: must be {low} to {high}, got {text[:80]!r}")
    return int(text)

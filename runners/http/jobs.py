"""The routes of durable jobs: /v1/jobs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from foley.errors import ConflictError, NotFoundError, ParameterError
from runners.durable.description import describe_job
from runners.durable.job import JOB_STATES, UNFINISHED, Job, JobState
from runners.durable.reception import Admit, JobReception
from runners.durable.request import JobOptions, check_key
from runners.http.forms import read_form
from runners.http.job_bodies import format_event
from runners.http.json_bodies import is_json, read_json
from runners.http.parameters import find_root, read_page
from runners.http.responses import KeptFile, tell_error
from runners.http.sse import KEEP_ALIVE, KEEP_ALIVE_SECONDS, MEDIA_TYPE, encode_event
from runners.jobs.intake import Upload
from runners.process import call_on_stop_signal
from runners.settings import Settings

EVENT_SECONDS = 0.5  # how often a job is looked at for those who watch it


class JobHandlers:
    """Answers requests about jobs.

    `ErrorMiddleware` around them has put "foley.owner" and "foley.caller" into the scope.

    Args:
        settings: largest upload.
        reception: of this process.
    """

    def __init__(self, settings: Settings, reception: JobReception) -> None:
        self._settings = settings
        self._reception = reception
        self._jobs = reception.jobs
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
        key = request.headers.get("idempotency-key")
        if key is not None:
            check_key(key, "Idempotency-Key")

        async def read(folder: Path, upload: Upload, admit: Admit) -> JobOptions:
            await admit(key)
            max_bytes = self._settings.max_upload_bytes
            if is_json(request):
                return await read_json(request, JobOptions, max_bytes=max_bytes, upload=upload)
            return await read_form(request, folder, JobOptions, max_bytes=max_bytes, upload=upload)

        job = await self._reception.submit(
            request.scope["foley.owner"],
            request.scope["foley.caller"],
            read,
            root=find_root(request),
        )
        body = await self._describe(request, job)
        return JSONResponse(body, 202, headers={"Location": body["status_url"]})

    async def list_jobs(self, request: Request) -> Response:
        """GET /v1/jobs: jobs of the caller's key, the newest first.

        Raises:
            ParameterError: a parameter is out of bounds.
        """
        state = _read_state(request)
        limit, offset = read_page(request)
        found = await asyncio.to_thread(
            self._jobs.queue.list_jobs,
            request.scope["foley.owner"],
            state,
            limit=limit + 1,
            offset=offset,
        )
        root = find_root(request)
        webhooks = await asyncio.to_thread(
            self._jobs.queue.webhooks.find, [job.id for job in found if job.has_webhook]
        )
        jobs = [
            describe_job(job, root, self._jobs.keep_seconds, webhook=webhooks.get(job.id))
            for job in found[:limit]
        ]
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
        job = await self._reception.cancel(*_name_job(request))
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
            ConflictError: it has no result, or its files are in a bucket.
        """
        job = await self._find_finished(request)
        assert job.result is not None
        return await self._open(job, job.result["files"][0]["name"])

    async def get_file(self, request: Request) -> Response:
        """GET /v1/jobs/{id}/result/{file}: one of several files, or a range of it.

        Raises:
            NotFoundError: there is no such job or file, or it belongs to another key.
            ConflictError: the job has no result, or its files are in a bucket.
        """
        return await self._open(await self._find_finished(request), request.path_params["file"])

    async def stream_events(self, request: Request) -> Response:
        """GET /v1/jobs/{id}/events: the job whenever it changes, until it ends.

        Raises:
            NotFoundError: there is none, or it belongs to another key.
        """
        job = await self._find(request)
        seen = request.headers.get("last-event-id")
        _, event_id = format_event(await self._describe(request, job, with_webhook=False))
        if job.state not in UNFINISHED and event_id == seen:
            return Response(status_code=204)  # this ends the reconnecting of a browser
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        events = self._watch_or_tell(request, seen)
        return StreamingResponse(events, media_type=MEDIA_TYPE, headers=headers)

    async def _watch_or_tell(self, request: Request, seen: str | None) -> AsyncIterator[bytes]:
        """Yield the events of a job; the last one is an error if the job is deleted meanwhile."""
        try:
            async for event in self._watch(request, seen):
                yield event
        except NotFoundError as error:
            yield encode_event("error", tell_error(request.scope, error))

    async def _watch(self, request: Request, seen: str | None) -> AsyncIterator[bytes]:
        silent_seconds = 0.0
        while not self._stopping.is_set():
            job = await self._find(request)
            event, event_id = format_event(await self._describe(request, job, with_webhook=False))
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
                async with asyncio.timeout(EVENT_SECONDS):
                    await self._stopping.wait()
            except TimeoutError:
                continue

    async def _open(self, job: Job, name: str) -> Response:
        return KeptFile(await asyncio.to_thread(self._jobs.find_file, job, name))

    async def _find(self, request: Request) -> Job:
        return await asyncio.to_thread(self._jobs.find, *_name_job(request))

    async def _find_finished(self, request: Request) -> Job:
        job = await self._find(request)
        if job.result is None:
            raise ConflictError(f"the job is {job.state}, and has no result")
        return job

    async def _describe(
        self, request: Request, job: Job, *, with_webhook: bool = True
    ) -> dict[str, Any]:
        """Describe a job; without its webhook in events, since it changes after the job's end."""
        position = webhook = None
        if job.state == "queued":
            position = await asyncio.to_thread(self._jobs.queue.count_ahead, job)
        if with_webhook and job.has_webhook:
            found = await asyncio.to_thread(self._jobs.queue.webhooks.find, [job.id])
            webhook = found.get(job.id)
        return describe_job(
            job,
            find_root(request),
            self._jobs.keep_seconds,
            queue_position=position,
            webhook=webhook,
        )


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

"""POST /v1/generate: read the form, run the job, and answer with a file, a zip or events.

POST /v1/generate/events is the same with events as its only answer, which describes itself better
to generators of clients than an answer that depends on `Accept`.
POST /v1/mix finishes a sound that is sent, without the model.
"""

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from foley.errors import RequestTimeoutError
from foley.types import Stage
from runners.handoff import CLIP, SOUND
from runners.http import sse
from runners.http.forms import read_form
from runners.http.mix import SOUND_FIELD, MixFormOptions
from runners.http.negotiation import EVENTS_PATH, negotiate
from runners.http.responses import file_response, result_event, sound_event, tell_error
from runners.http.sse import EventStream
from runners.jobs.cancellation import CancellationRegistry, CancellationToken
from runners.jobs.clip_url import ClipLoader
from runners.jobs.deadline import Deadline, run_until_cancelled
from runners.jobs.ending import Ending
from runners.jobs.intake import Intake
from runners.jobs.job import GenerationJob, GenerationOptions
from runners.jobs.outputs import JobResult, PieceFile
from runners.jobs.pieces import OnSound
from runners.jobs.progress import ProgressEstimator
from runners.jobs.results import ResultStore
from runners.jobs.run import GenerationService
from runners.jobs.scratch import Scratch
from runners.messages import OnProgressUpdate, ProgressUpdate
from runners.settings import Settings

LAST_EVENT_SECONDS = 5.0  # how long the last event of a request may take to be read


@dataclass(frozen=True, kw_only=True)
class _ActiveRequest:
    """A request while it is worked on."""

    request: Request
    folder: Path  # holds its files, and is removed at its end
    deadline: Deadline
    cancellation: CancellationToken

    @property
    def request_id(self) -> str:
        request_id: str = self.request.scope["foley.request_id"]
        return request_id

    @property
    def owner(self) -> str:
        owner: str = self.request.scope["foley.owner"]
        return owner

    @property
    def caller(self) -> str:
        caller: str = self.request.scope["foley.caller"]
        return caller

    def timeout_error(self) -> RequestTimeoutError:
        return RequestTimeoutError(
            f"the request took longer than {self.deadline.limit_seconds:g} s, and was dropped"
        )


class GenerateEndpoint:
    """An ASGI application, because its files must exist until the response has been sent.

    `ErrorMiddleware` around it has put "foley.request_id", "foley.owner", "foley.caller" and
    "foley.is_executor" into the scope.

    Args:
        settings: time and size limits.
        service: runs the jobs.
        scratch: has a folder for each request.
        intake: bounds the uploads.
        clips: stores clips and sounds that are named.
        registry: of the requests that can be cancelled.
        results: keeps the files of streamed requests.
        ending: of this process.
        mixes: whether the sound is sent with the clip, instead of being made.
    """

    def __init__(
        self,
        settings: Settings,
        service: GenerationService,
        scratch: Scratch,
        intake: Intake,
        clips: ClipLoader,
        registry: CancellationRegistry,
        results: ResultStore,
        ending: Ending,
        *,
        mixes: bool = False,
    ) -> None:
        self._settings = settings
        self._service = service
        self._mixes = mixes
        self._scratch = scratch
        self._intake = intake
        self._clips = clips
        self._registry = registry
        self._results = results
        self._ending = ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises:
            FoleyError: the request was refused or failed before the response began.
        """
        self._service.require_runner()  # before anything is received
        if not scope["foley.is_executor"]:
            self._intake.check_requests(scope["foley.caller"])
        deadline = Deadline(self._settings.request_timeout_seconds)
        with (
            self._ending.accept_work(f"{scope['path']} {scope['foley.request_id']}"),
            self._scratch.workspace() as folder,
            self._registry.enter(scope["foley.owner"], scope["foley.request_id"]) as cancellation,
        ):
            active = _ActiveRequest(
                request=Request(scope, receive),
                folder=folder,
                deadline=deadline,
                cancellation=cancellation,
            )
            options = await self._read_options(active)
            response_format = negotiate(
                _get_accept(active.request), options, has_clip=(folder / CLIP).exists()
            )
            job = GenerationJob(
                owner=active.owner,
                caller=active.caller,
                request_id=active.request_id,
                folder=folder,
                options=options,
                format=response_format.format,
            )
            self._scratch.reserve(folder, job.caller, job.measure_least_result())
            with self._count(active):
                if response_format.streamed:
                    await self._send_events(active, job, send)
                else:
                    await self._send_files(active, job, send, zipped=response_format.zipped)

    def _count(self, active: _ActiveRequest) -> contextlib.AbstractContextManager[None]:
        """Count a request of the caller while it is worked on; a job was counted before."""
        if active.request.scope["foley.is_executor"]:
            return contextlib.nullcontext()
        return self._intake.counting(active.caller)

    async def _read_options(self, active: _ActiveRequest) -> GenerationOptions:
        """Store the clip and return the options, within the time allowed."""
        try:
            with self._intake.receive(active.caller, self._scratch.check_upload) as upload:
                reading = read_form(
                    active.request,
                    active.folder,
                    MixFormOptions if self._mixes else GenerationOptions,
                    max_bytes=self._settings.max_upload_bytes,
                    upload=upload,
                    further_files={SOUND_FIELD: SOUND} if self._mixes else None,
                )
                async with asyncio.timeout(active.deadline.left_seconds):
                    with active.deadline.stage(Stage.UPLOAD):
                        options = await run_until_cancelled(
                            reading,
                            active.cancellation.wait(),
                            upload.watch_rate(),
                            self._ending.wait_for_cut_off(),
                        )
                        if not options.has_references:
                            return options
                        return await run_until_cancelled(
                            self._clips.load(options, active.folder, upload, active.owner),
                            *self._make_cancel_signals(active),
                        )
        except TimeoutError as error:
            raise active.timeout_error() from error

    async def _run(
        self,
        active: _ActiveRequest,
        job: GenerationJob,
        on_update: OnProgressUpdate,
        on_sound: OnSound | None = None,
    ) -> JobResult:
        if self._mixes:
            return await self._service.mix(job, active.deadline, on_update)
        return await self._service.run(job, active.deadline, on_update, on_sound)

    async def _send_files(
        self, active: _ActiveRequest, job: GenerationJob, send: Send, *, zipped: bool
    ) -> None:
        """Run the job, unless the caller disconnects, and send its files."""
        working = self._run(active, job, lambda update: None)
        receive = active.request.receive
        try:
            async with active.deadline.enforce():
                result = await run_until_cancelled(working, *self._make_cancel_signals(active))
                response = await asyncio.to_thread(file_response, result, zipped=zipped)
        except TimeoutError as error:
            raise active.timeout_error() from error
        # A caller who stops reading must not hold files for ever.
        async with asyncio.timeout(self._settings.request_timeout_seconds):
            await response(active.request.scope, receive, send)

    async def _send_events(self, active: _ActiveRequest, job: GenerationJob, send: Send) -> None:
        """Run the job, and send its progress and its outcome as events.

        Raises:
            OutputError: the files would be larger than all results that are kept.
            FoleyError: the job was refused before the first event.
        """
        self._results.check_room(job.measure_least_result())
        events = EventStream()
        working = asyncio.create_task(self._run_with_events(active, job, events))
        try:
            async with active.deadline.enforce(LAST_EVENT_SECONDS):
                if not await events.wait_until_begun():
                    await working  # raises the error with which the job was refused
                await events.send_to(send)
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def _run_with_events(
        self, active: _ActiveRequest, job: GenerationJob, events: EventStream
    ) -> None:
        """Run the job; its last event is the result or the error.

        Raises:
            FoleyError: the job was refused before the first event.
        """
        working = self._run_and_store(active, job, events)
        try:
            async with active.deadline.enforce():
                await run_until_cancelled(working, *self._make_cancel_signals(active))
        except TimeoutError as error:
            if not events.begun:
                raise active.timeout_error() from error
            events.put("error", tell_error(active.request.scope, active.timeout_error()))
        except Exception as error:
            if not events.begun:
                raise
            events.put("error", tell_error(active.request.scope, error))
        finally:
            events.close()

    def _make_cancel_signals(self, active: _ActiveRequest) -> tuple[Coroutine[Any, Any, str], ...]:
        """Return what ends the work on a request whose body was read, beside its deadline."""
        return (
            _wait_for_disconnect(active.request.receive),
            active.cancellation.wait(),
            self._ending.wait_for_cut_off(),
        )

    async def _run_and_store(
        self, active: _ActiveRequest, job: GenerationJob, events: EventStream
    ) -> None:
        estimator = ProgressEstimator()

        def on_update(update: ProgressUpdate) -> None:
            if not events.begun:
                events.put("accepted", {"request_id": job.request_id})
            events.put("progress", estimator.describe(update))

        url = f"{active.request.scope.get('root_path', '')}/v1/results/{job.request_id}"

        async def on_sound(file: PieceFile) -> None:
            event = sound_event(file, url)
            store = self._results.store
            await asyncio.to_thread(store, active.owner, job.request_id, [file.path])
            events.put("sound", event)

        result = await self._run(active, job, on_update, on_sound)
        event = result_event(result, url, self._results.keep_seconds)
        paths = [file.path for file in result.files]
        await asyncio.to_thread(self._results.store, active.owner, job.request_id, paths)
        events.put("result", event)


def _get_accept(request: Request) -> str:
    """Return what the caller accepts."""
    if request.url.path.endswith(EVENTS_PATH):
        return sse.MEDIA_TYPE
    return ", ".join(request.headers.getlist("accept"))


async def _wait_for_disconnect(receive: Receive) -> str:
    """Wait until the caller disconnects; returns a reason for `run_until_cancelled`.

    It must not be called before the body of the request was read.
    """
    while (await receive())["type"] != "http.disconnect":
        pass
    return "the caller left"

"""The HTTP interface of one API process: what each path does."""

import asyncio
from pathlib import Path

import structlog
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send

from foley.errors import FoleyError, NotFoundError, RequestTimeoutError
from foley.types import Stage
from runners import metrics
from runners.http import openapi, responses
from runners.http.forms import read_order
from runners.http.sse import EventStream
from runners.jobs.cancellation import CancellationRegistry, CancellationToken
from runners.jobs.deadline import Deadline, disconnected, run_until_cancelled
from runners.jobs.job import AUDIO_FORMATS, MEDIA_TYPES, GenerationJob
from runners.jobs.progress import Pace
from runners.jobs.results import Results
from runners.jobs.run import GenerationService
from runners.jobs.scratch import Scratch
from runners.messages import ProgressUpdate
from runners.settings import Settings
from runners.status import INTERNAL_CODE, INTERNAL_MESSAGE, public_message, retry_after

log = structlog.get_logger(__name__)

# An answer whose caller has stopped reading is broken off so long after the time of its request.
LAST_EVENT_SECONDS = 5.0


class Endpoints:
    """Answer requests; `ErrorMiddleware` has given each an id and an owner."""

    def __init__(
        self,
        settings: Settings,
        service: GenerationService,
        scratch: Scratch,
        in_flight: CancellationRegistry,
        results: Results,
    ) -> None:
        self._settings = settings
        self._service = service
        self._scratch = scratch
        self._in_flight = in_flight
        self._results = results

    async def generate(self, scope: Scope, receive: Receive, send: Send) -> None:
        """POST /v1/generate: the file, or events; nothing of the work is left on disk."""
        clock = Deadline(self._settings.request_timeout_seconds)
        request = Request(scope, receive)
        with (
            self._service.admit(),
            self._scratch.workspace() as folder,
            self._in_flight.enter(scope["foley.owner"], scope["foley.request_id"]) as flight,
        ):
            order = await self._read(request, folder, clock, flight)
            if order.streamed:
                await self._stream(request, order, folder, clock, flight, send)
                return
            response = await self._answer(request, order, folder, clock, flight)
            # A caller who stops reading must not hold place and files for ever.
            async with asyncio.timeout(self._settings.request_timeout_seconds):
                await response(scope, receive, send)

    async def result(self, request: Request) -> Response:
        """GET /v1/results/{request_id}/{file}."""
        path = await asyncio.to_thread(
            self._results.find,
            request.scope["foley.owner"],
            request.path_params["request_id"],
            request.path_params["file"],
        )
        return _KeptFile(
            path,
            media_type=MEDIA_TYPES[path.suffix[1:]],
            filename=path.name,
            content_disposition_type="inline",
            headers={"Cache-Control": "private", "X-Content-Type-Options": "nosniff"},
        )

    async def cancel(self, request: Request) -> Response:
        """POST /v1/requests/{request_id}/cancel."""
        owner, request_id = request.scope["foley.owner"], request.path_params["request_id"]
        if not self._in_flight.cancel(owner, request_id):
            raise NotFoundError("no request of this id is being worked on")
        return JSONResponse({"cancelled": True})

    async def models(self, _request: Request) -> Response:
        """GET /v1/models: what is served, under which licence."""
        model = await self._service.ask_model()
        return JSONResponse({"models": [model.public()]})

    async def metrics(self, _request: Request) -> Response:
        """GET /metrics."""
        text = await asyncio.to_thread(metrics.exposition)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    async def document(self, _request: Request) -> Response:
        """GET /docs.json, in place of BentoML's, which knows nothing of forms and errors."""
        return JSONResponse(openapi.document(self._settings))

    async def _read(
        self, request: Request, folder: Path, clock: Deadline, flight: CancellationToken
    ) -> GenerationJob:
        reading = read_order(request, folder, max_bytes=self._settings.max_upload_bytes)
        try:
            async with asyncio.timeout(clock.left_seconds):
                with clock.stage(Stage.UPLOAD):
                    return await run_until_cancelled(reading, flight.cancelled())
        except TimeoutError as error:
            raise _late(clock) from error

    async def _answer(
        self,
        request: Request,
        order: GenerationJob,
        folder: Path,
        clock: Deadline,
        flight: CancellationToken,
    ) -> Response:
        """Fill the order within the time allowed, and while the caller stays."""
        request_id = request.scope["foley.request_id"]
        filling = self._service.run(order, folder, clock, request_id, lambda update: None)
        try:
            async with asyncio.timeout(clock.left_seconds):
                cancel_signals = (disconnected(request.receive), flight.cancelled())
                filled = await run_until_cancelled(filling, *cancel_signals)
                return await asyncio.to_thread(responses.answer, filled)
        except TimeoutError as error:
            raise _late(clock) from error

    async def _stream(
        self,
        request: Request,
        order: GenerationJob,
        folder: Path,
        clock: Deadline,
        flight: CancellationToken,
        send: Send,
    ) -> None:
        """Tell how the order is filled, and where its files are."""
        self._results.check_room(_least_bytes(order))
        events = EventStream()
        working = asyncio.create_task(self._tell(request, order, folder, clock, flight, events))
        try:
            async with asyncio.timeout(clock.left_seconds + LAST_EVENT_SECONDS):
                await events.send_to(send)
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def _tell(
        self,
        request: Request,
        order: GenerationJob,
        folder: Path,
        clock: Deadline,
        flight: CancellationToken,
        events: EventStream,
    ) -> None:
        """Tell everything about one order; the last event says what came of it."""
        scope, pace = request.scope, Pace()
        owner, request_id = scope["foley.owner"], scope["foley.request_id"]

        def on_update(update: ProgressUpdate) -> None:
            events.tell("progress", pace.described(update))

        async def fill() -> None:
            filled = await self._service.run(order, folder, clock, request_id, on_update)
            url = f"{request.scope.get('root_path', '')}/v1/results/{request_id}"
            result = responses.result(filled, url, self._results.keep_seconds)
            files = [file.path for copies in filled.variations for file in copies]
            await asyncio.to_thread(self._results.keep, owner, request_id, files)
            events.tell("result", result)

        events.tell("accepted", {"request_id": request_id})
        try:
            async with asyncio.timeout(clock.left_seconds):
                await run_until_cancelled(fill(), disconnected(request.receive), flight.cancelled())
        except TimeoutError:
            _tell_error(scope, events, _late(clock))
        except Exception as error:  # noqa: BLE001 - an answer is on its way: its stream tells it
            _tell_error(scope, events, error)
        finally:
            events.end()


class _KeptFile(FileResponse):
    """A file that may be swept between being found and being sent."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except RuntimeError as error:  # Starlette's, before anything is sent
            raise NotFoundError("this result is no longer kept") from error


def _tell_error(scope: Scope, events: EventStream, error: Exception) -> None:
    """Tell an error in the form that all of them have, and to whoever runs the service."""
    code, message = INTERNAL_CODE, INTERNAL_MESSAGE
    if isinstance(error, FoleyError):
        code, message = error.code, public_message(error)
    if message != str(error):
        log.warning("request_failed", code=code, exc_info=error)
    metrics.ERRORS.labels(code).inc()
    scope["foley.code"] = code  # for the log
    told: dict[str, str | int] = {
        "code": code,
        "message": message,
        "request_id": scope["foley.request_id"],
    }
    if isinstance(error, FoleyError) and (seconds := retry_after(error)) is not None:
        told["retry_after_seconds"] = seconds
    events.tell("error", {"error": told})


def _late(clock: Deadline) -> RequestTimeoutError:
    return RequestTimeoutError(
        f"the request took longer than {clock.limit_seconds:g} s, and was dropped"
    )


def _least_bytes(order: GenerationJob) -> int:
    """What the files of an order take at least: the clip's picture, once for each variation."""
    if order.format in AUDIO_FORMATS:
        return 0
    return order.request.num_variations * order.clip.stat().st_size

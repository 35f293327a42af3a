"""The BentoML service: `bentoml serve service:FoleyApi --timeout-graceful-shutdown 30`.

The option bounds SIGTERM: without it a caller who stops reading keeps the process for ever.

    client -- HTTP --> FoleyApi (workers on CPUs: read, check, decode, mux)
                          |  one call for each request; frames and sounds as files in shared memory
                       GpuRunner (one process: owns the model)

BentoML 1.4.39 needs four precautions, marked (1) to (4) below:
(1) its client between services closes after 100 calls or 300 s, and kills the calls in flight;
(2) its readiness probe hangs while a dependency loads, and abandoned probes then block SIGTERM;
(3) SIGTERM removes the runner's socket at once, so a request's second call to it fails;
(4) several workers behind one socket get uneven shares.
"""

# BentoML ships no types that strict checking could follow:
# mypy: disallow-untyped-decorators=False

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import bentoml
import structlog
from bentoml.exceptions import BentoMLConfigException
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from foley.errors import ConfigError, FoleyError, ServerError
from runners import openapi
from runners.desk import Desk
from runners.errors import CancelledRequestError, NotReadyError, RequestTimeoutError
from runners.exchange import Scratch
from runners.front import Front
from runners.log import configure_logging
from runners.messages import Job, Made, ModelStatus, Report
from runners.orders import read_order
from runners.patience import Stopwatch, unless_disconnected
from runners.settings import load_settings

log = structlog.get_logger(__name__)

try:
    SETTINGS = load_settings()
except ConfigError as error:  # BentoML shows its own kind as one line, others as a traceback
    raise BentoMLConfigException(str(error)) from None
COMMON: dict[str, Any] = {
    # Our own limit comes first and says so in our form; BentoML's is the net below it.
    "traffic": {"timeout": SETTINGS.request_timeout_seconds + 30},
    "logging": {"access": {"enabled": False}},  # `Front` logs each request
}


@bentoml.service(
    workers=1,  # (4)
    runner_connection={"max_age": 1e9, "max_requests": 10**9},  # (1)
    # OpenMP's threads spin while they wait, which starves them where others use the same cores, as
    # decoding does: on two cores beside three busy processes a clip took 11 s instead of 5 s.
    envs=[{"name": "GOMP_SPINCOUNT", "value": "1000"}],
    **COMMON,
)
class GpuRunner:
    """Owns the model."""

    def __init__(self) -> None:
        # Not above: it imports torch, which building a bento must not need.
        from runners.worker import start_worker

        configure_logging(SETTINGS.log_level)
        self.worker = start_worker(SETTINGS)

    @bentoml.api
    async def generate(self, job: Job) -> AsyncGenerator[str, None]:
        """Make the sounds of one request; lines of JSON, one `Report` each, the outcome last."""
        loop = asyncio.get_running_loop()
        reports: asyncio.Queue[Report] = asyncio.Queue()

        def tell(report: Report) -> None:
            loop.call_soon_threadsafe(reports.put_nowait, report)

        try:
            outcome = self.worker.submit(job, lambda update: tell(Report(update=update)))
        except FoleyError as error:
            yield Report(error=(error.code, str(error))).line()
            return
        outcome.add_done_callback(lambda done: tell(_report_of(done)))
        try:
            while True:
                report = await reports.get()
                yield report.line()
                if report.update is None:
                    return
        finally:
            if not outcome.done():  # whoever asked has left
                self.worker.cancel(job.id)

    @bentoml.api
    async def cancel(self, job_id: str) -> bool:
        """Drop a job, waiting or running."""
        return self.worker.cancel(job_id)

    @bentoml.api
    async def status(self) -> ModelStatus:
        """What is loaded, and whether it is warm."""
        return self.worker.status

    @bentoml.on_shutdown
    def stop(self) -> None:
        """Drop what is left when the connections are drained."""
        self.worker.stop(timeout_seconds=5)


class Generate:
    """POST /v1/generate, an ASGI application: its files must outlive the sending of the answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        await bentoml.get_current_service().generate(scope, receive, send)


async def document(_request: Request) -> Response:
    """GET /docs.json, in place of BentoML's, which knows nothing of forms, headers and errors."""
    return JSONResponse(openapi.document(SETTINGS))


async def models(_request: Request) -> Response:
    """GET /v1/models: what is served, under which licence."""
    model = await bentoml.get_current_service().desk.ask_model()
    return JSONResponse({"models": [model.public()]})


ROUTES = Starlette(
    routes=[
        Route("/v1/generate", Generate(), methods=["POST"]),
        Route("/v1/models", models),
        Route("/docs.json", document),
    ]
)


@bentoml.service(
    workers=SETTINGS.api_workers,
    runner_probe={"enabled": False},  # (2): `__is_ready__` probes instead
    **COMMON,
)
@bentoml.asgi_app(ROUTES)
class FoleyApi:
    """Video in, the same video with synchronised 48 kHz sound out."""

    gpu = bentoml.depends(GpuRunner)

    def __init__(self) -> None:
        configure_logging(SETTINGS.log_level)
        self.scratch = Scratch(SETTINGS.scratch_root)
        self.desk = Desk(SETTINGS, self.gpu)

    @bentoml.on_startup
    async def import_media(self) -> None:
        """Import the media code beside answering probes: it takes seconds."""
        self.media = asyncio.create_task(asyncio.to_thread(_import_media))

    @bentoml.on_shutdown
    def close(self) -> None:
        """Leave nothing behind."""
        self.scratch.close()

    async def __is_ready__(self) -> bool:
        """Whether requests can be served; raises what says why not, and never waits for loading."""
        if not self.media.done():
            raise NotReadyError("the service is starting")
        self.media.result()
        await self.desk.ask_model()
        return True

    async def generate(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one POST /v1/generate, and remove all that it left on disk."""
        with self.desk.place(), self.scratch.workspace() as folder:
            response = await self.respond(Request(scope, receive), folder)
            # A caller who stops reading must not hold place and files for ever.
            async with asyncio.timeout(SETTINGS.request_timeout_seconds):
                await response(scope, receive, send)

    async def respond(self, request: Request, folder: Path) -> Response:
        """Read the order and fill it, within the time allowed and while the caller stays."""
        from runners import answers

        clock = Stopwatch(SETTINGS.request_timeout_seconds)
        request_id = request.scope["foley.request_id"]
        try:
            async with asyncio.timeout(clock.left_seconds):
                with clock.stage("upload"):
                    order = await read_order(request, folder, max_bytes=SETTINGS.max_upload_bytes)
                filling = self.desk.fill(order, folder, clock, request_id, lambda update: None)
                filled = await unless_disconnected(request.receive, filling)
                return await asyncio.to_thread(answers.answer, filled)
        except TimeoutError as error:
            raise RequestTimeoutError(
                f"the request took longer than {clock.limit_seconds:g} s, and was dropped"
            ) from error


FoleyApi.add_asgi_middleware(Front)  # type: ignore[attr-defined]


def _report_of(done: "Future[Made]") -> Report:
    """What a job's outcome is told as."""
    if done.cancelled():
        return Report(error=(CancelledRequestError.code, "the request was cancelled"))
    error = done.exception()
    if error is None:
        return Report(made=done.result())
    if isinstance(error, FoleyError):
        return Report(error=(error.code, str(error)))
    log.error("job_failed", exc_info=error)
    return Report(error=(ServerError.code, "something went wrong inside the model's process"))


def _import_media() -> None:
    from runners import answers  # noqa: F401 - imports torch and av

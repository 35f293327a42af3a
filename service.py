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
from typing import Any

import bentoml
import structlog
from bentoml.exceptions import BentoMLConfigException

from foley.errors import CancelledRequestError, ConfigError, FoleyError, NotReadyError, ServerError
from runners.auth import ApiKeys
from runners.grpc.server import RpcServer
from runners.grpc.servicer import FoleyServicer
from runners.handoff import MAX_FRAMES_BYTES
from runners.http.generate import GenerateEndpoint
from runners.http.handlers import Handlers
from runners.http.health import HealthCheck
from runners.http.middleware import ErrorMiddleware
from runners.http.routes import build_routes
from runners.jobs.cancellation import CancellationRegistry
from runners.jobs.results import ResultStore
from runners.jobs.run import GenerationService
from runners.jobs.scratch import Common, Scratch
from runners.logs import configure_logging
from runners.messages import ModelStatus, RunnerEvent, RunnerRequest, RunnerResult
from runners.page.proxy import PageHost
from runners.sandbox.fork_server import SandboxLimits
from runners.sandbox.pool import Sandbox
from runners.settings import child_environment, load_settings
from runners.tracing import JobTrace, configure_tracing, end_tracing

log = structlog.get_logger(__name__)

try:
    SETTINGS = load_settings()
except ConfigError as error:  # BentoML shows its own kind as one line, others as a traceback
    raise BentoMLConfigException(str(error)) from None
BOTH: dict[str, Any] = {
    # Our own limit comes first and says so in our form; BentoML's is the net below it.
    "traffic": {"timeout": SETTINGS.request_timeout_seconds + 30},
    "logging": {"access": {"enabled": False}},  # `ErrorMiddleware` logs each request
}


@bentoml.service(
    workers=1,  # (4)
    runner_connection={"max_age": 1e9, "max_requests": 10**9},  # (1)
    # OpenMP's threads spin while they wait, which starves them where others use the same cores, as
    # decoding does: on two cores beside three busy processes a clip took 11 s instead of 5 s.
    envs=[{"name": "GOMP_SPINCOUNT", "value": "1000"}],
    **BOTH,
)
class GpuRunner:
    """Owns the model."""

    def __init__(self) -> None:
        # Not above: it imports torch, which building a bento must not need.
        from runners.worker.worker import start_worker

        configure_logging(SETTINGS.log_level)
        configure_tracing("GpuRunner")
        self.worker = start_worker(SETTINGS)

    @bentoml.api
    async def generate(self, job: RunnerRequest) -> AsyncGenerator[str, None]:
        """Make the sounds of one request; lines of JSON, one `RunnerEvent` each, the outcome last."""
        loop = asyncio.get_running_loop()
        reports: asyncio.Queue[RunnerEvent] = asyncio.Queue()
        trace = JobTrace(job)

        def tell(report: RunnerEvent) -> None:
            if report.update is not None:
                trace.update(report.update)
            loop.call_soon_threadsafe(reports.put_nowait, report)

        try:
            outcome = self.worker.submit(job, lambda update: tell(RunnerEvent(update=update)))
        except FoleyError as error:
            yield RunnerEvent.of(error).line()
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
            trace.end(outcome)

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
        end_tracing()


# BentoML makes the instance in each process after this: the routes find it at each request.
ROUTES = build_routes(bentoml.get_current_service, SETTINGS.health_path)


@bentoml.service(
    workers=SETTINGS.api_workers,
    runner_probe={"enabled": False},  # (2): `__is_ready__` probes instead
    metrics={"enabled": False},  # one label is the path; `runners.metrics` counts by route
    **BOTH,
)
@bentoml.asgi_app(ROUTES)
class FoleyApi:
    """Video in, the same video with synchronised 48 kHz sound out."""

    gpu = bentoml.depends(GpuRunner)

    def __init__(self) -> None:
        configure_logging(SETTINGS.log_level)
        configure_tracing("FoleyApi")
        self.scratch = Scratch(SETTINGS.scratch_root)
        self.common = Common(SETTINGS.scratch_root)
        self.cancellations = CancellationRegistry(self.common.requests)
        self.results = ResultStore(
            self.common.results,
            keep_seconds=SETTINGS.keep_results_seconds,
            keep_bytes=SETTINGS.keep_results_bytes,
        )
        self.sandbox = Sandbox(
            SandboxLimits(
                memory_bytes=SETTINGS.decode_memory_bytes,
                cpu_seconds=SETTINGS.decode_cpu_seconds,
                # Of the files that are made, a clip's copy may be the largest, or its frames.
                file_bytes=SETTINGS.max_upload_bytes + MAX_FRAMES_BYTES,
            ),
            child_environment(),
        )
        self.service = GenerationService(SETTINGS, self.gpu, self.sandbox)
        self.generate = GenerateEndpoint(
            SETTINGS, self.service, self.scratch, self.cancellations, self.results
        )
        self.handlers = Handlers(SETTINGS, self.service, self.cancellations, self.results)
        self.health = HealthCheck(self.__is_ready__, SETTINGS)
        self.page = PageHost(self.common.folder, prefix="/ui")
        self.rpc: RpcServer | None = None

    @bentoml.on_startup
    async def start(self) -> None:
        """Prepare the reading of media beside answering probes: it takes seconds."""
        self.media = asyncio.create_task(self.sandbox.start())
        self.sweeping = asyncio.create_task(self.results.sweep_forever())
        await self.health.start()
        self.page.heed_signals()
        if SETTINGS.grpc_port:
            servicer = FoleyServicer(
                SETTINGS, self.service, self.scratch, self.cancellations, ApiKeys(SETTINGS.keys)
            )
            self.rpc = RpcServer(servicer, SETTINGS, check_ready=self.__is_ready__)

    @bentoml.on_shutdown
    async def close(self) -> None:
        """Leave nothing behind."""
        self.page.close()
        await self.health.stop()
        if self.rpc is not None:
            await self.rpc.stop()
        self.sweeping.cancel()
        self.sandbox.close()
        self.scratch.close()
        self.common.close()
        await asyncio.to_thread(end_tracing)

    async def __is_ready__(self) -> bool:
        """Whether requests can be served; raises what says why not, and never waits for loading."""
        if not self.media.done():
            raise NotReadyError("the service is starting")
        self.media.result()
        if self.rpc is not None:
            self.rpc.check()
        await self.service.ask_model()
        return True


FoleyApi.add_asgi_middleware(  # type: ignore[attr-defined]
    ErrorMiddleware, keys=ApiKeys(SETTINGS.keys), health_path=SETTINGS.health_path
)


def _report_of(done: "Future[RunnerResult]") -> RunnerEvent:
    """What a job's outcome is told as."""
    if done.cancelled():
        return RunnerEvent.of(CancelledRequestError("the request was cancelled"))
    error = done.exception()
    if error is None:
        return RunnerEvent(made=done.result())
    if isinstance(error, FoleyError):
        return RunnerEvent.of(error)
    log.error("job_failed", exc_info=error)
    return RunnerEvent.of(ServerError("something went wrong inside the model's process"))

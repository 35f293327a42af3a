"""The BentoML service: `bentoml serve service:FoleyApi --timeout-graceful-shutdown 30`.

The option bounds the shutdown after SIGTERM: without it, a caller who stops reading keeps the
process alive for ever.

    client -- HTTP, gRPC --> FoleyApi (processes on CPUs: receive, check, decode, mux)
                          |  one call for each request, from its admission to its outcome;
                          |  frames and waveforms as files in shared memory
                       GpuRunner (one process: admits requests, owns the model)

With `FOLEY_MODEL=none` there is no GpuRunner, and FoleyApi accepts jobs for other machines.

BentoML 1.4.39 needs four precautions, marked (1) to (4) below:
(1) its client between services closes after 100 calls or 300 s, and kills the calls in flight;
(2) its readiness probe hangs while a dependency loads, and abandoned probes then block SIGTERM;
(3) SIGTERM removes the runner's socket at once, so a request's second call to it fails, and so
    does the first of an upload under way, unless the socket has a second name;
(4) several workers behind one socket get uneven shares.
"""

# The decorators of BentoML have no types.
# mypy: disallow-untyped-decorators=False

import asyncio
import contextlib
import functools
import importlib.util
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import bentoml
from starlette.middleware.cors import CORSMiddleware

from foley.errors import ConfigError, NotReadyError
from foley.marks.mark import load_marks
from runners.auth import ApiKeys
from runners.browser import BrowserHeaders
from runners.durable.reception import JobReception
from runners.durable.secret import load_secret, read_job_key
from runners.editor.files import EditorFiles
from runners.grpc.jobs import JobServicer
from runners.grpc.server import GrpcServer
from runners.grpc.servicer import FoleyServicer
from runners.handoff import MAX_FRAMES_BYTES
from runners.http.connection import end_connections, use_bounded_connections
from runners.http.generate import GenerateEndpoint
from runners.http.handlers import Handlers
from runners.http.health import HealthCheck
from runners.http.jobs import JobHandlers, build_job_routes
from runners.http.middleware import ErrorMiddleware
from runners.http.root_path import RootPath
from runners.http.routes import CORS, build_routes
from runners.http.uploads import UploadHandlers, build_upload_routes
from runners.http.webhooks import WebhookHandlers, build_webhook_routes
from runners.jobs.cancellation import CancellationRegistry
from runners.jobs.clip_url import ClipLoader
from runners.jobs.ending import Ending
from runners.jobs.intake import make_intake
from runners.jobs.marks import load_service_marks
from runners.jobs.results import ResultStore
from runners.jobs.run import GenerationService
from runners.jobs.scratch import Scratch, SharedScratch
from runners.logs import configure_logging
from runners.messages import ModelStatus, RunnerRequest
from runners.page.proxy import PageProxy
from runners.process import (
    delay_stop_signal,
    end_service_on_failure,
    end_with_launcher,
    find_grace_seconds,
    forbid_tracing,
)
from runners.runner_socket import JsonOnlyMiddleware, KeptSocket, use_json
from runners.sandbox.confinement import require_all_parts
from runners.sandbox.fork_server import SandboxLimits
from runners.sandbox.pool import Sandbox
from runners.settings import child_environment, forget_secrets, load_settings, switch_telemetry_off
from runners.stop_signals import EXIT_STATUS, keep_stop_signals
from runners.tracing import configure_tracing, end_tracing

try:
    SETTINGS = load_settings()
    if SETTINGS.sandbox == "required":
        require_all_parts()
    if SETTINGS.jobs_dir is not None and importlib.util.find_spec("dbos") is None:
        raise ConfigError("FOLEY_JOBS_DIR needs the extra 'jobs', which is not installed")
    if SETTINGS.marks_key is not None or SETTINGS.marks_chain is not None:
        load_marks(key=SETTINGS.marks_key, chain=SETTINGS.marks_chain)  # each process reads it
    JOB_SECRET = load_secret(SETTINGS.jobs_dir) if SETTINGS.jobs_dir else None
    HAS_MODEL = SETTINGS.has_model
except ConfigError as error:  # BentoML would show a traceback, and end as if a clip had failed
    print(f"foley: {error}", file=sys.stderr)
    sys.exit(EXIT_STATUS)
switch_telemetry_off()
use_bounded_connections()  # BentoML loads this module before it makes the server
keep_stop_signals()  # and also in the launcher
end_with_launcher()
SHARED_OPTIONS: dict[str, Any] = {
    # Our own time limit passes first, with an error in our form. BentoML's is the last resort.
    "traffic": {"timeout": SETTINGS.find_time_limit(SETTINGS.max_clip_seconds) + 30},
    "logging": {"access": {"enabled": False}},  # `ErrorMiddleware` logs each request
    # Of all addresses: BentoML would make a span for each piece of a body, and export none.
    "tracing": {"excluded_urls": ["."]},
}


def _protect_process() -> None:
    """Keep other processes of this user from the API keys, which were read with the settings."""
    forget_secrets()
    if not SETTINGS.dumpable:
        forbid_tracing()


@bentoml.service(
    workers=1,  # (4)
    runner_connection={"max_age": 1e9, "max_requests": 10**9},  # (1)
    # OpenMP's threads spin while they wait, which starves them where others use the same cores, as
    # decoding does: on two cores beside three busy processes a clip took 11 s instead of 5 s.
    envs=[{"name": "GOMP_SPINCOUNT", "value": "1000"}],
    **SHARED_OPTIONS,
)
class GpuRunner:
    """Admits requests, and runs the model."""

    @end_service_on_failure()
    def __init__(self) -> None:
        # Imported here, because building a bento must not need torch.
        from runners.worker.startup import start_worker

        configure_logging(SETTINGS.log_level)
        configure_tracing("GpuRunner")
        _protect_process()
        self.worker = start_worker(SETTINGS)

    @bentoml.api
    async def generate(self, request: RunnerRequest) -> AsyncGenerator[str, None]:
        """Run one request; yields its `RunnerEvent`s as lines of JSON, the outcome last."""
        from runners.worker.stream import stream_events

        async with contextlib.aclosing(stream_events(self.worker, request)) as events:
            async for event in events:
                yield event.to_line()

    @bentoml.api
    async def cancel(self, request_id: str) -> bool:
        """End a request in any state; returns whether there was one with this id."""
        return self.worker.cancel(request_id)

    @bentoml.api
    async def status(self) -> ModelStatus:
        """Return the state and the description of the model."""
        return self.worker.status

    @bentoml.on_startup
    async def start(self) -> None:
        """Outlive the API's processes, and watch whether this one answers; needs the loop."""
        from runners.worker.ending import wait_for_requests

        grace_seconds = find_grace_seconds()
        delay_stop_signal(lambda: wait_for_requests(SETTINGS.scratch_root, grace_seconds))
        from runners.worker.watchdog import watch

        if SETTINGS.watchdog_seconds:
            self.watching = asyncio.create_task(
                watch(
                    self.worker,
                    silent_seconds=SETTINGS.watchdog_seconds,
                    # Every request of a piece that takes longer has been answered with 504.
                    action_seconds=SETTINGS.request_timeout_seconds + SETTINGS.watchdog_seconds,
                )
            )

    @bentoml.on_shutdown
    def stop(self) -> None:
        """Cancel the requests that are left after the connections were drained."""
        self.worker.stop(timeout_seconds=5)
        end_tracing()


GpuRunner.add_asgi_middleware(JsonOnlyMiddleware)  # type: ignore[attr-defined]

# BentoML makes the instance of `FoleyApi` later, in each process: routes look it up when called.
ROUTES = build_routes(
    bentoml.get_current_service,
    SETTINGS.health_path,
    [
        *build_job_routes(bentoml.get_current_service),
        *build_webhook_routes(bentoml.get_current_service),
        *build_upload_routes(bentoml.get_current_service),
    ]
    if SETTINGS.jobs_dir
    else (),
)


@bentoml.service(
    workers=SETTINGS.api_workers,
    runner_probe={"enabled": False},  # (2): `__is_ready__` probes instead
    metrics={"enabled": False},  # one label is the path; `runners.metrics` counts by route
    **SHARED_OPTIONS,
)
@bentoml.asgi_app(ROUTES)
class FoleyApi:
    """Takes a clip over HTTP or gRPC, and returns it with synchronised 48 kHz sound."""

    gpu = bentoml.depends(GpuRunner) if HAS_MODEL else None

    @end_service_on_failure()
    def __init__(self) -> None:
        configure_logging(SETTINGS.log_level)
        configure_tracing("FoleyApi")
        _protect_process()
        self.scratch = Scratch(SETTINGS.scratch_root, SETTINGS.key_share)
        self.intake = make_intake(SETTINGS)
        self.clips = ClipLoader(SETTINGS, find_sound=self._find_sound)
        self.ending = Ending(find_grace_seconds())
        self.common = SharedScratch(SETTINGS.scratch_root)
        self.cancellations = CancellationRegistry(self.common.requests)
        self.results = ResultStore(
            self.common.results,
            keep_seconds=SETTINGS.keep_results_seconds,
            keep_bytes=SETTINGS.keep_results_bytes,
        )
        self.sandbox = Sandbox(
            SandboxLimits(
                memory_bytes=SETTINGS.decode_memory_bytes,
                # The task itself ends earlier, where it has decoded less; see `check_cpu`.
                cpu_seconds=SETTINGS.decode_cpu_limit,
                # The largest file that is written may be a copy of the clip, its frames or a sound.
                file_bytes=SETTINGS.max_upload_bytes + MAX_FRAMES_BYTES + SETTINGS.max_sound_bytes,
                is_confined=SETTINGS.sandbox != "off",
            ),
            child_environment(),
            key_share=SETTINGS.key_share,
        )
        self.runner_socket: KeptSocket | None = None
        if HAS_MODEL:
            use_json(FoleyApi.dependencies["gpu"])
            self.runner_socket = KeptSocket(FoleyApi.dependencies["gpu"])
        marks = load_service_marks(SETTINGS)
        self.service = GenerationService(SETTINGS, self.gpu, self.scratch, self.sandbox, marks)
        self.generate, self.mix = (
            GenerateEndpoint(
                SETTINGS,
                self.service,
                self.scratch,
                self.intake,
                self.clips,
                self.cancellations,
                self.results,
                self.ending,
                mixes=mixes,
            )
            for mixes in (False, True)
        )
        self.reception = self._make_jobs()
        self.handlers = Handlers(
            SETTINGS,
            self.service,
            self.cancellations,
            self.results,
            self.reception.jobs.queue.count_unfinished if self.reception is not None else None,
        )
        self.job_handlers: JobHandlers | None = None
        self.webhook_handlers: WebhookHandlers | None = None
        self.upload_handlers: UploadHandlers | None = None
        if self.reception is not None:
            self.job_handlers = JobHandlers(SETTINGS, self.reception)
            self.webhook_handlers = WebhookHandlers(self.reception.jobs.queue.webhooks)
            self.upload_handlers = UploadHandlers(
                SETTINGS, self.reception.jobs.uploads, self.intake, self.ending
            )
        self.health = HealthCheck(self.__is_ready__, SETTINGS)
        self.page = PageProxy(self.common.folder, prefix="/ui", ending=self.ending)
        self.editor = EditorFiles(SETTINGS.frame_ancestors)
        self.grpc_server: GrpcServer | None = None

    def _find_sound(self, owner: str, result_id: str, name: str | None) -> Path | None:
        """Return a file of an earlier request or job of an owner; None if there is none."""
        found = self.results.find_sound(owner, result_id, name)
        if found is None and self.reception is not None:
            return self.reception.jobs.find_sound(owner, result_id, name)
        return found

    def _make_jobs(self) -> JobReception | None:
        if SETTINGS.jobs_dir is None:
            return None
        # Imported here, because the queue's library takes a second, and is an extra.
        from runners.durable.service import JobService

        return JobReception(
            SETTINGS,
            JobService(SETTINGS),
            self.intake,
            self.clips,
            self.ending,
            self.cancellations,
        )

    @bentoml.on_startup
    async def start(self) -> None:
        """Start everything that needs the event loop; the sandbox takes seconds, in background."""
        # First, since others add to the handlers.
        delay_stop_signal(self.ending.drain, end_connections)
        self.sandbox_start = asyncio.create_task(self.sandbox.start())
        self.asking = asyncio.create_task(self.service.watch_runner()) if HAS_MODEL else None
        self.sweeping = asyncio.create_task(self.results.sweep_forever())
        with end_service_on_failure():
            await self.health.start()
        self.page.end_streams_on_stop_signal()
        if self.reception is not None and self.job_handlers is not None:
            self.reception.jobs.start()
            self.job_handlers.end_streams_on_stop_signal()
        if SETTINGS.grpc_port:
            keys = ApiKeys(SETTINGS.keys)
            servicer = FoleyServicer(
                SETTINGS,
                self.service,
                self.scratch,
                self.intake,
                self.clips,
                self.cancellations,
                keys,
                self.ending,
            )
            jobs = None
            if self.reception is not None:
                jobs = JobServicer(SETTINGS, self.reception, keys)
            self.grpc_server = GrpcServer(
                servicer, SETTINGS, keys, jobs=jobs, check_ready=self.__is_ready__
            )

    @bentoml.on_shutdown
    async def close(self) -> None:
        """Stop all servers and child processes, and remove all files."""
        self.page.close()
        if self.reception is not None:
            self.reception.jobs.close()
        await self.health.stop()
        if self.grpc_server is not None:
            await self.grpc_server.stop()
        if self.asking is not None:
            self.asking.cancel()
        self.sweeping.cancel()
        self.sandbox.close()
        self.scratch.close()
        if self.common.close() and self.runner_socket is not None:
            self.runner_socket.remove()
        await asyncio.to_thread(end_tracing)

    def __is_alive__(self) -> bool:
        """Return whether this process, which answers, also hears from the GPU process."""
        return not self.service.is_runner_silent()

    async def __is_ready__(self) -> bool:
        """Return True if requests, or jobs alone, can be served; never waits for the model to load.

        Raises:
            NotReadyError: the service or its model is starting.
            ModelFailedError: the model could not be loaded.
            StorageFullError: no request could be stored.
            EndingError: the process is to end.
        """
        self.ending.check()
        if not self.sandbox_start.done():
            raise NotReadyError("the service is starting")
        self.sandbox_start.result()
        if self.grpc_server is not None:
            self.grpc_server.check()
        self.scratch.check_room()
        if HAS_MODEL:
            await self.service.ask_model()
        return True


# The first one is the outermost.
if SETTINGS.root_path is not None:
    FoleyApi.add_asgi_middleware(  # type: ignore[attr-defined]
        RootPath, root_path=SETTINGS.root_path
    )
FoleyApi.add_asgi_middleware(  # type: ignore[attr-defined]
    BrowserHeaders, frame_ancestors=SETTINGS.frame_ancestors
)
if SETTINGS.origins:
    FoleyApi.add_asgi_middleware(  # type: ignore[attr-defined]
        CORSMiddleware, allow_origins=SETTINGS.origins, **CORS
    )
FoleyApi.add_asgi_middleware(  # type: ignore[attr-defined]
    ErrorMiddleware,
    keys=ApiKeys(
        SETTINGS.keys, functools.partial(read_job_key, JOB_SECRET) if JOB_SECRET else None
    ),
    health_path=SETTINGS.health_path,
    hosts=SETTINGS.hosts,
    origins=SETTINGS.origins,
)

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
import contextlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import bentoml
from bentoml.exceptions import BentoMLConfigException, BentoMLException
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from foley.configs import PRESETS
from foley.errors import ConfigError, FoleyError
from runners import openapi
from runners.errors import (
    BusyError,
    ModelFailedError,
    NotReadyError,
    RequestTimeoutError,
    RunnerLostError,
    revive,
)
from runners.exchange import Scratch, save_frames
from runners.front import Front
from runners.log import configure_logging
from runners.messages import Job, Made, ModelStatus, Outcome
from runners.orders import Order, read_order
from runners.patience import Stopwatch, unless_disconnected
from runners.settings import load_settings

if TYPE_CHECKING:  # it imports av, which building a bento must not need
    from foley.media.source import MediaLimits

try:
    SETTINGS = load_settings()
except ConfigError as error:  # BentoML shows its own kind as one line, others as a traceback
    raise BentoMLConfigException(str(error)) from None
PROBE_SECONDS = 1.0
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
    async def generate(self, job: Job) -> Outcome:
        """Make the sounds of one request."""
        try:
            made = await asyncio.wrap_future(self.worker.submit(job))
            return Outcome(made=made)
        except FoleyError as error:
            return Outcome(error=(error.code, str(error)))

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
    model = await bentoml.get_current_service().ask_model()
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
        self.max_in_house = math.ceil(SETTINGS.max_concurrency / SETTINGS.api_workers)
        self.num_in_house = 0
        self.model: ModelStatus | None = None  # known while it is warm

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
        await self.ask_model()
        return True

    async def ask_model(self) -> ModelStatus:
        """What the runner says of its warm model.

        Raises:
            NotReadyError: it is loading, or its process does not answer.
            ModelFailedError: it could not be loaded.
        """
        try:
            status: ModelStatus = await asyncio.wait_for(self.gpu.status(), PROBE_SECONDS)
        except (TimeoutError, aiohttp.ClientError, BentoMLException) as error:
            self.model = None
            raise NotReadyError("the model is loading") from error
        self.model = status if status.state == "ready" else None
        if status.state == "failed":
            raise ModelFailedError(f"the model could not be loaded ({status.error_code})")
        if status.state != "ready":
            raise NotReadyError("the model is loading")
        return status

    async def generate(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one POST /v1/generate, and remove all that it left on disk."""
        if self.num_in_house >= self.max_in_house:
            raise BusyError(f"{self.max_in_house} requests are being worked on; try again later")
        self.num_in_house += 1
        try:
            with self.scratch.workspace() as folder:
                response = await self.respond(Request(scope, receive), folder)
                # A caller who stops reading must not hold place and files for ever.
                async with asyncio.timeout(SETTINGS.request_timeout_seconds):
                    await response(scope, receive, send)
        finally:
            self.num_in_house -= 1

    async def respond(self, request: Request, folder: Path) -> Response:
        """Read the order and fill it, within the time allowed and while the caller stays."""
        clock = Stopwatch(SETTINGS.request_timeout_seconds)
        try:
            async with asyncio.timeout(clock.left_seconds):
                with clock.stage("upload"):
                    order = await read_order(request, folder, max_bytes=SETTINGS.max_upload_bytes)
                filling = self.fill(order, folder, clock, request.scope["foley.request_id"])
                return await unless_disconnected(request.receive, filling)
        except TimeoutError as error:
            raise RequestTimeoutError(
                f"the request took longer than {clock.limit_seconds:g} s, and was dropped"
            ) from error

    async def fill(self, order: Order, folder: Path, clock: Stopwatch, request_id: str) -> Response:
        """Clip -> frames -> sounds -> files -> answer."""
        from runners import answers, metrics

        model = self.model or await self.ask_model()
        with clock.stage("frames"):
            trimmed = await asyncio.to_thread(decode, order, folder, model.preset)
        made = await self.call_runner(
            Job(
                id=folder.name,
                folder=str(folder),
                request=order.request,
                timeout_seconds=clock.left_seconds,
            )
        )
        clock.seconds.update(made.timings)
        with clock.stage("mux"):
            sounds = await asyncio.to_thread(
                answers.write_sounds, order, folder, made, trimmed=trimmed, limits=media_limits()
            )
        for stage, seconds in clock.seconds.items():
            metrics.STAGE_SECONDS.labels(stage).observe(seconds)
        metrics.AUDIO_SECONDS.inc(made.duration_seconds * len(made.seeds))
        facts = answers.Facts(
            request_id=request_id,
            model=model,
            made=made,
            timings=clock.with_total(),
            # Each sound's file may come with the same sentence.
            notices=list(dict.fromkeys([*made.notices, *(n for s in sounds for n in s.notices)])),
        )
        return await asyncio.to_thread(answers.answer, order, sounds, facts)

    async def call_runner(self, job: Job) -> Made:
        """The runner's work on one job: the one call that a request makes (3)."""
        try:
            outcome: Outcome = await self.gpu.generate(job=job)
        except asyncio.CancelledError:
            # If this call fails too, the runner drops the job when its time is up.
            with contextlib.suppress(TimeoutError, aiohttp.ClientError, BentoMLException):
                await asyncio.wait_for(self.gpu.cancel(job_id=job.id), PROBE_SECONDS)
            raise
        except aiohttp.ClientError as error:
            self.model = None
            raise RunnerLostError("the model's process was lost; try again later") from error
        if outcome.error is not None:
            raise revive(*outcome.error)
        assert outcome.made is not None
        return outcome.made


FoleyApi.add_asgi_middleware(Front)  # type: ignore[attr-defined]


def media_limits() -> "MediaLimits":
    """What the settings accept of a clip."""
    from foley.media.source import MediaLimits

    return MediaLimits(
        max_seconds=SETTINGS.max_clip_seconds,
        max_pixels=SETTINGS.max_clip_pixels,
        max_bytes=SETTINGS.max_upload_bytes,
    )


def decode(order: Order, folder: Path, preset_name: str) -> bool:
    """Leave the clip's frames in the folder, at the sizes that the model's encoders see.

    Returns:
        Whether the clip was trimmed.
    """
    from foley.media.demux import decode_frames
    from foley.media.mux import container_for

    preset = PRESETS[preset_name]
    frames = decode_frames(
        order.clip,
        visual_size=preset.vision.image_size,
        sync_size=preset.synchformer.image_size,
        limits=media_limits(),
        trim=order.trim,
    )
    if order.format != "wav" and order.format != "flac":
        container_for(order.clip, order.format)  # refused now, not after minutes of sampling
    save_frames(frames, folder)
    return frames.trimmed


def _import_media() -> None:
    from runners import answers  # noqa: F401 - imports torch and av

"""An order -> its sounds as files, by the runner's model. HTTP and gRPC fill theirs here.

order ──decode──► frames in the job's folder ──runner──► waveforms there ──write──► files there
"""

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any, Protocol

import aiohttp
from bentoml.exceptions import BentoMLException
from opentelemetry.trace import SpanKind

from foley.errors import (
    BusyError,
    ModelFailedError,
    NotReadyError,
    RunnerLostError,
)
from foley.types import Stage
from runners import metrics, tracing
from runners.jobs.deadline import Deadline
from runners.jobs.job import GenerationJob
from runners.jobs.outputs import JobResult, OutputFile
from runners.messages import ModelStatus, ProgressUpdate, RunnerEvent, RunnerRequest, RunnerResult
from runners.sandbox.pool import Sandbox
from runners.settings import Settings

PROBE_SECONDS = 1.0
RECENT = 16
OnUpdate = Callable[[ProgressUpdate], None]


class Runner(Protocol):
    """The GPU runner, as the API's processes see it."""

    def generate(self, *, job: RunnerRequest) -> AsyncIterator[str]:
        """Lines of JSON, cut anywhere: one `RunnerEvent` each."""

    async def cancel(self, *, job_id: str) -> bool:
        """Drop a job."""

    async def status(self) -> ModelStatus:
        """What is loaded."""


class GenerationService:
    """Fills orders, as many at once as the settings allow this process.

    Attributes:
        num_in_house: requests being worked on.
    """

    def __init__(self, settings: Settings, runner: Runner, sandbox: Sandbox) -> None:
        self._settings = settings
        self._runner = runner
        self._sandbox = sandbox
        self._max_in_house = math.ceil(settings.max_concurrency / settings.api_workers)
        self._model: ModelStatus | None = None  # known while it is warm
        # As the runner measured when it made the latest sound.
        self._next_place_seconds: float | None = None
        self._recent_seconds: deque[float] = deque(maxlen=RECENT)  # of orders that were filled
        self.num_in_house = 0

    async def ask_model(self) -> ModelStatus:
        """What the runner says of its warm model.

        Raises:
            NotReadyError: it is loading, or its process does not answer.
            ModelFailedError: it could not be loaded.
        """
        try:
            status = await asyncio.wait_for(self._runner.status(), PROBE_SECONDS)
        except (TimeoutError, aiohttp.ClientError, BentoMLException) as error:
            self._model = None
            raise NotReadyError("the model is loading") from error
        self._model = status if status.state == "ready" else None
        if status.state == "failed":
            raise ModelFailedError(f"the model could not be loaded ({status.error_code})")
        if status.state != "ready":
            raise NotReadyError("the model is loading")
        return status

    @contextlib.contextmanager
    def admit(self) -> Iterator[None]:
        """A place for one request.

        Raises:
            BusyError: none is free.
        """
        if self.num_in_house >= self._max_in_house:
            busy = BusyError(f"{self._max_in_house} requests are being worked on; try again later")
            busy.retry_after_seconds = self._next_place_seconds
            raise busy
        self.num_in_house += 1
        try:
            yield
        finally:
            self.num_in_house -= 1

    async def run(self, job: GenerationJob, deadline: Deadline, on_update: OnUpdate) -> JobResult:
        """Make the sounds of a job, as files in its folder.

        Cancelling drops the request in the runner too.
        """
        started = time.monotonic()
        model = self._model or await self.ask_model()
        limits = self._media_limits()
        on_update(ProgressUpdate(stage=Stage.DECODE_VIDEO))
        with deadline.stage(Stage.DECODE_VIDEO):
            read = await self._sandbox.run(
                "decode",
                job.folder,
                preset=model.preset,
                container=job.format,
                trim=job.options.trim,
                limits=limits,
            )
        request = RunnerRequest(
            id=job.folder.name,
            priority=job.options.priority,
            folder=str(job.folder),
            request=job.options.generation_request(),
            timeout_seconds=deadline.left_seconds,
        )
        with tracing.span("generate", SpanKind.CLIENT):
            carried = request.model_copy(update={"trace": tracing.carrier()})
            made = await self._call_runner(carried, on_update)
        self._next_place_seconds = made.next_place_seconds
        deadline.seconds.update(made.timings)
        on_update(ProgressUpdate(stage=Stage.MUX))
        with deadline.stage(Stage.MUX):
            written = await self._sandbox.run(
                "write",
                job.folder,
                formats=job.formats,
                sample_rate=made.sample_rate,
                stop_seconds=made.duration_seconds if read["trimmed"] else None,
                limits=limits,
            )
        files = tuple(
            OutputFile(
                variation=variation,
                seed=seed,
                path=job.folder / file["name"],
                container=file["container"],
            )
            for variation, (seed, copies) in enumerate(
                zip(made.seeds, written, strict=True), start=1
            )
            for file in copies
        )
        # Several files may come with the same sentence.
        file_notices = [
            notice for copies in written for file in copies for notice in file["notices"]
        ]
        for stage, seconds in deadline.seconds.items():
            metrics.STAGE_SECONDS.labels(stage).observe(seconds)
        metrics.AUDIO_SECONDS.inc(made.duration_seconds * len(made.seeds))
        self._recent_seconds.append(time.monotonic() - started)
        return JobResult(
            request_id=job.request_id,
            preset=model.preset,
            seeds=made.seeds,
            duration_seconds=made.duration_seconds,
            sample_rate=made.sample_rate,
            timings=deadline.with_total(),
            notices=tuple(dict.fromkeys([*made.notices, *file_notices])),
            files=files,
        )

    def _media_limits(self) -> dict[str, Any]:
        """What the settings accept of a clip: `foley.media.source.MediaLimits` as JSON."""
        return {
            "max_seconds": self._settings.max_clip_seconds,
            "max_pixels": self._settings.max_clip_pixels,
            "max_bytes": self._settings.max_upload_bytes,
            "codecs": self._settings.video_codecs.split(","),
        }

    async def _call_runner(self, job: RunnerRequest, on_update: OnUpdate) -> RunnerResult:
        """The runner's work on one job: the one call that a request makes (3)."""
        try:
            async with contextlib.aclosing(read_reports(self._runner.generate(job=job))) as reports:
                async for report in reports:
                    if report.update is not None:
                        on_update(report.update)
                    elif report.error is not None:
                        raise report.failure()
                    else:
                        assert report.made is not None
                        return report.made
        except asyncio.CancelledError:
            # If this call fails too, the runner drops the job when its time is up.
            with contextlib.suppress(TimeoutError, aiohttp.ClientError, BentoMLException):
                await asyncio.wait_for(self._runner.cancel(job_id=job.id), PROBE_SECONDS)
            raise
        except aiohttp.ClientError as error:
            self._model = None
            raise RunnerLostError("the model's process was lost; try again later") from error
        self._model = None
        raise RunnerLostError("the model's process ended in the midst of the work; try again later")


async def read_reports(chunks: AsyncIterator[str]) -> AsyncGenerator[RunnerEvent, None]:
    """The reports in a stream that BentoML cuts at arbitrary places."""
    rest = ""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split("\n")
        for line in lines:
            yield RunnerEvent.model_validate_json(line)

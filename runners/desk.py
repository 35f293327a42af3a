"""An order -> its sounds as files, by the runner's model. HTTP and gRPC fill theirs here.

order ──decode──► frames in the job's folder ──runner──► waveforms there ──write──► files there
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import aiohttp
from bentoml.exceptions import BentoMLException

from foley.configs import PRESETS
from runners import metrics
from runners.errors import (
    BusyError,
    ModelFailedError,
    NotReadyError,
    RunnerLostError,
)
from runners.exchange import save_frames
from runners.messages import Job, Made, ModelStatus, Report, Update
from runners.orders import Order
from runners.patience import Stopwatch
from runners.settings import Settings

if TYPE_CHECKING:  # they import torch and av, which building a bento must not need
    from foley.media.mux import Written
    from foley.media.source import MediaLimits
    from runners.answers import Facts

PROBE_SECONDS = 1.0
OnUpdate = Callable[[Update], None]


class Runner(Protocol):
    """The GPU runner, as the API's processes see it."""

    def generate(self, *, job: Job) -> AsyncIterator[str]:
        """Lines of JSON, cut anywhere: one `Report` each."""

    async def cancel(self, *, job_id: str) -> bool:
        """Drop a job."""

    async def status(self) -> ModelStatus:
        """What is loaded."""


@dataclass(frozen=True, kw_only=True)
class Filled:
    """What came of an order."""

    order: Order
    variations: "list[tuple[Written, ...]]"  # of each, its files in the order's formats
    facts: "Facts"

    @property
    def sounds(self) -> "list[Written]":
        """One file for each variation, in the format asked for."""
        return [copies[0] for copies in self.variations]


class Desk:
    """Fills orders, as many at once as the settings allow this process.

    Attributes:
        num_in_house: requests being worked on.
    """

    def __init__(self, settings: Settings, runner: Runner) -> None:
        self._settings = settings
        self._runner = runner
        self._max_in_house = math.ceil(settings.max_concurrency / settings.api_workers)
        self._model: ModelStatus | None = None  # known while it is warm
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
    def place(self) -> Iterator[None]:
        """A place for one request.

        Raises:
            BusyError: none is free.
        """
        if self.num_in_house >= self._max_in_house:
            raise BusyError(f"{self._max_in_house} requests are being worked on; try again later")
        self.num_in_house += 1
        try:
            yield
        finally:
            self.num_in_house -= 1

    async def fill(
        self, order: Order, folder: Path, clock: Stopwatch, request_id: str, on_update: OnUpdate
    ) -> Filled:
        """Make the sounds of an order, as files in its folder.

        Cancelling drops the job in the runner too.
        """
        from runners import answers

        model = self._model or await self.ask_model()
        limits = self.media_limits()
        on_update(Update(stage="frames"))
        with clock.stage("frames"):
            trimmed = await asyncio.to_thread(decode, order, folder, model.preset, limits)
        job = Job(
            id=folder.name,
            priority=order.priority,
            folder=str(folder),
            request=order.request,
            timeout_seconds=clock.left_seconds,
        )
        made = await self._call_runner(job, on_update)
        clock.seconds.update(made.timings)
        on_update(Update(stage="files"))
        with clock.stage("mux"):
            variations = await asyncio.to_thread(
                answers.write_sounds, order, folder, made, trimmed=trimmed, limits=limits
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
            notices=list(
                dict.fromkeys(
                    [
                        *made.notices,
                        *(n for copies in variations for w in copies for n in w.notices),
                    ]
                )
            ),
        )
        return Filled(order=order, variations=variations, facts=facts)

    def media_limits(self) -> "MediaLimits":
        """What the settings accept of a clip."""
        from foley.media.source import MediaLimits

        return MediaLimits(
            max_seconds=self._settings.max_clip_seconds,
            max_pixels=self._settings.max_clip_pixels,
            max_bytes=self._settings.max_upload_bytes,
        )

    async def _call_runner(self, job: Job, on_update: OnUpdate) -> Made:
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


async def read_reports(chunks: AsyncIterator[str]) -> AsyncGenerator[Report, None]:
    """The reports in a stream that BentoML cuts at arbitrary places."""
    rest = ""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split("\n")
        for line in lines:
            yield Report.model_validate_json(line)


def decode(order: Order, folder: Path, preset_name: str, limits: "MediaLimits") -> bool:
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
        limits=limits,
        trim=order.trim,
    )
    if order.format != "wav" and order.format != "flac":
        container_for(order.clip, order.format)  # refused now, not after minutes of sampling
    save_frames(frames, folder)
    return frames.trimmed

"""The methods of `foley.v1.FoleyService`."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from foley.errors import NotFoundError, RequestTimeoutError
from foley.types import Stage
from foley.v1.foley_pb2 import (
    Accepted,
    CancelRequest,
    CancelResponse,
    File,
    FileChunk,
    GenerateRequest,
    GenerateResponse,
    GetModelRequest,
    GetModelResponse,
    Progress,
    Result,
    Timing,
)
from foley.v1.foley_pb2_grpc import FoleyServiceServicer
from runners.auth import ApiKeys
from runners.grpc.boundary import Call, boundary
from runners.grpc.upload import read_order
from runners.jobs.cancellation import CancellationRegistry
from runners.jobs.deadline import Deadline, run_until_cancelled
from runners.jobs.job import MEDIA_TYPES, GenerationJob
from runners.jobs.outputs import JobResult, SoundFile
from runners.jobs.progress import Pace
from runners.jobs.run import GenerationService
from runners.jobs.scratch import Scratch
from runners.messages import ProgressUpdate
from runners.settings import Settings

CHUNK_BYTES = 256 * 1024


class FoleyServicer(FoleyServiceServicer):
    """Answers calls; the service does the work."""

    def __init__(
        self,
        settings: Settings,
        service: GenerationService,
        scratch: Scratch,
        in_flight: CancellationRegistry,
        keys: ApiKeys,
    ) -> None:
        self._settings = settings
        self._service = service
        self._scratch = scratch
        self._in_flight = in_flight
        self._keys = keys

    async def Generate(  # noqa: N802
        self, requests: AsyncIterator[GenerateRequest], context: grpc.aio.ServicerContext
    ) -> None:
        """Fill an order while it is told how far it is; then send its files."""
        limit_seconds = self._settings.request_timeout_seconds
        async with boundary(context, "Generate", self._keys) as call:
            remaining_seconds = context.time_remaining()  # None where the caller set no deadline
            if remaining_seconds is not None:
                limit_seconds = min(limit_seconds, remaining_seconds)
            clock = Deadline(limit_seconds)
            with (
                self._service.admit(),
                self._scratch.workspace() as folder,
                self._in_flight.enter(call.owner, call.request_id) as flight,
            ):
                work = self._work(requests, context, call, clock, folder)
                try:
                    async with asyncio.timeout(clock.left_seconds):
                        filled = await run_until_cancelled(work, flight.cancelled())
                except TimeoutError as error:
                    raise RequestTimeoutError(
                        f"the request took longer than {limit_seconds:g} s, and was dropped"
                    ) from error
                # A caller who stops reading must not hold place and files for ever.
                reading_seconds = self._settings.request_timeout_seconds
                try:
                    async with asyncio.timeout(reading_seconds):
                        await _send(filled, context)
                except TimeoutError as error:
                    raise RequestTimeoutError(
                        f"the files were not read within {reading_seconds:g} s"
                    ) from error

    async def GetModel(  # noqa: N802
        self, request: GetModelRequest, context: grpc.aio.ServicerContext
    ) -> GetModelResponse:
        """What is served, under which licence."""
        async with boundary(context, "GetModel", self._keys):
            model = await self._service.ask_model()
            return GetModelResponse(
                preset=model.preset,
                about=model.about,
                revision=model.revision,
                licence=model.licence,
                territory=model.territory,
                num_inference_steps=model.num_inference_steps,
                guidance_scale=model.guidance_scale,
            )

    async def Cancel(  # noqa: N802
        self, request: CancelRequest, context: grpc.aio.ServicerContext
    ) -> CancelResponse:
        """Drop a request, whichever process works on it, and however it was made."""
        async with boundary(context, "Cancel", self._keys) as call:
            if not self._in_flight.cancel(call.owner, request.request_id):
                raise NotFoundError("no request of this id is being worked on")
            return CancelResponse()

    async def _work(
        self,
        requests: AsyncIterator[GenerateRequest],
        context: grpc.aio.ServicerContext,
        call: Call,
        clock: Deadline,
        folder: Path,
    ) -> JobResult:
        """Read the order, and fill it."""
        with clock.stage(Stage.UPLOAD):
            order = await read_order(requests, folder, max_bytes=self._settings.max_upload_bytes)
        await context.write(GenerateResponse(accepted=Accepted(request_id=call.request_id)))
        return await self._fill(order, context, call, clock, folder)

    async def _fill(
        self,
        order: GenerationJob,
        context: grpc.aio.ServicerContext,
        call: Call,
        clock: Deadline,
        folder: Path,
    ) -> JobResult:
        updates: asyncio.Queue[ProgressUpdate | None] = asyncio.Queue()
        pace = Pace()
        filling = asyncio.create_task(
            self._service.run(order, folder, clock, call.request_id, updates.put_nowait)
        )
        filling.add_done_callback(lambda _: updates.put_nowait(None))
        try:
            while (update := await updates.get()) is not None:
                progress = Progress(**pace.described(update))
                await context.write(GenerateResponse(progress=progress))
            return filling.result()
        finally:
            filling.cancel()
            await asyncio.gather(filling, return_exceptions=True)


async def _send(filled: JobResult, context: grpc.aio.ServicerContext) -> None:
    """Tell what came of an order, and send its files."""
    facts = filled.facts
    timings = facts.summary()["timings_seconds"]
    result = Result(
        request_id=facts.request_id,
        model=facts.model.preset,
        duration_seconds=facts.made.duration_seconds,
        sample_rate_hz=facts.made.sample_rate,
        timings=[Timing(stage=stage, seconds=seconds) for stage, seconds in timings.items()],
        notices=facts.notices,
        files=[
            _described(variation, seed, sound)
            for variation, (seed, sound) in enumerate(
                zip(facts.made.seeds, filled.sounds, strict=True), start=1
            )
        ],
    )
    await context.write(GenerateResponse(result=result))
    for index, sound in enumerate(filled.sounds):
        with sound.path.open("rb") as file:
            while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
                chunk = FileChunk(file_index=index, data=data)
                await context.write(GenerateResponse(chunk=chunk))


def _described(variation: int, seed: int, sound: SoundFile) -> File:
    return File(
        variation=variation,
        seed=seed,
        format=sound.container,
        media_type=MEDIA_TYPES[sound.container],
        num_bytes=sound.path.stat().st_size,
    )

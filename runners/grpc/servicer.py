"""The methods of `foley.v1.FoleyService`."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from foley.errors import NotFoundError, RequestTimeoutError
from foley.types import Stage
from foley.v1.foley_pb2 import (
    Accepted,
    Adapter,
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
    Sound,
    Timing,
)
from foley.v1.foley_pb2_grpc import FoleyServiceServicer
from runners.auth import ApiKeys
from runners.grpc.boundary import CallIdentity, guard_call
from runners.grpc.messages import describe_loudness
from runners.grpc.upload import read_upload
from runners.handoff import CLIP
from runners.jobs.cancellation import CancellationRegistry
from runners.jobs.clip_url import ClipLoader
from runners.jobs.deadline import Deadline, run_until_cancelled
from runners.jobs.ending import Ending
from runners.jobs.intake import Intake
from runners.jobs.job import MEDIA_TYPES, GenerationJob
from runners.jobs.outputs import JobResult, PieceFile
from runners.jobs.progress import ProgressEstimator
from runners.jobs.run import GenerationService
from runners.jobs.scratch import Scratch
from runners.messages import ProgressUpdate
from runners.settings import Settings

FILE_CHUNK_BYTES = 256 * 1024


class FoleyServicer(FoleyServiceServicer):
    """Answers the calls; `GenerationService` does the work.

    Args:
        settings: time and size limits.
        service: runs the jobs.
        scratch: has a folder for each request.
        intake: bounds the uploads.
        clips: stores clips that are named by their address.
        registry: of the requests that can be cancelled.
        keys: one of them must come with each call.
        ending: of this process.
    """

    def __init__(
        self,
        settings: Settings,
        service: GenerationService,
        scratch: Scratch,
        intake: Intake,
        clips: ClipLoader,
        registry: CancellationRegistry,
        keys: ApiKeys,
        ending: Ending,
    ) -> None:
        self._settings = settings
        self._service = service
        self._scratch = scratch
        self._intake = intake
        self._clips = clips
        self._registry = registry
        self._keys = keys
        self._ending = ending

    async def Generate(  # noqa: N802
        self, requests: AsyncIterator[GenerateRequest], context: grpc.aio.ServicerContext
    ) -> None:
        """Run a job and send its progress, then its result and its files."""
        limit_seconds = self._settings.request_timeout_seconds
        async with guard_call(context, "Generate", self._keys) as caller:
            self._service.require_runner()  # before anything is received
            self._intake.check_requests(caller.caller)
            remaining_seconds = context.time_remaining()  # None where the caller set no deadline
            if remaining_seconds is not None:
                limit_seconds = min(limit_seconds, remaining_seconds)
            deadline = Deadline(limit_seconds, most_seconds=remaining_seconds)
            with (
                self._ending.accept_work(f"Generate {caller.request_id}"),
                self._scratch.workspace() as folder,
                self._registry.enter(caller.owner, caller.request_id) as cancellation,
            ):
                working = self._receive_and_run(requests, context, caller, deadline, folder)
                try:
                    async with deadline.enforce():
                        result = await run_until_cancelled(
                            working, cancellation.wait(), self._ending.wait_for_cut_off()
                        )
                except TimeoutError as error:
                    raise RequestTimeoutError(
                        f"the request took longer than {deadline.limit_seconds:g} s, and was "
                        "dropped"
                    ) from error
                # A caller who stops reading must not hold files for ever.
                reading_seconds = self._settings.request_timeout_seconds
                try:
                    async with asyncio.timeout(reading_seconds):
                        await _send_result(result, context)
                except TimeoutError as error:
                    raise RequestTimeoutError(
                        f"the files were not read within {reading_seconds:g} s"
                    ) from error

    async def GetModel(  # noqa: N802
        self, request: GetModelRequest, context: grpc.aio.ServicerContext
    ) -> GetModelResponse:
        """Return the model that is served, and its licence."""
        async with guard_call(context, "GetModel", self._keys):
            model = await self._service.ask_model()
            return GetModelResponse(
                preset=model.preset,
                about=model.about,
                prompts=model.prompts,
                revision=model.revision,
                licence=model.licence,
                territory=model.territory,
                num_inference_steps=model.num_inference_steps,
                guidance_scale=model.guidance_scale,
                adapters=[Adapter(**adapter.model_dump()) for adapter in model.adapters],
            )

    async def Cancel(  # noqa: N802
        self, request: CancelRequest, context: grpc.aio.ServicerContext
    ) -> CancelResponse:
        """Cancel a request that any process works on, whether it came over gRPC or HTTP."""
        async with guard_call(context, "Cancel", self._keys) as caller:
            if not self._registry.cancel(caller.owner, request.request_id):
                raise NotFoundError("no request of this id is being worked on")
            return CancelResponse()

    async def _receive_and_run(
        self,
        requests: AsyncIterator[GenerateRequest],
        context: grpc.aio.ServicerContext,
        caller: CallIdentity,
        deadline: Deadline,
        folder: Path,
    ) -> JobResult:
        """Read the upload, and run its job."""
        check_room = self._scratch.check_upload
        with (
            self._intake.receive(caller.caller, check_room) as upload,
            deadline.stage(Stage.UPLOAD),
        ):
            reading = read_upload(
                requests, folder, max_bytes=self._settings.max_upload_bytes, upload=upload
            )
            options = await run_until_cancelled(reading, upload.watch_rate())
            options = await self._clips.load(options, folder, upload, caller.owner)
        job = GenerationJob(
            owner=caller.owner,
            caller=caller.caller,
            request_id=caller.request_id,
            folder=folder,
            options=options,
            format=options.format
            or options.choose_default_format(has_clip=(folder / CLIP).exists()),
        )
        self._scratch.reserve(folder, job.caller, job.measure_least_result())
        with self._intake.counting(caller.caller):
            return await self._run_with_progress(job, context, deadline)

    async def _run_with_progress(
        self, job: GenerationJob, context: grpc.aio.ServicerContext, deadline: Deadline
    ) -> JobResult:
        """Run a job, and send its progress and the pieces of a long sound."""
        # Pieces wait as files: a caller who reads slowly must not fill this process's memory.
        updates: asyncio.Queue[ProgressUpdate | PieceFile | None] = asyncio.Queue()
        estimator = ProgressEstimator()
        accepted = False

        async def on_sound(file: PieceFile) -> None:
            updates.put_nowait(file)

        working = asyncio.create_task(
            self._service.run(job, deadline, updates.put_nowait, on_sound)
        )
        working.add_done_callback(lambda _: updates.put_nowait(None))
        try:
            while (update := await updates.get()) is not None:
                if not accepted:
                    message = Accepted(request_id=job.request_id)
                    await context.write(GenerateResponse(accepted=message))
                    accepted = True
                if isinstance(update, PieceFile):
                    await context.write(GenerateResponse(sound=await _read_piece(update)))
                    update.path.unlink()
                    continue
                progress = Progress(**estimator.describe(update))
                await context.write(GenerateResponse(progress=progress))
            return working.result()
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


async def _read_piece(file: PieceFile) -> Sound:
    piece = file.piece
    return Sound(
        variation=piece.variation,
        number=piece.number,
        start_seconds=piece.start_seconds,
        duration_seconds=piece.duration_seconds,
        media_type=MEDIA_TYPES["wav"],
        data=await asyncio.to_thread(file.path.read_bytes),
    )


async def _send_result(result: JobResult, context: grpc.aio.ServicerContext) -> None:
    """Send the metadata of a result, and then its files in chunks."""
    timings = result.rounded_timings()
    message = Result(
        request_id=result.request_id,
        model=result.preset,
        duration_seconds=result.duration_seconds,
        sample_rate_hz=result.sample_rate,
        timings=[Timing(stage=stage, seconds=seconds) for stage, seconds in timings.items()],
        device_seconds=result.device_seconds,
        notices=result.notices,
        files=[
            File(
                variation=file.variation,
                layer=file.layer,
                speech_seconds=file.speech_seconds,
                seed=file.seed,
                format=file.container,
                media_type=MEDIA_TYPES[file.container],
                num_bytes=file.path.stat().st_size,
                loudness=describe_loudness(file.loudness),
            )
            for file in result.files
        ],
    )
    await context.write(GenerateResponse(result=message))
    for index, output in enumerate(result.files):
        with output.path.open("rb") as file:
            while data := await asyncio.to_thread(file.read, FILE_CHUNK_BYTES):
                chunk = FileChunk(file_index=index, data=data)
                await context.write(GenerateResponse(chunk=chunk))

"""Run one generation job, from clip to files. Shared by HTTP and gRPC.

API:     clip ──decode──► frames                                waveforms ──write──► files
runner:  admit ············ │ ──► queue, encode, sample, decode_audio ──► │
"""

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import structlog
from bentoml.exceptions import BentoMLException
from opentelemetry.trace import SpanKind

from foley.configs import SAMPLE_RATE
from foley.errors import (
    BusyError,
    FoleyError,
    ModelFailedError,
    NoModelError,
    NotReadyError,
    ParameterError,
    RunnerLostError,
    ServerError,
    StorageFullError,
)
from foley.marks.mark import Marks
from foley.mix import LoudnessReport
from foley.types import NoPicture, Stage
from runners import metrics, tracing
from runners.handoff import MAX_FRAMES_BYTES, FrameCounts, announce_frames, read_expectation
from runners.jobs.along import EarlyWriter, begin_writing
from runners.jobs.deadline import Deadline
from runners.jobs.job import GenerationJob
from runners.jobs.marks import log_unsigned, make_write_arguments
from runners.jobs.outputs import JobResult, OutputFile
from runners.jobs.pieces import OnSound, write_pieces
from runners.jobs.places import Places
from runners.jobs.runner_call import RUNNER_SECONDS, Runner, RunnerCall
from runners.jobs.scratch import Scratch
from runners.messages import (
    FinishedPiece,
    ModelStatus,
    OnProgressUpdate,
    ProgressUpdate,
    RunnerRequest,
    RunnerResult,
)
from runners.sandbox.pool import Sandbox
from runners.settings import Settings

log = structlog.get_logger(__name__)

LENGTH_SECONDS = 0.1  # between two looks for the length of a clip that is being decoded
WATCH_SECONDS = 5.0  # between two questions to the runner
# After one, the runner ends itself. Another process needs a while to import its libraries.
NUM_WATCHDOGS = 3


class GenerationService:
    """Runs jobs for all interfaces of one API process.

    Args:
        settings: the limits on clips.
        runner: admits the jobs, and runs the model; None where there is no model.
        scratch: has the folders of the jobs.
        sandbox: runs the media tasks.
        marks: what results say of how they were made; None for nothing.
    """

    def __init__(
        self,
        settings: Settings,
        runner: Runner | None,
        scratch: Scratch,
        sandbox: Sandbox,
        marks: Marks | None,
    ) -> None:
        self._marks = marks
        self._scratch = scratch
        self._settings = settings
        self._runner = runner
        self._sandbox = sandbox
        self._mixes = Places(settings.max_concurrency, settings.key_share)
        self._model: ModelStatus | None = None  # while it is ready
        self._heard: float | None = None  # when the runner last answered

    async def watch_runner(self) -> None:
        """Ask the runner for its state until cancelled, so that `is_runner_silent` knows."""
        while True:
            with contextlib.suppress(FoleyError):
                await self.ask_model()
            await asyncio.sleep(WATCH_SECONDS)

    def is_runner_silent(self) -> bool:
        """Return whether the runner hangs, and the watchdog that would restart it does too.

        The first start does not count, since it takes as long as the weights' disk takes.
        """
        limit_seconds = NUM_WATCHDOGS * self._settings.watchdog_seconds
        if self._heard is None or not limit_seconds:
            return False
        return time.monotonic() - self._heard > limit_seconds

    def require_runner(self) -> Runner:
        """Return the runner, which has a model or will have one.

        Raises:
            NoModelError: there is none.
        """
        if self._runner is None:
            raise NoModelError(
                "this service has no model and accepts jobs alone; send a job to /v1/jobs"
            )
        return self._runner

    async def ask_model(self) -> ModelStatus:
        """Return the description of the model, when it is ready.

        Raises:
            NoModelError: there is none.
            NotReadyError: it is loading, or the runner does not answer.
            ModelFailedError: it could not be loaded.
        """
        runner = self.require_runner()
        try:
            async with asyncio.timeout(RUNNER_SECONDS):
                status = await runner.status()
        except (TimeoutError, aiohttp.ClientError, BentoMLException) as error:
            self._model = None
            raise NotReadyError("the model is loading") from error
        self._heard = time.monotonic()
        self._model = status if status.state == "ready" else None
        if status.state == "failed":
            raise ModelFailedError(f"the model could not be loaded ({status.error_code})")
        if status.state != "ready":
            raise NotReadyError("the model is loading")
        return status

    async def run(
        self,
        job: GenerationJob,
        deadline: Deadline,
        on_update: OnProgressUpdate,
        on_sound: OnSound | None = None,
    ) -> JobResult:
        """Run a job, and return the description of the files in its folder.

        The caller enforces the deadline by cancelling, which frees the job's place in the runner.

        Args:
            job: whose clip is in its folder, if it has one.
            deadline: notes the seconds of each stage.
            on_update: called with the progress; its first call means that the job is admitted.
            on_sound: called with each piece of a long sound, where the job asks for them.

        Raises:
            BusyError: the runner has no place for the job, or its files would take more than the
                caller's share of the room.
            StorageFullError: there is no room for its files.
            RequestError: the clip or an option cannot be used.
            ServerError: the job failed for another reason.
        """
        model = self._model or await self.ask_model()
        duration_seconds = job.options.duration_seconds
        if duration_seconds is not None:
            self._check_length(duration_seconds)
            num_bytes = job.measure_result(duration_seconds)
            self._scratch.reserve(job.folder, job.caller, num_bytes)
            deadline.extend(self._settings.find_time_limit(duration_seconds))
        has_clip = job.has_clip
        job.options.check_files(
            job.formats,
            has_clip=has_clip,
            is_stereo=job.options.is_stereo,
            has_original=job.options.has_original,
        )
        async with begin_writing(self._sandbox, self._marks, job, self._media_limits()) as writer:
            trimmed, result = await self._make_sound(
                job, model, deadline, writer, on_update, on_sound
            )
            deadline.seconds.update(result.timings)
            files, notices = await self._write(
                job, model.preset, result, trimmed, deadline, writer, on_update
            )
        for stage, seconds in deadline.seconds.items():
            metrics.STAGE_SECONDS.labels(stage).observe(seconds)
        metrics.AUDIO_SECONDS.inc(result.duration_seconds * len(result.seeds))
        return _describe(job, model, result, files, notices, deadline)

    async def _make_sound(
        self,
        job: GenerationJob,
        model: ModelStatus,
        deadline: Deadline,
        writer: EarlyWriter,
        on_update: OnProgressUpdate,
        on_sound: OnSound | None,
    ) -> tuple[bool, RunnerResult]:
        """Have the runner make the sounds; returns whether the clip was trimmed, and the result."""
        duration_seconds = job.options.duration_seconds
        early = job.options.pieces and on_sound is not None
        try:
            with tracing.start_span("generate", SpanKind.CLIENT):
                request = self._make_request(job, deadline, early=early)
                async with (
                    RunnerCall(self.require_runner(), request) as call,
                    write_pieces(
                        self._sandbox,
                        self._marks,
                        job,
                        model.preset,
                        on_sound if early else None,
                    ) as hand_out,
                ):

                    def on_piece(piece: FinishedPiece) -> None:
                        if not piece.is_beginning:
                            writer.start(piece)
                        hand_out(piece)

                    def on_step(update: ProgressUpdate) -> None:
                        writer.note(update)
                        on_update(update)

                    if job.has_clip or duration_seconds is None:
                        return await _run_both(
                            self._decode(job, model, deadline, on_update),
                            call.wait_for_result(on_step, on_piece),
                        )
                    await self._decode_source(job)
                    _announce_no_frames(duration_seconds, job.folder)
                    return False, await call.wait_for_result(on_step, on_piece)
        except RunnerLostError:
            self._model = None
            raise

    async def mix(
        self, job: GenerationJob, deadline: Deadline, on_update: OnProgressUpdate
    ) -> JobResult:
        """Finish a sound that was made before: mix it with the clip's own, and write the files.

        Args:
            job: whose clip and sound are in its folder.
            deadline: notes the seconds of each stage.
            on_update: called with the progress.

        Raises:
            BusyError: this process mixes as many sounds as it may, or the files would take more
                than the caller's share of the room.
            StorageFullError: there is no room for its files.
            RequestError: the clip, the sound or an option cannot be used.
            ServerError: the job failed for another reason.
        """
        with self._mixes.hold(job.caller):
            return await self._mix(job, deadline, on_update)

    async def _mix(
        self, job: GenerationJob, deadline: Deadline, on_update: OnProgressUpdate
    ) -> JobResult:
        model = self._model or await self.ask_model()
        job.options.check_files(job.formats, has_clip=True)
        on_update(ProgressUpdate(stage=Stage.DECODE_AUDIO))
        with deadline.stage(Stage.DECODE_AUDIO):
            taken = await self._sandbox.run(
                "take_sound",
                job.folder,
                owner=job.caller,
                limits=self._media_limits(),
                answer=lambda question: self._answer_with_room(job, question),
            )
        sound = RunnerResult(
            seeds=(job.options.seed or 0,),
            sample_rate=SAMPLE_RATE,
            duration_seconds=taken["num_samples"] / SAMPLE_RATE,
            timings={},
            notices=(),
        )
        writer = EarlyWriter(self._sandbox, self._marks, job, self._media_limits())
        files, notices = await self._write(
            job, model.preset, sound, False, deadline, writer, on_update, (job.options.seed,)
        )
        return _describe(job, model, sound, files, notices, deadline)

    async def _decode(
        self,
        job: GenerationJob,
        model: ModelStatus,
        deadline: Deadline,
        on_update: OnProgressUpdate,
    ) -> bool:
        """Decode the clip for the runner; returns whether it was trimmed.

        Frames of a long clip are handed on while it is decoded. The others are announced.
        """
        on_update(ProgressUpdate(stage=Stage.DECODE_VIDEO))
        with deadline.stage(Stage.DECODE_VIDEO):
            await self._decode_source(job)
            decoded = await self._sandbox.run(
                "decode",
                job.folder,
                owner=job.caller,
                until=lambda: self._wait_for_length(job.folder, deadline),
                preset=model.preset,
                container=job.format,
                trim=job.options.trim,
                start_seconds=job.options.start_seconds,
                frame_rate=job.options.frame_rate,
                duration_seconds=job.options.duration_seconds,
                with_sound=job.options.is_mixed,
                with_source=job.options.has_original,
                limits=self._media_limits(),
                ask_room=True,
                answer=lambda question: self._answer_with_room(job, question),
            )
        if "num_sync" in decoded:
            announce_frames(FrameCounts(decoded["num_visual"], decoded["num_sync"]), job.folder)
        trimmed: bool = decoded["trimmed"]
        return trimmed

    async def _decode_source(self, job: GenerationJob) -> None:
        """Decode the file that an edit starts from, which must be there before the frames are."""
        if job.options.edit is not None and not job.options.has_original:
            await self._sandbox.run(
                "decode_source", job.folder, owner=job.caller, limits=self._media_limits()
            )

    def _answer_with_room(self, job: GenerationJob, question: Any) -> dict[str, Any]:
        """Set room aside for the frames, the waveforms and the files of a clip; see `decode`.

        Args:
            job: that is decoded.
            question: as the child sent it; anything.
        """
        try:
            frames_bytes, seconds = int(question["room"]), float(question["seconds"])
            # A child that was taken over gets no more than a clip may need.
            frames_bytes = min(max(0, frames_bytes), MAX_FRAMES_BYTES)
            seconds = min(max(0.0, seconds), self._settings.max_clip_seconds)
            num_bytes = frames_bytes + job.measure_result(seconds)
        except (TypeError, KeyError, ValueError, OverflowError):
            log.error("room_refused")
            return {"error": [ServerError.code, "this is no question for room"]}
        try:
            self._scratch.reserve(job.folder, job.caller, num_bytes)
        except (BusyError, StorageFullError) as error:
            return {"error": [error.code, str(error)]}
        return {}

    async def _wait_for_length(self, folder: Path, deadline: Deadline) -> None:
        """Return when the first frames of a long clip are handed on; its time is longer then."""
        while (seconds := read_expectation(folder)) is None:
            await asyncio.sleep(LENGTH_SECONDS)
        deadline.extend(self._settings.find_time_limit(seconds))

    async def _write(
        self,
        job: GenerationJob,
        preset: str,
        result: RunnerResult,
        trimmed: bool,
        deadline: Deadline,
        writer: EarlyWriter,
        on_update: OnProgressUpdate,
        marked_seeds: Sequence[int | None] | None = None,
    ) -> tuple[tuple[OutputFile, ...], list[str]]:
        """Write the files of all variations; returns them, and notices about them.

        Marks name `marked_seeds`, where they are given, in place of the result's.
        """
        on_update(ProgressUpdate(stage=Stage.MUX))
        options = job.options
        marking = make_write_arguments(
            self._marks,
            preset,
            marked_seeds or result.seeds,
            job.generation_request(),
            options.mix_options(),
        )
        with deadline.stage(Stage.MUX):
            written = await writer.write(
                formats=job.formats,
                sample_rate=result.sample_rate,
                stop_seconds=result.duration_seconds if trimmed else None,
                mix=options.changed(),
                limits=self._media_limits(),
                measure=job.measures,
                **marking,
            )
        log_unsigned(written)
        variations = zip(result.seeds, written, strict=True)
        files = tuple(
            OutputFile(
                variation=variation,
                layer=file.get("layer"),
                seed=result.layer_seeds[file["layer"] - 1] if "layer" in file else seed,
                speech_seconds=_find_speech(result, variation, file),
                path=job.folder / file["name"],
                container=file["container"],
                loudness=LoudnessReport(**file["loudness"]) if file["loudness"] else None,
            )
            for variation, (seed, copies) in enumerate(variations, start=1)
            for file in copies
        )
        return files, [
            notice for copies in written for file in copies for notice in file["notices"]
        ]

    def _check_length(self, duration_seconds: float) -> None:
        """Hold a sound without a clip, or a still picture, to the limit of clips."""
        limit_seconds = self._settings.max_clip_seconds
        if duration_seconds > limit_seconds:
            raise ParameterError(
                f"duration_seconds: is {duration_seconds:g}, the limit of this service is "
                f"{limit_seconds:g}; ask for a shorter sound"
            )

    def _make_request(
        self, job: GenerationJob, deadline: Deadline, *, early: bool
    ) -> RunnerRequest:
        # How long the clip is shows while it is decoded. This process ends the call in time; the
        # runner's own limit is for a process that has not.
        find_limit = self._settings.find_time_limit
        further_seconds = find_limit(self._settings.max_clip_seconds) - find_limit(0)
        return RunnerRequest(
            id=job.folder.name,
            owner=job.caller,
            priority=job.options.priority,
            folder=str(job.folder),
            options=job.generation_request(),
            timeout_seconds=deadline.left_seconds + further_seconds,
            early=early,
            trace=tracing.inject_span(),
        )

    def _media_limits(self) -> dict[str, Any]:
        """Return the limits on a clip: `foley.media.source.MediaLimits` as JSON."""
        return {
            "max_seconds": self._settings.max_clip_seconds,
            "max_pixels": self._settings.max_clip_pixels,
            "max_bytes": self._settings.max_upload_bytes,
            "max_cpu_seconds": self._settings.decode_cpu_seconds,
            "codecs": self._settings.video_codecs.split(","),
        }


def _describe(
    job: GenerationJob,
    model: ModelStatus,
    result: RunnerResult,
    files: tuple[OutputFile, ...],
    notices: list[str],
    deadline: Deadline,
) -> JobResult:
    return JobResult(
        request_id=job.request_id,
        preset=model.preset,
        seeds=result.seeds,
        duration_seconds=result.duration_seconds,
        sample_rate=result.sample_rate,
        timings=deadline.with_total(),
        device_seconds=result.device_seconds,
        notices=tuple(dict.fromkeys([*result.notices, *notices])),
        files=files,
    )


def _find_speech(result: RunnerResult, variation: int, file: dict[str, Any]) -> float | None:
    """Return the seconds of speech in a variation or a layer; None where nobody asked."""
    layer = file.get("layer")
    measured = result.speech_seconds if layer is None else result.layer_speech_seconds
    # Where the options asked for it, an edit leaves out what it keeps.
    seconds = measured[(layer or variation) - 1] if measured else file.get("speech_seconds")
    return None if seconds is None else round(seconds, 3)


def _announce_no_frames(duration_seconds: float, folder: Path) -> None:
    """Tell the runner the size of a sound without a clip, which needs no frames."""
    nothing = NoPicture(duration_seconds=duration_seconds)
    announce_frames(FrameCounts(nothing.num_visual, nothing.num_sync), folder)


async def _run_both(
    decoding: Coroutine[Any, Any, bool], waiting: Coroutine[Any, Any, RunnerResult]
) -> tuple[bool, RunnerResult]:
    """Return what both return, or raise what ends one of them and cancel the other."""
    tasks = asyncio.create_task(decoding), asyncio.create_task(waiting)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:  # where both failed, the clip's error says more
            if task.done():
                task.result()
        return tasks[0].result(), tasks[1].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

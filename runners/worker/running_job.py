"""A request in the worker: its place, its session and its outcome."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Self

from foley.request import GenerationRequest
from foley.sound_file import append_samples
from foley.types import NoPicture, Stage, VideoFrames
from runners import metrics
from runners.handoff import (
    HandedFrames,
    load_frames,
    load_source,
    name_beginning,
    name_growing,
    save_waveforms,
)
from runners.messages import (
    FinishedPiece,
    OnPiece,
    OnProgressUpdate,
    ProgressUpdate,
    RunnerRequest,
    RunnerResult,
)
from runners.worker.scheduler import JobSize, Kind, ScheduledJob

# Returns the work of a request with so many frames at 8 and at 25 fps.
ComputeSize = Callable[[GenerationRequest, int, int], JobSize]

KIND_OF_STAGE: dict[Stage | None, Kind | None] = {
    Stage.ENCODE: Stage.ENCODE,
    Stage.SAMPLE: Stage.SAMPLE,
    Stage.DECODE_AUDIO: Stage.DECODE_AUDIO,
    None: None,
}

if TYPE_CHECKING:  # these import the models' libraries, see `runners.worker.worker`
    from foley.pipeline import FoleyPipeline
    from foley.session import Session


@dataclass(eq=False, kw_only=True)
class RunningJob(ScheduledJob):
    """A request that holds a place in the worker.

    Attributes:
        request: as the API sent it.
        on_update: called with each new state of its progress, on a thread of the worker.
        on_piece: called with each piece of its sound that is final, on a thread of the worker.
        outcome: its result or its error, once it has left.
        frames: of a long clip, as they are handed on; None for others.
        session: the state of its generation, from its first action until it leaves.
        failure: the error with which it leaves early.
        num_retries: of the session, as the scheduler knows them.
    """

    request: RunnerRequest
    on_update: OnProgressUpdate
    on_piece: OnPiece = lambda piece: None
    outcome: "Future[RunnerResult]" = field(default_factory=Future, init=False)
    frames: HandedFrames | None = field(default=None, init=False)
    session: "Session | None" = field(default=None, init=False)
    failure: Exception | None = field(default=None, init=False)
    num_retries: int = field(default=0, init=False)
    _result: RunnerResult | None = field(default=None, init=False)
    _queue_seconds: float = field(default=0.0, init=False)
    _last_update: ProgressUpdate | None = field(default=None, init=False)

    @classmethod
    def create(cls, request: RunnerRequest, on_update: OnProgressUpdate, on_piece: OnPiece) -> Self:
        """Return the job of a request whose time starts now.

        Args:
            request: from the API.
            on_update: called with its progress.
            on_piece: called with the pieces of its sound.
        """
        return cls(
            id=request.id,
            owner=request.owner,
            priority=request.priority,
            deadline=time.monotonic() + request.timeout_seconds,
            request=request,
            on_update=on_update,
            on_piece=on_piece,
        )

    def begin(self, pipeline: "FoleyPipeline") -> None:
        """Load the frames and create the session, on the thread of the engine that begins it.

        Args:
            pipeline: of that engine.

        Raises:
            OSError: the frames are gone, because the API gave the request up.
        """
        self._queue_seconds = time.monotonic() - self.arrived
        metrics.WAIT_SECONDS.labels(self.priority).observe(self._queue_seconds)
        duration_seconds = self.request.options.duration_seconds
        frames: VideoFrames | HandedFrames | NoPicture
        if duration_seconds is not None:
            frames = NoPicture(duration_seconds=duration_seconds)
        elif self.frames is not None:
            frames = self.frames
        else:
            frames = load_frames(self.request.path)
            # Its size was computed for the first device. Another device, with less memory, may
            # encode the clip in more pieces.
            num_pieces = pipeline.count_pieces(
                len(frames.visual),
                len(frames.sync),
                with_source=self.request.options.edit is not None,
            )
            self.size = replace(self.size, num_pieces=num_pieces)
        source = load_source(self.request.path) if self.request.options.edit else None
        name_file = partial(name_growing, self.request.path)
        self.session = pipeline.start(frames, self.request.options, source, name_file)
        # A GPU decodes 15 s in hundredths of a second.
        self.session.begins_early = self.request.early and pipeline.device.type == "cpu"

    @property
    def next_kind(self) -> Kind | None:
        """The kind of its next action; the stages of a long sound come again for each group."""
        return super().next_kind if self.session is None else KIND_OF_STAGE[self.session.stage]

    @property
    def tokens(self) -> int:
        """Tokens of its next evaluation."""
        if self.session is None or self.session.stage is not Stage.SAMPLE:
            return super().tokens
        return self.session.num_tokens

    def count_units(self, kind: Kind) -> int:
        """Return the size of its next action of a kind; see `JobSize.count_units`."""
        if kind is Stage.DECODE_AUDIO and self.session is not None:
            return self.session.num_decoded
        return super().count_units(kind)

    @property
    def is_starved(self) -> bool:
        """Whether its next action needs frames that are not there yet."""
        frames, session = self.frames, self.session
        if frames is None:
            return False
        if session is not None and (session.stage is not Stage.ENCODE or not session.awaits_frames):
            return False
        return not frames.is_ready

    def measure_frames(self, compute_size: ComputeSize, kind: Kind) -> None:
        """Correct the size of a long clip after an action, before that is counted.

        Args:
            compute_size: of a request with so many frames at 8 and at 25 fps.
            kind: of the action.
        """
        assert self.frames is not None
        assert self.session is not None
        frames, num_done = self.frames, self.done[Stage.ENCODE]
        if frames.facts is not None:
            self.size = compute_size(self.request.options, frames.num_visual, frames.num_sync)
        # What the clip states about its length need not be true.
        if kind is Stage.ENCODE:
            num_done += 1
        least = num_done if self.session.is_encoded else max(num_done + 1, self.size.num_pieces)
        self.size = replace(self.size, num_pieces=least)
        self.starved = self.is_starved

    def report(self, update: ProgressUpdate) -> None:
        """Report the progress, unless it equals the last report."""
        if update != self._last_update:
            self._last_update = update
            self.on_update(update)

    def report_stage(self, stage: Stage) -> None:
        """Report the session's progress.

        Args:
            stage: the current one; in `SAMPLE`, the report has the step.
        """
        assert self.session is not None
        if stage is Stage.SAMPLE:
            step, num_steps = self.session.step, self.session.num_steps
            self.report(ProgressUpdate(stage=stage, step=step, num_steps=num_steps))
        else:
            self.report(ProgressUpdate(stage=stage))

    def report_pieces(self) -> None:
        """Report the pieces of the sound that have become final, and are in the job's folder.

        Raises:
            OSError: the folder is gone, or the disk is full.
        """
        assert self.session is not None
        sample_rate = self.session.sample_rate
        for piece in self.session.take_finished():
            is_beginning = not self.session.is_in_files
            if is_beginning:
                path = name_beginning(self.request.path, piece.variation)
                append_samples(path, piece.waveform.numpy().ravel(), is_first=True)
            self.on_piece(
                FinishedPiece(
                    variation=piece.variation,
                    number=piece.number,
                    seed=piece.seed,
                    start_seconds=piece.start_seconds,
                    duration_seconds=piece.waveform.shape[-1] / sample_rate,
                    sample_rate=sample_rate,
                    is_beginning=is_beginning,
                )
            )

    def save_result(self) -> None:
        """Write the waveforms of the finished session into the job's folder.

        Raises:
            SafetensorError: the folder is gone, or the disk is full.
        """
        assert self.session is not None
        # A media process of the request has those files open, and may cut them short.
        generation = self.session.result(reads_files=False)
        if not self.session.is_in_files:
            save_waveforms(generation.waveforms, self.request.path, generation.stems)
        self._result = RunnerResult(
            seeds=generation.seeds,
            layer_seeds=generation.layer_seeds,
            speech_seconds=generation.speech_seconds,
            layer_speech_seconds=generation.layer_speech_seconds,
            sample_rate=generation.sample_rate,
            duration_seconds=generation.duration_seconds,
            timings={Stage.QUEUE: self._queue_seconds, **generation.timings},
            notices=generation.notices,
        )

    def note_retry(self) -> bool:
        """Return whether the session has begun to sample again since the last call."""
        before = self.num_retries
        if self.session is not None:
            self.num_retries = self.session.num_retries
        return self.num_retries > before

    def conclude(self) -> None:
        """Set the outcome, after the job has left the scheduler."""
        if not self.outcome.set_running_or_notify_cancel():
            return  # the outcome itself was cancelled
        if self.failure is not None:
            self.outcome.set_exception(self.failure)
        else:
            assert self._result is not None
            # Its last action has been counted since the result was saved.
            made = self._result.model_copy(update={"device_seconds": self.device_seconds})
            self.outcome.set_result(made)

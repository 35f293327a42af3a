"""A session in the process that has its model, with the files that belong to it."""

from functools import partial
from typing import Self

from foley.pipeline import FoleyPipeline
from foley.session import Session
from foley.sound_file import append_samples
from foley.types import NoPicture, Stage, VideoFrames
from runners.handoff import (
    FrameCounts,
    HandedFrames,
    load_frames,
    load_source,
    name_beginning,
    name_growing,
    save_waveforms,
)
from runners.messages import FinishedPiece, RunnerRequest, RunnerResult
from runners.worker.reports import Beginning, Report, SessionState
from runners.worker.scheduler import Kind

_KIND_OF_STAGE: dict[Stage | None, Kind | None] = {
    Stage.ENCODE: Stage.ENCODE,
    Stage.SAMPLE: Stage.SAMPLE,
    Stage.DECODE_AUDIO: Stage.DECODE_AUDIO,
    None: None,
}


class HeldSession:
    """A generation, and the folder of its request.

    Args:
        session: new.
        request: from the API.
        frames: of a long clip, as they are handed on; None for others.
        num_pieces: in which a clip that is there at once is encoded; None for others.

    Attributes:
        session: as given.
    """

    def __init__(
        self,
        session: Session,
        request: RunnerRequest,
        frames: HandedFrames | None,
        num_pieces: int | None,
    ) -> None:
        self.session = session
        self._request = request
        self._frames = frames
        self._num_pieces = num_pieces

    @classmethod
    def begin(cls, beginning: Beginning, pipeline: FoleyPipeline) -> Self:
        """Load the frames and create the session.

        Args:
            beginning: of the request.
            pipeline: on the device that begins it.

        Raises:
            OSError: the frames are gone, because the API gave the request up.
        """
        request, options = beginning.request, beginning.request.options
        num_pieces, handed = None, None
        frames: VideoFrames | HandedFrames | NoPicture
        if options.duration_seconds is not None:
            frames = NoPicture(duration_seconds=options.duration_seconds)
        elif beginning.is_streamed:
            frames = handed = HandedFrames(request.path)
        else:
            frames = load_frames(request.path)
            num_pieces = pipeline.count_pieces(
                len(frames.visual), len(frames.sync), with_source=options.edit is not None
            )
        source = load_source(request.path) if options.edit else None
        name_file = partial(name_growing, request.path)
        session = pipeline.start(frames, options, source, name_file)
        # A GPU decodes 15 s in hundredths of a second.
        session.begins_early = request.early and pipeline.device.type == "cpu"
        return cls(session, request, handed, num_pieces)

    def report(self, failure: Exception | None) -> Report:
        """Write what has become final, and describe the session after an action.

        Args:
            failure: of the action.
        """
        if failure is not None:
            return Report(failure=failure)
        try:
            pieces = self._write_pieces()
            result = self._save_result() if self.session.stage is None else None
            return Report(state=self._describe(), pieces=pieces, result=result)
        except Exception as error:  # noqa: BLE001 - it becomes the outcome of this request
            return Report(failure=error)

    def _describe(self) -> SessionState:
        session, frames = self.session, self._frames
        has_all = frames is not None and frames.facts is not None
        return SessionState(
            next_kind=_KIND_OF_STAGE[session.stage],
            tokens=session.num_tokens if session.stage is Stage.SAMPLE else 0,
            num_decoded=session.num_decoded if session.stage is Stage.DECODE_AUDIO else 0,
            step=session.step,
            num_steps=session.num_steps,
            num_retries=session.num_retries,
            is_encoded=session.is_encoded,
            num_pieces=self._num_pieces,
            awaits_frames=session.awaits_frames,
            num_read=frames.num_read if frames else 0,
            counts=FrameCounts(frames.num_visual, frames.num_sync) if frames and has_all else None,
        )

    def _write_pieces(self) -> tuple[FinishedPiece, ...]:
        """Return the pieces of the sound that have become final, and are in the folder now.

        Raises:
            OSError: the folder is gone, or the disk is full.
        """
        sample_rate = self.session.sample_rate
        is_beginning = not self.session.is_in_files
        finished = self.session.take_finished()
        for piece in finished if is_beginning else ():
            path = name_beginning(self._request.path, piece.variation)
            append_samples(path, piece.waveform.numpy().ravel(), is_first=True)
        return tuple(
            FinishedPiece(
                variation=piece.variation,
                number=piece.number,
                seed=piece.seed,
                start_seconds=piece.start_seconds,
                duration_seconds=piece.waveform.shape[-1] / sample_rate,
                sample_rate=sample_rate,
                is_beginning=is_beginning,
            )
            for piece in finished
        )

    def _save_result(self) -> RunnerResult:
        """Write the waveforms of the finished session into the folder, and describe them.

        Raises:
            SafetensorError: the folder is gone, or the disk is full.
        """
        # A media process of the request has those files open, and may cut them short.
        generation = self.session.result(reads_files=False)
        if not self.session.is_in_files:
            save_waveforms(generation.waveforms, self._request.path, generation.stems)
        return RunnerResult(
            seeds=generation.seeds,
            layer_seeds=generation.layer_seeds,
            speech_seconds=generation.speech_seconds,
            layer_speech_seconds=generation.layer_speech_seconds,
            sample_rate=generation.sample_rate,
            duration_seconds=generation.duration_seconds,
            timings=generation.timings,
            notices=generation.notices,
        )

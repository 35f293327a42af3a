"""Where `foley generate` runs: a model in this process, or a service."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from foley.cli.options import ModelOptions
from foley.cli.plan import AUDIO_SUFFIXES, ClipTask
from foley.errors import DeviceError, ParameterError, RequestError
from foley.marks.mark import Mark, Marks
from foley.mix import LoudnessReport, MixOptions
from foley.parts import make_with_parts
from foley.types import FrameStream, NoPicture, SourceSound, Stage, VideoFrames

if TYPE_CHECKING:
    from foley.client import AsyncFoleyClient, Format, RemoteFile, RemotePiece, RemoteUpdate
    from foley.generation import Generation
    from foley.media.mux import MediaFile
    from foley.pipeline import OnProgress, Progress
    from foley.session import SoundPiece

MAX_WAIT_SECONDS = 600.0  # how long a busy service is retried


class OnStage(Protocol):
    """A function that shows how far clips are."""

    def __call__(
        self, tasks: Sequence[ClipTask], stage: str, step: int = 0, num_steps: int = 1
    ) -> None:
        """Show that `step` of `num_steps` steps of a stage are done.

        Args:
            tasks: the clips that are in this stage.
            stage: a value of `foley.types.Stage`, with a remark if there is one.
            step: steps that are done, from 0.
            num_steps: steps in all, at least 1.
        """


@dataclass(frozen=True, kw_only=True)
class ModelName:
    """What the model is called.

    Attributes:
        preset: its preset.
        place: where it runs: `on cuda:0`, or `at` the address of a service.
        description: all about where it is and where it comes from, in one line.
        about: what the model can and cannot do; empty if its publisher says it.
    """

    preset: str
    place: str
    description: str
    about: str


@dataclass(frozen=True, kw_only=True)
class ClipResult:
    """What was made for one clip.

    Attributes:
        paths: one file for each variation.
        seeds: the seed of each variation.
        stems: one file for each layer.
        speech_seconds: in each variation, where it was asked for.
        layer_seeds: the seed of each layer.
        duration_seconds: length of each sound.
        seconds: wall time, including the transfer to and from a service.
        timings: seconds in each stage, in order.
        notices: sentences about what was done to the clip.
        loudness: of each file, where an option of the mix was given.
    """

    paths: list[Path]
    seeds: tuple[int, ...]
    duration_seconds: float
    seconds: float
    timings: dict[str, float]
    notices: tuple[str, ...]
    loudness: tuple[LoudnessReport, ...] = ()
    stems: tuple[Path, ...] = ()
    speech_seconds: tuple[float, ...] = ()
    layer_seeds: tuple[int, ...] = ()


class OnOutcome(Protocol):
    """A function that receives the result of a clip, or the error that ended it."""

    def __call__(self, task: ClipTask, outcome: ClipResult | RequestError) -> None:
        """Receive the outcome of a clip.

        Args:
            task: the clip.
            outcome: what was made, or why nothing was.
        """


@dataclass(frozen=True, kw_only=True)
class SoundFile:
    """A piece of a long sound, written while the rest is made.

    Attributes:
        path: of the wav file.
        variation: counted from 1.
        number: of the piece, counted from 1; each begins where the one before it ends.
        start_seconds: from the start of the sound.
        duration_seconds: of the piece.
    """

    path: Path
    variation: int
    number: int
    start_seconds: float
    duration_seconds: float


# Receives the pieces of a clip's sound in order.
OnSound = Callable[[ClipTask, SoundFile], None]


class GenerationBackend(Protocol):
    """Generates the sounds of clips.

    Attributes:
        model: what generates.
    """

    model: ModelName

    def run(
        self,
        tasks: Sequence[ClipTask],
        *,
        jobs: int,
        trim: bool,
        on_stage: OnStage,
        on_outcome: OnOutcome,
        on_sound: OnSound | None,
    ) -> None:
        """Generate the sounds of clips and write their files.

        Args:
            tasks: the clips, their options and their outputs.
            jobs: clips at once, at least 1.
            trim: whether to cut a clip that is too long instead of refusing it.
            on_stage: called when a stage begins or moves on.
            on_outcome: called when a clip is done, or has failed.
            on_sound: called with each piece of a long sound, which is a file then; only with one
                clip at once. None writes no pieces.

        Raises:
            ServerError: the model or the service failed.
            ConnectionFailedError: the service cannot be reached.
        """


@dataclass(frozen=True, kw_only=True)
class _DecodedClip:
    """A clip whose frames are decoded."""

    task: ClipTask
    frames: VideoFrames | FrameStream | NoPicture
    timings: dict[str, float]
    source: SourceSound | None


class LocalBackend:
    """A `GenerationBackend` with a model in this process.

    Args:
        options: which model, and where it runs.
        marks: what results say of how they were made; None for nothing.

    Raises:
        ServerError: the weights or the device cannot be used.
    """

    def __init__(self, options: ModelOptions, marks: Marks | None) -> None:
        self._marks = marks
        self._pipeline = options.load()
        self.model = ModelName(
            preset=self._pipeline.preset.name,
            place=f"on {self._pipeline.device}",
            description=self._pipeline.description,
            about=self._pipeline.preset.about,
        )

    def run(
        self,
        tasks: Sequence[ClipTask],
        *,
        jobs: int,
        trim: bool,
        on_stage: OnStage,
        on_outcome: OnOutcome,
        on_sound: OnSound | None,
    ) -> None:
        """See `GenerationBackend.run`."""
        for first in range(0, len(tasks), jobs):
            start = time.perf_counter()
            decoded = []
            for task in tasks[first : first + jobs]:
                on_stage([task], Stage.DECODE_VIDEO)
                try:
                    decoded.append(self._decode(task, trim=trim))
                except RequestError as error:
                    on_outcome(task, error)
            if on_sound is None or not decoded:
                self._generate(decoded, start, on_stage, on_outcome, trim=trim)
            else:
                self._generate_heard(decoded[0], start, on_stage, on_outcome, on_sound)

    def _decode(self, task: ClipTask, *, trim: bool) -> _DecodedClip:
        if task.clip is None:
            assert task.request.duration_seconds is not None
            sound = NoPicture(duration_seconds=task.request.duration_seconds)
            return _DecodedClip(task=task, frames=sound, timings={}, source=_read_source(task))
        start = time.perf_counter()
        source = _read_source(task)
        frames = self._pipeline.open_video(task.source or task.clip, trim=trim)
        timings = {str(Stage.DECODE_VIDEO): time.perf_counter() - start}
        return _DecodedClip(task=task, frames=frames, timings=timings, source=source)

    def _open_again(self, clip: _DecodedClip, *, trim: bool) -> _DecodedClip:
        """Return a clip that can be used again; the frames of a long one are used up."""
        return self._decode(clip.task, trim=trim) if isinstance(clip.frames, FrameStream) else clip

    def _generate(
        self,
        clips: Sequence[_DecodedClip],
        start: float,
        on_stage: OnStage,
        on_outcome: OnOutcome,
        *,
        trim: bool,
    ) -> None:
        """Generate the sounds of clips together, and write their files."""
        tasks = [clip.task for clip in clips]

        def on_progress(progress: "Progress") -> None:
            on_stage(tasks, progress.stage, progress.step, progress.num_steps)

        try:
            generations = self._make(clips, on_progress, trim=trim)
        except RequestError as error:
            if len(clips) == 1:
                on_outcome(tasks[0], error)
                return
            # One clip or its options are refused, and it is not said which.
            for clip in clips:
                began = time.perf_counter()
                try:
                    again = self._open_again(clip, trim=trim)
                except RequestError as refusal:
                    on_outcome(clip.task, refusal)
                else:
                    self._generate([again], began, on_stage, on_outcome, trim=trim)
            return
        except DeviceError as error:
            if len(clips) > 1:
                raise DeviceError(f"{error}, or for fewer clips at once with -j") from error
            raise
        for clip, generation in zip(clips, generations, strict=True):
            on_stage([clip.task], Stage.MUX)
            try:
                result = self._write_result(clip, generation, start)
            except RequestError as error:
                on_outcome(clip.task, error)
            else:
                on_outcome(clip.task, result)

    def _make(
        self, clips: Sequence[_DecodedClip], on_progress: "OnProgress", *, trim: bool
    ) -> "list[Generation]":
        """Return the sounds of clips, made together where none has parts."""
        if not any(clip.task.parts for clip in clips):
            return self._pipeline.generate_together(
                [clip.frames for clip in clips],
                [clip.task.request for clip in clips],
                on_progress,
                [clip.source for clip in clips],
            )
        return [
            make_with_parts(
                self._pipeline,
                lambda clip=clip: self._open_again(clip, trim=trim).frames,  # type: ignore[misc]
                clip.task.request,
                clip.task.parts,
                on_progress,
            )
            for clip in clips
        ]

    def _generate_heard(
        self,
        clip: _DecodedClip,
        start: float,
        on_stage: OnStage,
        on_outcome: OnOutcome,
        on_sound: OnSound,
    ) -> None:
        """Generate the sounds of one clip, and write pieces of them while the rest is made."""
        task = clip.task

        def on_progress(progress: "Progress") -> None:
            on_stage([task], progress.stage, progress.step, progress.num_steps)

        def on_piece(piece: "SoundPiece") -> None:
            on_sound(task, self._write_piece(task, piece))

        try:
            generation = self._pipeline.generate(
                clip.frames, task.request, on_progress, clip.source, on_piece
            )
            on_stage([task], Stage.MUX)
            result = self._write_result(clip, generation, start)
        except RequestError as error:
            on_outcome(task, error)
        else:
            on_outcome(task, result)

    def _write_piece(self, task: ClipTask, piece: "SoundPiece") -> SoundFile:
        from foley.media.mux import write_audio

        sample_rate = self._pipeline.preset.vae.sample_rate
        path = task.choose_piece_path(piece.variation, piece.number)
        # A piece is the new sound alone, before the mix.
        mark = self._make_mark(replace(task, mix=MixOptions()), piece.seed)
        write_audio(piece.waveform, path, sample_rate=sample_rate, mark=mark)
        return SoundFile(
            path=path,
            variation=piece.variation,
            number=piece.number,
            start_seconds=piece.start_seconds,
            duration_seconds=piece.waveform.shape[-1] / sample_rate,
        )

    def _write_result(
        self, clip: _DecodedClip, generation: "Generation", start: float
    ) -> ClipResult:
        mux_start = time.perf_counter()
        files = self._write_files(clip.task, generation)
        stems = self._write_stems(clip.task, generation)
        end = time.perf_counter()
        return ClipResult(
            paths=[file.path for file in files],
            seeds=generation.seeds,
            duration_seconds=generation.duration_seconds,
            seconds=end - start,
            timings={**clip.timings, **generation.timings, Stage.MUX: end - mux_start},
            notices=(*generation.notices, *(notice for file in files for notice in file.notices)),
            loudness=tuple(file.loudness for file in files if file.loudness),
            stems=tuple(file.path for file in stems),
            speech_seconds=generation.speech_seconds,
            layer_seeds=generation.layer_seeds,
        )

    def _make_mark(self, task: ClipTask, seed: int) -> Mark | None:
        if self._marks is None:
            return None
        return self._marks.make(self.model.preset, seed, task.request, task.mix)

    def _write_stems(self, task: ClipTask, generation: "Generation") -> "list[MediaFile]":
        from foley.media.stems import write_stem

        if generation.stems is None:
            return []
        return [
            write_stem(
                stem,
                path,
                number=number,
                sample_rate=generation.sample_rate,
                mix=task.mix,
                clip=task.read_from,
                mark=self._make_mark(task, generation.seeds[0]),
            )
            for number, (stem, path) in enumerate(
                zip(generation.stems, task.list_stems(), strict=True), start=1
            )
        ]

    def _write_files(self, task: ClipTask, generation: "Generation") -> "list[MediaFile]":
        from foley.media.mux import write_audio, write_video

        stop_seconds = generation.duration_seconds if generation.trimmed else None
        files = []
        for sound, path in zip(generation, task.list_outputs(), strict=True):
            mark = self._make_mark(task, sound.seeds[0])
            if path.suffix.lower() in AUDIO_SUFFIXES:
                file = write_audio(
                    sound.waveforms[0],
                    path,
                    mix=task.mix,
                    source=task.read_from,
                    stop_seconds=stop_seconds,
                    mark=mark,
                )
            else:
                assert task.read_from is not None  # `plan_sound` refused a video
                file = write_video(
                    task.read_from,
                    sound.waveforms[0],
                    path,
                    stop_seconds=stop_seconds,
                    mix=task.mix,
                    mark=mark,
                )
            files.append(file)
        return files


def _read_source(task: ClipTask) -> SourceSound | None:
    """Return the sound that a clip's edit starts from; None without an edit."""
    from foley.media.source_sound import read_source

    edit = task.request.edit
    if edit is None:
        return None
    if edit.is_original and task.clip is not None:
        return read_source(task.source or task.clip, is_clip=True)
    assert task.edit_source is not None  # else the command was refused before
    return read_source(task.edit_source, is_clip=False)


class ServerBackend:
    """A `GenerationBackend` that sends clips to a service.

    Args:
        base_url: address of the service.
        api_key: the key, if the service asks for one.
        bulk: whether interactive requests of other callers go first.

    Raises:
        ParameterError: the address or the key is malformed.
        FoleyError: the service cannot be reached, is not ready or refuses the key.
    """

    def __init__(self, base_url: str, api_key: str | None, *, bulk: bool) -> None:
        from foley.client import FoleyClient

        with FoleyClient(base_url, api_key=api_key) as client:
            (model, *_) = client.list_models()
        self._base_url = base_url
        self._api_key = api_key
        self._bulk = bulk
        self.model = ModelName(
            preset=model.preset,
            place=f"at {base_url}",
            description=f"preset {model.preset} at {base_url}",
            about=model.about,
        )

    def run(
        self,
        tasks: Sequence[ClipTask],
        *,
        jobs: int,
        trim: bool,
        on_stage: OnStage,
        on_outcome: OnOutcome,
        on_sound: OnSound | None,
    ) -> None:
        """See `GenerationBackend.run`."""
        asyncio.run(self._run_all(tasks, jobs, trim, on_stage, on_outcome, on_sound))

    async def _run_all(
        self,
        tasks: Sequence[ClipTask],
        jobs: int,
        trim: bool,
        on_stage: OnStage,
        on_outcome: OnOutcome,
        on_sound: OnSound | None,
    ) -> None:
        from foley.client import AsyncFoleyClient

        waiting = iter(tasks)

        async def work() -> None:
            for task in waiting:
                try:
                    result = await self._run_one(client, task, trim, on_stage, on_sound)
                except RequestError as error:
                    on_outcome(task, error)
                else:
                    on_outcome(task, result)

        async with AsyncFoleyClient(self._base_url, api_key=self._api_key) as client:
            workers = [asyncio.create_task(work()) for _ in range(min(jobs, len(tasks)))]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _run_one(
        self,
        client: "AsyncFoleyClient",
        task: ClipTask,
        trim: bool,
        on_stage: OnStage,
        on_sound: OnSound | None,
    ) -> ClipResult:
        def on_update(update: "RemoteUpdate") -> None:
            position = f", {update.queue_position} before" if update.queue_position else ""
            on_stage([task], f"{update.stage}{position}", update.step or 0, update.num_steps or 1)

        start = time.perf_counter()
        on_stage([task], Stage.UPLOAD)
        options = task.request.model_dump()
        if task.edit_source is not None:
            options["edit"]["source"] = task.edit_source
        async with _download_pieces(client, task, on_sound) as on_piece:
            result = await client.generate(
                task.read_from,
                on_update=on_update,
                on_sound=on_piece,
                max_wait_seconds=MAX_WAIT_SECONDS,
                trim=trim,
                format=cast("Format", _get_format(task)),
                priority="bulk" if self._bulk else "interactive",
                **options,
                **task.mix.changed(),
            )
        chosen = result.select_files(_get_format(task))
        paths = await _download(client, task, chosen)
        layers = result.select_layers()
        stems = [
            await client.download(file, path)
            for file, path in zip(layers, task.list_stems(), strict=True)
        ]
        return ClipResult(
            paths=paths,
            seeds=result.seeds,
            duration_seconds=result.duration_seconds,
            seconds=time.perf_counter() - start,
            timings={k: s for k, s in result.timings_seconds.items() if k != "total"},
            notices=result.notices,
            loudness=tuple(file.loudness for file in chosen if file.loudness),
            stems=tuple(stems),
            speech_seconds=tuple(
                file.speech_seconds for file in chosen if file.speech_seconds is not None
            ),
            layer_seeds=tuple(file.seed for file in layers),
        )


@asynccontextmanager
async def _download_pieces(
    client: "AsyncFoleyClient", task: ClipTask, on_sound: OnSound | None
) -> "AsyncIterator[Callable[[RemotePiece], None] | None]":
    """Yield a function that takes pieces of a sound, which are downloaded one after another."""
    if on_sound is None:
        yield None
        return
    queue: asyncio.Queue[RemotePiece | None] = asyncio.Queue()

    async def download_all() -> None:
        while (piece := await queue.get()) is not None:
            path = task.choose_piece_path(piece.variation, piece.number)
            await client.download(piece, path)
            file = SoundFile(
                path=path,
                variation=piece.variation,
                number=piece.number,
                start_seconds=piece.start_seconds,
                duration_seconds=piece.duration_seconds,
            )
            on_sound(task, file)

    downloading = asyncio.create_task(download_all())
    try:
        yield queue.put_nowait
        queue.put_nowait(None)
        await downloading
    finally:
        downloading.cancel()
        await asyncio.gather(downloading, return_exceptions=True)


async def _download(
    client: "AsyncFoleyClient", task: ClipTask, files: "list[RemoteFile]"
) -> list[Path]:
    wanted = _get_format(task)
    paths = []
    for file, path in zip(files, task.list_outputs(), strict=True):
        if file.format != wanted:
            # The service chose another container, whose path was not checked before.
            path = path.with_suffix(f".{file.format}")
            if path.exists():
                raise ParameterError(f"{path} exists; name another output for {task.name}")
        paths.append(await client.download(file, path))
    return paths


def _get_format(task: ClipTask) -> str:
    return task.output.suffix.lower()[1:]

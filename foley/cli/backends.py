"""Where `foley generate` runs: a model in this process, or a service."""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from foley.cli.options import ModelOptions
from foley.cli.plan import AUDIO_SUFFIXES, ClipTask
from foley.errors import ParameterError
from foley.mix import LoudnessReport
from foley.types import NoPicture, Stage, VideoFrames

if TYPE_CHECKING:
    from foley.client import Format, RemoteFile, RemoteUpdate
    from foley.generation import Generation
    from foley.media.mux import MediaFile
    from foley.pipeline import Progress

MAX_WAIT_SECONDS = 600.0  # how long a busy service is retried


class OnStage(Protocol):
    """A function that shows how far a clip is."""

    def __call__(self, stage: str, step: int = 0, num_steps: int = 1) -> None:
        """Show that `step` of `num_steps` steps of a stage are done.

        Args:
            stage: a value of `foley.types.Stage`, with a remark if there is one.
            step: steps that are done, from 0.
            num_steps: steps in all, at least 1.
        """


@dataclass(frozen=True, kw_only=True)
class ClipResult:
    """What was made for one clip.

    Attributes:
        paths: one file for each variation.
        seeds: the seed of each variation.
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


class GenerationBackend(Protocol):
    """Generates the sounds of clips.

    Attributes:
        description: the model and where it runs, in one line.
        about: what the model can and cannot do; empty if its publisher says it.
    """

    description: str
    about: str

    def run(self, task: ClipTask, *, trim: bool, on_stage: OnStage) -> ClipResult:
        """Generate the sounds of a clip and write its files.

        Args:
            task: the clip, its options and its outputs.
            trim: whether to cut a clip that is too long instead of refusing it.
            on_stage: called when a stage begins or moves on.

        Raises:
            RequestError: the clip or its output cannot be used.
            ServerError: the model or the service failed.
            ConnectionFailedError: the service cannot be reached.
        """

    def close(self) -> None:
        """Release connections."""


class LocalBackend:
    """A `GenerationBackend` with a model in this process.

    Args:
        options: which model, and where it runs.

    Raises:
        ServerError: the weights or the device cannot be used.
    """

    def __init__(self, options: ModelOptions) -> None:
        self._pipeline = options.load()
        self.description = self._pipeline.description
        self.about = self._pipeline.preset.about

    def run(self, task: ClipTask, *, trim: bool, on_stage: OnStage) -> ClipResult:
        """See `GenerationBackend.run`."""

        def on_progress(progress: "Progress") -> None:
            on_stage(progress.stage, progress.step, progress.num_steps)

        start = time.perf_counter()
        frames: VideoFrames | NoPicture
        decoded: dict[str, float] = {}
        if task.clip is None:
            assert task.request.duration_seconds is not None
            frames = NoPicture(duration_seconds=task.request.duration_seconds)
        else:
            on_stage(Stage.DECODE_VIDEO)
            frames = self._pipeline.decode_video(task.clip, trim=trim)
            decoded[Stage.DECODE_VIDEO] = time.perf_counter() - start
        generation = self._pipeline.generate(frames, task.request, on_progress)
        mux_start = time.perf_counter()
        on_stage(Stage.MUX)
        trimmed = isinstance(frames, VideoFrames) and frames.trimmed
        stop_seconds = generation.duration_seconds if trimmed else None
        files = _write_files(task, generation, stop_seconds)
        end = time.perf_counter()
        return ClipResult(
            paths=[file.path for file in files],
            seeds=generation.seeds,
            duration_seconds=generation.duration_seconds,
            seconds=end - start,
            timings={**decoded, **generation.timings, Stage.MUX: end - mux_start},
            notices=(*generation.notices, *(notice for file in files for notice in file.notices)),
            loudness=tuple(file.loudness for file in files if file.loudness),
        )

    def close(self) -> None:
        """Do nothing: a local model holds memory only."""


def _write_files(
    task: ClipTask, generation: "Generation", stop_seconds: float | None
) -> "list[MediaFile]":
    from foley.media.mux import write_audio, write_video

    files = []
    for waveform, path in zip(generation.waveforms, task.list_outputs(), strict=True):
        if path.suffix.lower() in AUDIO_SUFFIXES:
            files.append(
                write_audio(
                    waveform, path, mix=task.mix, source=task.clip, stop_seconds=stop_seconds
                )
            )
        else:
            assert task.clip is not None  # `plan_sound` refused a video
            files.append(
                write_video(task.clip, waveform, path, stop_seconds=stop_seconds, mix=task.mix)
            )
    return files


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

        with contextlib.ExitStack() as stack:
            self._client = stack.enter_context(FoleyClient(base_url, api_key=api_key))
            (model, *_) = self._client.list_models()
            self.close = stack.pop_all().close
        self._bulk = bulk
        self.about = model.about
        self.description = f"{base_url}: preset {model.preset}"

    def run(self, task: ClipTask, *, trim: bool, on_stage: OnStage) -> ClipResult:
        """See `GenerationBackend.run`."""

        def on_update(update: "RemoteUpdate") -> None:
            position = f", {update.queue_position} before" if update.queue_position else ""
            on_stage(f"{update.stage}{position}", update.step or 0, update.num_steps or 1)

        start = time.perf_counter()
        on_stage(Stage.UPLOAD)
        result = self._client.generate(
            task.clip,
            on_update=on_update,
            max_wait_seconds=MAX_WAIT_SECONDS,
            trim=trim,
            format=cast("Format", _get_format(task)),
            priority="bulk" if self._bulk else "interactive",
            **task.request.model_dump(),
            **task.mix.changed(),
        )
        chosen = result.select_files(_get_format(task))
        paths = self._download(task, chosen)
        return ClipResult(
            paths=paths,
            seeds=result.seeds,
            duration_seconds=result.duration_seconds,
            seconds=time.perf_counter() - start,
            timings={k: s for k, s in result.timings_seconds.items() if k != "total"},
            notices=result.notices,
            loudness=tuple(file.loudness for file in chosen if file.loudness),
        )

    def _download(self, task: ClipTask, files: "list[RemoteFile]") -> list[Path]:
        wanted = _get_format(task)
        paths = []
        for file, path in zip(files, task.list_outputs(), strict=True):
            if file.format != wanted:
                # The service chose another container, whose path was not checked before.
                path = path.with_suffix(f".{file.format}")
                if path.exists():
                    raise ParameterError(f"{path} exists; name another output for {task.name}")
            paths.append(self._client.download(file, path))
        return paths


def _get_format(task: ClipTask) -> str:
    return task.output.suffix.lower()[1:]

"""Who makes the sounds for `foley generate`: a model in this process, or a service."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from foley.cli.options import ModelOptions
from foley.errors import ParameterError
from foley.request import GenerationRequest

if TYPE_CHECKING:
    from foley.client import Format, RemoteUpdate

AUDIO_SUFFIXES = (".wav", ".flac")
# A service that is busy is asked again for so long: other tables of clips may be before this one.
MAX_WAIT_SECONDS = 600.0

Show = Callable[[str, int, int], None]  # stage, steps done, of so many


@dataclass(frozen=True)
class Task:
    """One clip to sound: where it is, what was asked, where the result goes."""

    clip: Path
    request: GenerationRequest
    output: Path

    def outputs(self) -> list[Path]:
        """The file of each variation; numbered where there are several."""
        count = self.request.num_variations
        if count == 1:
            return [self.output]
        names = (f"{self.output.stem}-{i}{self.output.suffix}" for i in range(1, count + 1))
        return [self.output.with_name(name) for name in names]


@dataclass(frozen=True)
class Sounded:
    """What came of a task.

    Attributes:
        paths: one file for each variation.
        seeds: of each.
        duration_seconds: length of each sound.
        timings: seconds in each stage, in order; together the whole time.
        notices: sentences about what was done to the clip.
    """

    paths: list[Path]
    seeds: tuple[int, ...]
    duration_seconds: float
    timings: dict[str, float]
    notices: tuple[str, ...]


class Maker(Protocol):
    """Makes sounds.

    Attributes:
        description: of the model, in a line.
        about: what the model is and is not; empty where its publisher tells.
    """

    description: str
    about: str

    def make(self, task: Task, *, trim: bool, show: Show) -> Sounded:
        """Make the files of a task."""

    def close(self) -> None:
        """Give up what it holds."""


class LocalMaker:
    """A model in this process."""

    def __init__(self, options: ModelOptions) -> None:
        self._pipeline = options.load()
        self.description = self._pipeline.description
        self.about = self._pipeline.preset.about

    def make(self, task: Task, *, trim: bool, show: Show) -> Sounded:
        """Make the files of a task."""
        from foley.media.mux import write_audio, write_video

        start = time.perf_counter()
        show("decoding", 0, 1)
        frames = self._pipeline.decode_video(task.clip, trim=trim)
        decode_seconds = time.perf_counter() - start
        made = self._pipeline.generate(
            frames, task.request, lambda now: show(now.stage, now.step, now.num_steps)
        )
        mux_start = time.perf_counter()
        show("writing", 0, 1)
        stop_seconds = made.duration_seconds if frames.trimmed else None
        written = []
        for waveform, path in zip(made.waveforms, task.outputs(), strict=True):
            if path.suffix.lower() in AUDIO_SUFFIXES:
                written.append(write_audio(waveform, path))
            else:
                written.append(write_video(task.clip, waveform, path, stop_seconds=stop_seconds))
        write_seconds = time.perf_counter() - mux_start
        return Sounded(
            paths=[item.path for item in written],
            seeds=made.seeds,
            duration_seconds=made.duration_seconds,
            timings={"decode_video": decode_seconds, **made.timings, "write": write_seconds},
            notices=(*made.notices, *(notice for item in written for notice in item.notices)),
        )

    def close(self) -> None:
        """Nothing is held beside memory."""


class ServiceMaker:
    """A service.

    Args:
        base_url: its address.
        api_key: where it asks for one.
        patient: whether others go first, as for many clips at once.
    """

    def __init__(self, base_url: str, api_key: str | None, *, patient: bool) -> None:
        from foley.client import FoleyClient

        with contextlib.ExitStack() as stack:
            self._client = stack.enter_context(FoleyClient(base_url, api_key=api_key))
            (model, *_) = self._client.list_models()
            self.close = stack.pop_all().close
        self._patient = patient
        self.about = model.about
        self.description = f"{base_url}: preset {model.preset}"

    def make(self, task: Task, *, trim: bool, show: Show) -> Sounded:
        """Make the files of a task."""

        def on_update(update: "RemoteUpdate") -> None:
            stage = update.stage
            if update.queue_position:
                stage = f"{stage}, {update.queue_position} before"
            show(stage, update.step or 0, update.num_steps or 1)

        start = time.perf_counter()
        show("sending", 0, 1)
        wanted = cast("Format", task.output.suffix.lower()[1:])
        made = self._client.generate(
            task.clip,
            on_update=on_update,
            max_wait_seconds=MAX_WAIT_SECONDS,
            trim=trim,
            format=wanted,
            priority="bulk" if self._patient else "interactive",
            **task.request.model_dump(),
        )
        show("fetching", 0, 1)
        files = made.select_files(wanted)
        # Where the service gave another container after all, that name was not said to be free.
        paths = []
        for file, path in zip(files, task.outputs(), strict=True):
            if file.format != wanted:
                path = path.with_suffix(f".{file.format}")
                if path.exists():
                    raise ParameterError(f"{path} exists; name another output for {task.clip}")
            paths.append(self._client.download(file, path))
        timings = {stage: s for stage, s in made.timings_seconds.items() if stage != "total"}
        timings["transfer"] = time.perf_counter() - start - sum(timings.values())
        return Sounded(
            paths=paths,
            seeds=made.seeds,
            duration_seconds=made.duration_seconds,
            timings=timings,
            notices=made.notices,
        )

"""What `foley generate` will do: which clips, with which options, into which files.

Everything that can be refused is refused here, before a model is loaded.
"""

import os
import re
import shlex
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from foley.cli.pipes import PIPE
from foley.configs import DEFAULT_CLIP_SECONDS
from foley.errors import OutputError, ParameterError, RequestError
from foley.media.numbering import is_pattern, name_pictures
from foley.mix import MixOptions, choose_stem_path
from foley.parts import Part
from foley.quiet import silence_imports
from foley.request import GenerationRequest, check_part

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm")
AUDIO_SUFFIXES = (".wav", ".flac")
SUFFIXES = VIDEO_SUFFIXES + AUDIO_SUFFIXES
_NO_MIX = MixOptions()
_MAX_NAME_BYTES = 255
_FLAGS = {
    "start_seconds": "--start",
    "frame_rate": "--frame-rate",
    "duration_seconds": "--seconds",
}


@dataclass(frozen=True)
class ClipTask:
    """One clip, its options and its output.

    Attributes:
        clip: path of the video; None for a sound of the prompt alone.
        request: options of the generation.
        output: path of the result. With several variations, each path has a number added.
        mix: how its sound is finished.
        source: file that is read in place of `clip`: packed pictures, or a part of it.
        edit_source: the file that an edit starts from; None where it is none.
        parts: of the layers that are made again.
        from_stdin: whether `clip` is a copy of standard input.
        to_stdout: whether `output` is a temporary file, to be copied to standard output.
    """

    clip: Path | None
    request: GenerationRequest
    output: Path
    mix: MixOptions = _NO_MIX
    source: Path | None = None
    edit_source: Path | None = None
    parts: tuple[Part, ...] = ()
    from_stdin: bool = False
    to_stdout: bool = False

    @property
    def read_from(self) -> Path | None:
        """The file that holds the clip; None without one."""
        return self.source or self.clip

    @property
    def name(self) -> str:
        """What messages call it: as the user named it."""
        if self.from_stdin:
            return str(PIPE)
        return "sound" if self.clip is None else str(self.clip)

    @property
    def short_name(self) -> str:
        """The name without folders."""
        return Path(self.name).name

    def list_outputs(self) -> list[Path]:
        """Return the path of each variation."""
        count = self.request.num_variations
        if count == 1:
            return [self.output]
        names = (f"{self.output.stem}-{i}{self.output.suffix}" for i in range(1, count + 1))
        return [self.output.with_name(name) for name in names]

    def choose_piece_path(self, variation: int, number: int) -> Path:
        """Return the path of a piece of a long sound, a wav file.

        Args:
            variation: from 1.
            number: of the piece, from 1.
        """
        output = self.list_outputs()[variation - 1]
        return output.with_name(f"{output.stem}-piece-{number}.wav")

    def list_stems(self) -> list[Path]:
        """Return the path of each layer."""
        count = len(self.request.layers)
        return [choose_stem_path(self.output, number) for number in range(1, count + 1)]

    def list_files(self) -> list[Path]:
        """Return the paths of all files."""
        return [*self.list_outputs(), *self.list_stems()]


def plan_clips(
    clips: Sequence[Path], request: GenerationRequest, output: Path | None
) -> list[ClipTask]:
    """Return one task for each clip.

    Args:
        clips: paths of the videos; a single one need not exist, if it looks like a path.
        request: the options of all clips.
        output: the result's file, a folder, or None for a file beside each clip.

    Raises:
        ParameterError: `output` is one file for several clips, or has an unknown suffix; or a clip
            is no file, and was perhaps meant as the prompt.
    """
    for clip in clips:
        may_be_prompt = len(clips) > 1 or not (clip.suffix or clip.parent.name)
        if may_be_prompt and not clip.exists() and not is_pattern(clip):
            raise ParameterError(
                f"there is no file {clip}; check the path, or write -p {shlex.quote(str(clip))}"
                " if it is the prompt"
            )
    if output is not None and output.suffix and not output.is_dir():
        if output.suffix.lower() not in SUFFIXES:
            raise ParameterError(
                f"--output ends in {output.suffix}; use one of {' '.join(SUFFIXES)}, or a folder"
            )
        if len(clips) > 1:
            raise ParameterError(
                f"--output {output} is one file for {len(clips)} clips; name a folder"
            )
        return [ClipTask(clip, request, output) for clip in clips]
    return [ClipTask(clip, request, choose_default_output(clip, output)) for clip in clips]


def plan_sound(request: GenerationRequest, output: Path | None) -> ClipTask:
    """Return the task of a sound without a clip.

    Args:
        request: with a `duration_seconds`.
        output: the result's file, a folder for sound.wav, or None for sound.wav in this folder.

    Raises:
        ParameterError: `output` is a video.
    """
    if output is None or output.is_dir() or not output.suffix:
        return ClipTask(None, request, (output or Path()) / "sound.wav")
    if output.suffix.lower() not in AUDIO_SUFFIXES:
        raise ParameterError(
            f"--output ends in {output.suffix}, and without a clip there is no picture; "
            f"use {' or '.join(AUDIO_SUFFIXES)}"
        )
    return ClipTask(None, request, output)


def choose_default_output(clip: Path, folder: Path | None, number: int = 1) -> Path:
    """Return the path of a result that the user did not name: CLIP.foley.mp4.

    Args:
        clip: path of the video. The result has its suffix, or .mp4 if it is no video suffix.
        folder: parent of the result; None for the clip's folder.
        number: of the result among those of the clip, from 1. From 2 on it is part of the name,
            so that a result keeps its name when another one is added.

    Raises:
        ParameterError: the name would be too long.
    """
    suffix = clip.suffix.lower() if clip.suffix.lower() in VIDEO_SUFFIXES else ".mp4"
    ending = f"-{number}" if number > 1 else ""
    stem = clip.stem
    if is_pattern(clip):
        stem = name_pictures(clip)
    name = f"{stem}.foley{ending}{suffix}"
    if (num_bytes := len(os.fsencode(name))) > _MAX_NAME_BYTES:
        raise ParameterError(
            f"{clip.name[:40]}...: the result's name would have {num_bytes} bytes, the limit of "
            f"file systems is {_MAX_NAME_BYTES}; name the result with --output"
        )
    return (folder or clip.parent) / name


def add_mix(tasks: Sequence[ClipTask], mix: MixOptions) -> list[ClipTask]:
    """Return the tasks with the options of the mix.

    Args:
        tasks: what was asked for.
        mix: of all tasks.

    Raises:
        ParameterError: the options do not fit the output of a task.
    """
    for task in tasks:
        suffix = task.output.suffix.lower().removeprefix(".")
        mix.check_files(
            (suffix,),
            has_clip=task.clip is not None,
            is_stereo=task.request.is_stereo,
            has_original=task.request.has_original,
        )
    return [replace(task, mix=mix) for task in tasks]


def check_clips(
    tasks: Sequence[ClipTask],
    console: Console,
    on_error: Callable[[ClipTask, RequestError], None],
) -> list[ClipTask]:
    """Return the tasks whose clip can be opened, with the suffix that their result will have.

    Args:
        tasks: what was asked for.
        console: receives a line for each output whose suffix changes.
        on_error: called for a clip that cannot be opened. It is left out.
    """
    usable = []
    for task in tasks:
        try:
            usable.append(_choose_container(task, console))
        except RequestError as error:
            on_error(task, error)
    return usable


def prepare_clips(
    tasks: Sequence[ClipTask],
    scratch: Path,
    on_error: Callable[[ClipTask, RequestError], None],
    *,
    start_seconds: float,
    frame_rate: float | None,
    duration_seconds: float | None,
    trim: bool,
) -> list[ClipTask]:
    """Return the tasks with the files that are read: packed pictures, or parts of clips.

    Args:
        tasks: what was asked for.
        scratch: folder of the new files.
        on_error: called for a clip that cannot be prepared. It is left out.
        start_seconds: where the used part of each clip begins.
        frame_rate: of numbered pictures; None for videos.
        duration_seconds: how long each still picture is shown; None for other clips.
        trim: whether the part ends at the limit of clips.

    Raises:
        ParameterError: an option is out of bounds.
    """
    check_part_flags(start_seconds, frame_rate, duration_seconds)
    has_options = bool(start_seconds or frame_rate or duration_seconds)
    prepared = []
    for number, task in enumerate(tasks):
        if task.clip is None or not (has_options or is_pattern(task.clip)):
            prepared.append(task)
            continue
        with silence_imports():
            from foley.media.prepare import prepare_clip
        try:
            source = prepare_clip(
                task.clip,
                scratch / f"{number}{task.clip.suffix}",
                start_seconds=start_seconds,
                frame_rate=frame_rate,
                duration_seconds=duration_seconds,
                stop_seconds=start_seconds + DEFAULT_CLIP_SECONDS + 1 if trim else None,
            )
        except RequestError as error:
            on_error(task, error)
        else:
            prepared.append(replace(task, source=source))
    return prepared


def check_part_flags(
    start_seconds: float, frame_rate: float | None, duration_seconds: float | None = None
) -> None:
    """Check --start and --frame-rate.

    Args:
        start_seconds: where the used part of each clip begins.
        frame_rate: of numbered pictures; None for videos.
        duration_seconds: of a still picture; None for other clips.

    Raises:
        ParameterError: one is out of bounds, or two do not fit.
    """
    try:
        check_part(start_seconds, frame_rate, duration_seconds)
    except ParameterError as error:
        raise ParameterError(name_flags(str(error))) from error


def name_flags(message: str) -> str:
    """Return a message about a request with the options as they are typed.

    Args:
        message: names options as `GenerationRequest` and the service do.
    """
    words = re.compile(rf"(?<![\w./-])({'|'.join(_FLAGS)})(?![\w/-])")  # and no part of a path
    return words.sub(lambda match: _FLAGS[match[0]], message)


def _choose_container(task: ClipTask, console: Console) -> ClipTask:
    if task.clip is None:
        return task
    clip = task.source or task.clip
    with silence_imports():
        from foley.media.mux import choose_container
        from foley.media.original import read_original
        from foley.media.picture import CONTAINERS

    if task.mix.is_mixed:  # refused here, if it cannot be decoded
        read_original(clip, fit=lambda layout: layout)

    wanted = next((c for c in CONTAINERS if task.output.suffix.lower() == f".{c}"), None)
    if wanted is None and clip.is_file():  # audio only: decoding will check the clip
        return task
    container = choose_container(clip, wanted or CONTAINERS[0])
    if container == wanted:
        return task
    task = replace(task, output=task.output.with_suffix(f".{container}"))
    written = container if task.to_stdout else task.output
    console.print(f"{task.name}: {wanted} cannot hold its video stream; writing {written} instead")
    return task


def skip_finished(tasks: Sequence[ClipTask], console: Console, num_clips: int) -> list[ClipTask]:
    """Return the tasks that lack at least one of their outputs.

    Args:
        tasks: what was asked for.
        console: receives one line if tasks are skipped.
        num_clips: number of clips that the line names.
    """
    waiting = [task for task in tasks if not all(path.exists() for path in task.list_files())]
    if len(waiting) < len(tasks):
        console.print(f"{len(tasks) - len(waiting)} of {num_clips} results exist: skipped")
    return waiting


def refuse_collisions(tasks: Sequence[ClipTask]) -> None:
    """Check that no result overwrites a clip or another result.

    Args:
        tasks: what was asked for.

    Raises:
        ParameterError: two paths are the same file; the message names both.
    """
    read = (path for task in tasks for path in (task.clip, task.edit_source) if path is not None)
    clips = {path.resolve() for path in read}
    seen: dict[Path, str] = {}
    for task in tasks:
        for path in (output.resolve() for output in task.list_files()):
            if path in clips:
                raise ParameterError(
                    f"the result for {task.name} would overwrite {path}, which is read; "
                    "name another output"
                )
            if path in seen:
                raise ParameterError(
                    f"{seen[path]} and {task.name} would both be written to {path}; "
                    "name other outputs"
                )
            seen[path] = task.name


def create_folders(tasks: Sequence[ClipTask]) -> None:
    """Create the folder of each output, and check that files can be written there.

    Args:
        tasks: what was asked for.

    Raises:
        OutputError: a folder cannot be created, or takes no file.
    """
    for folder in {task.output.parent for task in tasks}:
        create_folder(folder)


def create_folder(folder: Path) -> None:
    """Create a folder, and check that files can be written there.

    Args:
        folder: of an output.

    Raises:
        OutputError: it cannot be created, or takes no file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"folder {folder} cannot be made ({error.strerror}); name another output"
        ) from error
    try:
        # Rights do not tell: a full disk or a mount that is read-only refuses everybody.
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(4096))
    except OSError as error:
        raise OutputError(
            f"nothing can be written in the folder {folder} ({error.strerror}); name another "
            "one with --output, or make room there"
        ) from error

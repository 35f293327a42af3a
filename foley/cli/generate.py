"""`foley generate`: generate the sound of one or several clips."""

import contextlib
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from foley.cli.backends import (
    ClipResult,
    GenerationBackend,
    LocalBackend,
    ServerBackend,
    SoundFile,
)
from foley.cli.options import MarkFlags, MixFlags, ModelOptions, ServerOptions, SoundOptions
from foley.cli.pipes import PIPE, check_pipes, store_input
from foley.cli.plan import (
    ClipTask,
    add_mix,
    check_clips,
    create_folders,
    plan_clips,
    plan_sound,
    prepare_clips,
    refuse_collisions,
    skip_finished,
)
from foley.cli.progress import show_progress
from foley.cli.projects import read_project
from foley.cli.report import Report
from foley.cli.table import read_table
from foley.cli.timelines import check_timelines, write_timelines
from foley.cli.whole import WHOLE
from foley.errors import ParameterError, RequestError
from foley.parts import Part
from foley.request import GenerationRequest

MAX_JOBS = 16  # more at once are hardly faster


def generate(
    *clips: Annotated[Path, Parameter(help="Video files; - is standard input.")],
    sound: SoundOptions = SoundOptions(),  # noqa: B008 - it is frozen
    mix: MixFlags = MixFlags(),  # noqa: B008
    output: Annotated[
        Path | None,
        Parameter(
            alias="-o",
            help="File (.mp4 .mov .mkv .webm, or audio only: .wav .flac), or a folder for several "
            "clips, or - for standard output. By default CLIP.foley.mp4 beside the clip.",
        ),
    ] = None,
    csv_file: Annotated[
        Path | None,
        Parameter(
            name="--csv",
            help="Table of clips with the column clip, and optionally prompt, negative_prompt, "
            "seed and output, separated by commas, semicolons or tabs. Paths are relative to the "
            "table.",
        ),
    ] = None,
    project_file: Annotated[
        Path | None,
        Parameter(
            name="--project",
            help="Project of the editor: its prompts, cues, seeds, parts that were made again, and "
            "mix. Its clip lies beside it, unless another one is named.",
        ),
    ] = None,
    trim: Annotated[
        bool, Parameter(negative=(), help="Cut clips over 10 min instead of refusing them.")
    ] = False,
    start_seconds: Annotated[
        float,
        Parameter(name="--start", help="Second of each clip at which the used part begins."),
    ] = 0.0,
    frame_rate: Annotated[
        float | None,
        Parameter(
            help="Pictures per second of numbered pictures (frames/%04d.png), or of a zip of them.",
        ),
    ] = None,
    skip_existing: Annotated[
        bool, Parameter(negative=(), help="Skip clips whose result exists.")
    ] = False,
    jobs: Annotated[
        int,
        WHOLE,
        Parameter(
            alias="-j",
            help="Clips at once; 1 to 16. Together they take less time than one after the other, "
            "and more memory.",
        ),
    ] = 1,
    pieces: Annotated[
        bool,
        Parameter(
            negative=(),
            help="Write a sound of over 15 s in pieces of about 8 s too, as CLIP.foley-piece-1.wav "
            "and so on, while the rest is made. A service on a CPU sends the first 2.56 s of a "
            "sound of over 5.12 s ahead too. They are the new sound before the options of the mix. "
            "Not with layers, an edit or --avoid-speech retry, where nothing is final early.",
        ),
    ] = False,
    quiet: Annotated[
        bool, Parameter(alias="-q", negative=(), help="Show paths of results and errors only.")
    ] = False,
    verbose: Annotated[
        bool, Parameter(alias="-v", negative=(), help="Show logs, and the seconds of each stage.")
    ] = False,
    as_json: Annotated[
        bool,
        Parameter(
            name="--json",
            negative=(),
            help="Write a line of JSON for each clip to standard output, instead of paths.",
        ),
    ] = False,
    otio: Annotated[
        bool,
        Parameter(
            negative=(),
            help="Write an OpenTimelineIO file beside each result, which lays the clip, the sound "
            "and the layers out for an editor.",
        ),
    ] = False,
    marks: MarkFlags = MarkFlags(),  # noqa: B008
    server: ServerOptions = ServerOptions(),  # noqa: B008
    model: ModelOptions = ModelOptions(),  # noqa: B008
) -> int:
    """Generate the sound of one or several clips, or of a prompt alone.

    The video stream is copied unchanged. The clip's own sound is left out, unless
    --original-sound says otherwise.

    Paths of results go to standard output, all else to standard error.
    """
    request, mix_options = sound.parse(), mix.parse()
    parts: tuple[Part, ...] = ()
    if project_file is not None:
        if sound != SoundOptions() or mix != MixFlags():
            raise ParameterError(
                "--project has its own prompts and mix: leave out the options of sound and mix, or "
                "change the project in the editor"
            )
        project = read_project(project_file)
        request, mix_options, parts = project.request, project.mix, project.parts
        if parts and server.url is not None:
            raise ParameterError(
                f"--project {project_file} has parts that were made again, which need the model in "
                "this process: leave out --server"
            )
        if not clips and project.clip is not None:
            clips = (project.clip,)
    if server.url is not None and (model.preset != "auto" or model.device != "auto"):
        raise ParameterError("--server has its own model: leave --preset and --device out")
    edit = request.edit
    if server.url is None and edit and not edit.is_original and sound.find_source() is None:
        raise ParameterError(
            f"--edit-source: there is no file {edit.source}; check the path (ids and addresses are "
            "for a service, with --server)"
        )
    if request.duration_seconds is not None and csv_file is not None:
        raise ParameterError(
            "--seconds is the length of a sound without a clip, or of a still picture: leave it or "
            "--csv out"
        )
    if not 1 <= jobs <= MAX_JOBS:
        raise ParameterError(f"--jobs: {jobs} clips at once are not possible; give 1 to {MAX_JOBS}")
    if pieces:
        check_pieces(request, jobs=jobs, to_stdout=output == PIPE, has_parts=bool(parts))
    if quiet and verbose:
        raise ParameterError("--quiet and --verbose exclude one another; leave one out")
    logging.getLogger("foley").setLevel(logging.INFO if verbose else logging.WARNING)
    if otio:
        check_timelines(is_piped=PIPE in (*clips, output))
    check_pipes(
        clips,
        output,
        has_table=csv_file is not None,
        num_files=request.num_variations + len(request.layers),
        as_json=as_json,
    )
    console = Console(stderr=True, quiet=quiet, highlight=False, markup=False, soft_wrap=True)
    report = Report(console, as_json=as_json, verbose=verbose)
    with contextlib.ExitStack() as stack:
        if PIPE in (*clips, output):
            tasks = plan_piped(clips, request, output, make_scratch(stack))
        else:
            tasks = plan(clips, request, output)
        if csv_file is not None:
            tasks += read_table(csv_file, request, output, console)
        if not tasks:
            raise ParameterError(
                "no clip was named; give a video file, --csv TABLE, or --seconds and a prompt"
            )
        tasks = [replace(task, edit_source=sound.find_source(), parts=parts) for task in tasks]
        tasks = add_mix(tasks, mix_options)
        report.num_clips = len(tasks)
        tasks = prepare_clips(
            tasks,
            make_scratch(stack),
            report.print_error,
            start_seconds=start_seconds,
            frame_rate=frame_rate,
            duration_seconds=request.duration_seconds,
            trim=trim,
        )
        tasks = check_clips(tasks, console, report.print_error)
        refuse_collisions(tasks)
        if skip_existing:
            tasks = skip_finished(tasks, console, report.num_clips)
        if tasks:
            create_folders(tasks)
            backend = open_backend(server, model, marks, bulk=len(tasks) > 1)
            run_tasks(backend, tasks, report, jobs=jobs, trim=trim, otio=otio, pieces=pieces)
    report.print_summary()
    return 1 if report.num_failed else 0


def check_pieces(
    request: GenerationRequest, *, jobs: int, to_stdout: bool, has_parts: bool
) -> None:
    """Refuse what excludes --pieces.

    Args:
        request: the options of all clips.
        jobs: clips at once.
        to_stdout: whether the result goes to standard output.
        has_parts: whether parts of the sound are made again.

    Raises:
        ParameterError: names the option.
    """
    reasons = {
        "--project with parts": has_parts,
        "--layer": bool(request.layers),
        "--edit-source": request.edit is not None,
        "--avoid-speech retry": request.avoid_speech == "retry",
        "--jobs": jobs > 1,
        "--output -": to_stdout,
    }
    for option, is_given in reasons.items():
        if is_given:
            raise ParameterError(f"--pieces and {option} exclude one another; leave one out")


def make_scratch(stack: contextlib.ExitStack) -> Path:
    """Return a new folder for temporary files, which is removed when the stack ends.

    Args:
        stack: of the command.
    """
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="foley-")))


def plan(clips: Sequence[Path], request: GenerationRequest, output: Path | None) -> list[ClipTask]:
    """Return what the command line asks for, without the clips of a table.

    Args:
        clips: paths of the videos; none for a sound of the prompt alone.
        request: the options of all clips.
        output: the result's file, a folder, or None for the usual name.

    Raises:
        ParameterError: the options do not fit each other.
    """
    if request.duration_seconds is not None and not clips:
        request.check_without_clip()
        return [plan_sound(request, output)]
    return plan_clips(clips, request.of_clip(), output)


def plan_piped(
    clips: Sequence[Path], request: GenerationRequest, output: Path | None, scratch: Path
) -> list[ClipTask]:
    """Return what the command line asks for, with temporary files in place of `-`.

    Args:
        clips: as the user named them; standard input is read if it is among them.
        request: the options of all clips.
        output: as the user named it.
        scratch: folder of the temporary files.

    Raises:
        ParameterError: the options do not fit each other, or standard input is empty.
        OutputError: standard input cannot be kept.
    """
    stdin = scratch / "stdin"
    if PIPE in clips:
        store_input(stdin)
    clips = [stdin if clip == PIPE else clip for clip in clips]
    to_stdout = output == PIPE
    tasks = plan(clips, request, scratch / "stdout" if to_stdout else output)
    return [replace(t, from_stdin=t.clip == stdin, to_stdout=to_stdout) for t in tasks]


def open_backend(
    server: ServerOptions, model: ModelOptions, marks: MarkFlags, *, bulk: bool
) -> GenerationBackend:
    """Return a service's backend if an address was given, else a loaded model.

    Args:
        server: the service's address and key.
        model: which model to load, and where it runs.
        marks: what the results of a loaded model say.
        bulk: whether interactive requests of a service's other callers go first.

    Raises:
        ServerError: the weights, the device or a key for marks cannot be used, or the service is
            not ready.
        RequestError: the address is malformed, or the key is refused.
        ConnectionFailedError: the service cannot be reached.
    """
    if server.url is None:
        return LocalBackend(model, marks.load())
    return ServerBackend(server.url, server.api_key, bulk=bulk)


def run_tasks(
    backend: GenerationBackend,
    tasks: list[ClipTask],
    report: Report,
    *,
    jobs: int,
    trim: bool,
    otio: bool = False,
    pieces: bool = False,
) -> None:
    """Generate all clips. A clip that fails does not stop the others.

    Args:
        backend: where the clips are generated.
        tasks: the clips, in order.
        report: where results and errors go.
        jobs: clips at once.
        trim: whether to cut clips that are too long instead of refusing them.
        otio: whether to write timelines.
        pieces: whether to write pieces of long sounds while the rest is made.

    Raises:
        ServerError: the model or the service failed, which would fail the other clips too.
        ConnectionFailedError: the service cannot be reached.
    """
    report.print_model(backend.model)
    with show_progress(tasks, report.console) as bar:

        def on_outcome(task: ClipTask, outcome: ClipResult | RequestError) -> None:
            bar.finish(task)
            with bar.pause():
                try:
                    if otio and not isinstance(outcome, RequestError):
                        write_timelines(task, outcome)
                except RequestError as error:
                    outcome = error
                if isinstance(outcome, RequestError):
                    report.print_error(task, outcome)
                else:
                    report.print_result(task, outcome)

        def on_sound(task: ClipTask, piece: SoundFile) -> None:
            with bar.pause():
                report.print_piece(task, piece)

        backend.run(
            tasks,
            jobs=jobs,
            trim=trim,
            on_stage=bar.move,
            on_outcome=on_outcome,
            on_sound=on_sound if pieces else None,
        )

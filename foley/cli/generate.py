"""`foley generate`: generate the sound of one or several clips."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from foley.cli.backends import GenerationBackend, LocalBackend, ServerBackend
from foley.cli.options import MixFlags, ModelOptions, ServerOptions, SoundOptions
from foley.cli.plan import (
    ClipTask,
    add_mix,
    check_clips,
    create_folders,
    plan_clips,
    plan_sound,
    refuse_collisions,
    skip_finished,
)
from foley.cli.report import Report, show_progress
from foley.cli.table import read_table
from foley.errors import ParameterError, RequestError


def generate(
    *clips: Annotated[Path, Parameter(help="Video files.")],
    sound: SoundOptions = SoundOptions(),  # noqa: B008 - it is frozen
    mix: MixFlags = MixFlags(),  # noqa: B008
    output: Annotated[
        Path | None,
        Parameter(
            alias="-o",
            help="File (.mp4 .mov .mkv .webm, or audio only: .wav .flac), or a folder for several "
            "clips. By default CLIP.foley.mp4 beside the clip.",
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
    trim: Annotated[
        bool, Parameter(negative=(), help="Cut clips over 15 s instead of refusing them.")
    ] = False,
    skip_existing: Annotated[
        bool, Parameter(negative=(), help="Skip clips whose result exists.")
    ] = False,
    quiet: Annotated[
        bool, Parameter(alias="-q", negative=(), help="Show paths of results and errors only.")
    ] = False,
    as_json: Annotated[
        bool,
        Parameter(
            name="--json",
            negative=(),
            help="Write a line of JSON for each clip to standard output, instead of paths.",
        ),
    ] = False,
    server: ServerOptions = ServerOptions(),  # noqa: B008
    model: ModelOptions = ModelOptions(),  # noqa: B008
) -> int:
    """Generate the sound of one or several clips, or of a prompt alone.

    The video stream is copied unchanged. The clip's own sound is left out, unless
    --original-sound says otherwise.

    Paths of results go to standard output, all else to standard error.
    """
    request = sound.parse()
    mix_options = mix.parse()
    if server.url is not None and (model.preset != "auto" or model.device != "auto"):
        raise ParameterError("--server has its own model: leave --preset and --device out")
    console = Console(stderr=True, quiet=quiet, highlight=False, markup=False, soft_wrap=True)
    if request.duration_seconds is not None:
        if clips or csv_file is not None:
            raise ParameterError(
                "--seconds is the length of a sound without a clip: leave it out, or leave out "
                f"{clips[0] if clips else '--csv'} (a prompt comes after -p)"
            )
        tasks = [plan_sound(request, output)]
    else:
        tasks = plan_clips(clips, request, output)
    if csv_file is not None:
        tasks += read_table(csv_file, request, output, console)
    if not tasks:
        raise ParameterError(
            "no clip was named; give a video file, --csv TABLE, or --seconds and a prompt"
        )
    tasks = add_mix(tasks, mix_options)
    report = Report(console, as_json=as_json)
    num_clips = len(tasks)
    tasks = check_clips(tasks, console, report.print_error)
    num_failed = num_clips - len(tasks)
    refuse_collisions(tasks)
    if skip_existing:
        tasks = skip_finished(tasks, console, num_clips)
    if tasks:
        create_folders(tasks)
        with contextlib.closing(open_backend(server, model, bulk=len(tasks) > 1)) as backend:
            num_failed += run_tasks(backend, tasks, report, trim=trim)
        if num_failed and num_clips > 1:
            print(f"foley: {num_failed} of {num_clips} clips failed", file=sys.stderr)
    return 1 if num_failed else 0


def open_backend(server: ServerOptions, model: ModelOptions, *, bulk: bool) -> GenerationBackend:
    """Return a service's backend if an address was given, else a loaded model.

    Args:
        server: the service's address and key.
        model: which model to load, and where it runs.
        bulk: whether interactive requests of a service's other callers go first.

    Raises:
        ServerError: the weights or the device cannot be used, or the service is not ready.
        RequestError: the address is malformed, or the key is refused.
        ConnectionFailedError: the service cannot be reached.
    """
    if server.url is None:
        return LocalBackend(model)
    return ServerBackend(server.url, server.api_key, bulk=bulk)


def run_tasks(
    backend: GenerationBackend, tasks: list[ClipTask], report: Report, *, trim: bool
) -> int:
    """Generate all clips and return how many failed. A clip that fails does not stop the others.

    Args:
        backend: where the clips are generated.
        tasks: the clips, in order.
        report: where results and errors go.
        trim: whether to cut clips that are too long instead of refusing them.

    Raises:
        ServerError: the model or the service failed, which would fail the other clips too.
        ConnectionFailedError: the service cannot be reached.
    """
    report.console.print(backend.description + (f", {backend.about}" if backend.about else ""))
    num_failed = 0
    for task in tasks:
        try:
            with show_progress(task, report.console) as on_stage:
                result = backend.run(task, trim=trim, on_stage=on_stage)
        except RequestError as error:
            num_failed += 1
            report.print_error(task, error)
        else:
            report.print_result(task, result)
    return num_failed

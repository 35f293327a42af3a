"""`foley generate`: clips in, clips with sound out."""

import contextlib
import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from foley.cli.backends import (
    AUDIO_SUFFIXES,
    LocalMaker,
    Maker,
    ServiceMaker,
    Sounded,
    Task,
)
from foley.cli.options import ModelOptions, quiet_imports
from foley.configs import OFFICIAL_GUIDANCE, OFFICIAL_STEPS, TINY_GUIDANCE, TINY_STEPS
from foley.errors import OutputError, ParameterError, RequestError
from foley.request import GenerationRequest, Solver

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm")
SUFFIXES = VIDEO_SUFFIXES + AUDIO_SUFFIXES

_DEFAULTS = GenerationRequest()


def generate(
    *clips: Annotated[Path, Parameter(help="Video files.")],
    prompt: Annotated[str, Parameter(alias="-p", help="What should be heard.")] = _DEFAULTS.prompt,
    output: Annotated[
        Path | None,
        Parameter(
            alias="-o",
            help="File (.mp4 .mov .mkv .webm, or sound alone: .wav .flac), or a folder for several "
            "clips. Without it: CLIP.foley.mp4 beside the clip.",
        ),
    ] = None,
    csv_file: Annotated[
        Path | None,
        Parameter(
            name="--csv",
            help="Table of clips with the columns clip and prompt, and if wanted negative_prompt, "
            "seed and output. Paths are relative to the table.",
        ),
    ] = None,
    negative_prompt: Annotated[
        str, Parameter(help="What should not be heard.")
    ] = _DEFAULTS.negative_prompt,
    guidance_scale: Annotated[
        float | None,
        Parameter(
            help="How strongly the sound follows prompt and picture; 1 to 20. Without it, "
            f"{TINY_GUIDANCE:g} with tiny and {OFFICIAL_GUIDANCE:g} with official weights.",
        ),
    ] = None,
    num_inference_steps: Annotated[
        int | None,
        Parameter(
            alias="--steps",
            help=f"Solver steps; 1 to 200. Without it, {TINY_STEPS} with tiny and {OFFICIAL_STEPS} "
            "with official weights.",
        ),
    ] = None,
    solver: Annotated[Solver, Parameter(help="ODE solver.")] = _DEFAULTS.solver,
    seed: Annotated[
        int | None, Parameter(help="Repeats a result; random without it, and always shown.")
    ] = None,
    num_variations: Annotated[
        int, Parameter(alias="--variations", help="Sounds for each clip; 1 to 8.")
    ] = _DEFAULTS.num_variations,
    trim: Annotated[
        bool, Parameter(negative=(), help="Cut clips over 15 s instead of refusing them.")
    ] = False,
    skip_existing: Annotated[
        bool, Parameter(negative=(), help="Leave clips alone whose result exists.")
    ] = False,
    server: Annotated[
        str | None,
        Parameter(help="Address of a service that does the work, such as http://127.0.0.1:3000."),
    ] = None,
    api_key: Annotated[
        str | None,
        Parameter(
            env_var="FOLEY_API_KEY",
            help="Where the service asks for one; others can see a command's options, so rather "
            "set the variable.",
        ),
    ] = None,
    quiet: Annotated[bool, Parameter(alias="-q", negative=(), help="Errors only.")] = False,
    model: ModelOptions | None = None,
) -> int:
    """Make the sound of one or several clips.

    The picture is copied as it is; the clip's own sound is left out.
    """
    request = GenerationRequest.parse(
        prompt=prompt,
        negative_prompt=negative_prompt,
        guidance_scale=guidance_scale,
        num_inference_steps=num_inference_steps,
        solver=solver,
        seed=seed,
        num_variations=num_variations,
    )
    if (
        server is not None
        and model is not None
        and (model.preset != "auto" or model.device != "auto")
    ):
        raise ParameterError("--server has its own model: leave --preset and --device out")
    tasks = [*plan(clips, request, output), *read_table(csv_file, request, output)]
    if not tasks:
        raise ParameterError("no clip was named; give a video file, or --csv TABLE")
    console = Console(stderr=True, quiet=quiet, highlight=False, markup=False, soft_wrap=True)
    num_clips = len(tasks)
    # All that can be known before the model is loaded, which may take a while.
    tasks = list(_usable(tasks, console))
    num_failed = num_clips - len(tasks)
    refuse_collisions(tasks)
    if skip_existing:
        waiting = [task for task in tasks if not all(path.exists() for path in task.outputs())]
        if len(waiting) < len(tasks):
            console.print(f"{len(tasks) - len(waiting)} of {num_clips} results exist: skipped")
        tasks = waiting
    if not tasks:
        return 1 if num_failed else 0
    _make_folders(tasks)
    maker: Maker
    if server is None:
        maker = LocalMaker(model or ModelOptions())
    else:
        maker = ServiceMaker(server, api_key, patient=len(tasks) > 1)
    with contextlib.closing(maker):
        console.print(maker.description + (f", {maker.about}" if maker.about else ""))
        for task in tasks:
            try:
                _run(maker, task, trim, console)
            except RequestError as error:
                num_failed += 1
                print(f"foley: {task.clip}: {error}", file=sys.stderr)
    if num_failed and num_clips > 1:
        print(f"foley: {num_failed} of {num_clips} clips failed", file=sys.stderr)
    return 1 if num_failed else 0


def plan(clips: Sequence[Path], request: GenerationRequest, output: Path | None) -> list[Task]:
    """One task for each clip.

    Raises:
        ParameterError: one output file for several clips, or a suffix that is not known.
    """
    if output is not None and output.suffix and not output.is_dir():
        if output.suffix.lower() not in SUFFIXES:
            raise ParameterError(
                f"--output ends in {output.suffix}; use one of {' '.join(SUFFIXES)}, or a folder"
            )
        if len(clips) > 1:
            raise ParameterError(
                f"--output {output} is one file for {len(clips)} clips; name a folder"
            )
        return [Task(clip, request, output) for clip in clips]
    return [Task(clip, request, _default_output(clip, output)) for clip in clips]


def read_table(table: Path | None, request: GenerationRequest, output: Path | None) -> list[Task]:
    """One task for each row of a CSV file.

    Raises:
        ParameterError: unreadable, a column or value missing, or a value out of bounds.
    """
    if table is None:
        return []
    if output is not None and output.suffix.lower() in SUFFIXES:
        raise ParameterError(f"--output {output} is one file for a table of clips; name a folder")
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = set(reader.fieldnames or ())
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ParameterError(f"--csv {table} cannot be read: {error}") from error
    allowed = {"clip", "prompt", "negative_prompt", "seed", "output"}
    if "clip" not in columns or not columns <= allowed:
        raise ParameterError(
            f"--csv {table} has the columns {', '.join(sorted(columns)) or 'none'}; clip is "
            "needed, and prompt, negative_prompt, seed and output are known"
        )
    return [_row_task(table, line, row, request, output) for line, row in rows]


def _row_task(
    table: Path, line: int, row: dict[str, str], request: GenerationRequest, output: Path | None
) -> Task:
    options = {key: row[key] for key in ("prompt", "negative_prompt", "seed") if row.get(key)}
    if not row.get("clip") or None in row:
        raise ParameterError(f"{table}, line {line}: the row does not match the columns")
    try:
        request = GenerationRequest.parse(**(request.model_dump() | options))
    except ParameterError as error:
        raise ParameterError(f"{table}, line {line}: {error}") from error
    clip = table.parent / row["clip"]
    named = row.get("output")
    path = table.parent / named if named else _default_output(clip, output)
    if path.suffix.lower() not in SUFFIXES:
        raise ParameterError(
            f"{table}, line {line}: output {named} ends in none of {' '.join(SUFFIXES)}"
        )
    return Task(clip, request, path)


def _default_output(clip: Path, folder: Path | None) -> Path:
    suffix = clip.suffix.lower() if clip.suffix.lower() in VIDEO_SUFFIXES else ".mp4"
    return (folder or clip.parent) / f"{clip.stem}.foley{suffix}"


def _usable(tasks: Sequence[Task], console: Console) -> Iterator[Task]:
    """The tasks whose clip can be opened, each with the suffix that its result will have."""
    with quiet_imports():
        from foley.media.mux import CONTAINERS, container_for
    for task in tasks:
        wanted = next((c for c in CONTAINERS if task.output.suffix.lower() == f".{c}"), None)
        if wanted is None and task.clip.is_file():  # sound alone: what decoding will show
            yield task
            continue
        try:
            given = container_for(task.clip, wanted or CONTAINERS[0])
        except RequestError as error:
            print(f"foley: {task.clip}: {error}", file=sys.stderr)
            continue
        if given != wanted:
            task = replace(task, output=task.output.with_suffix(f".{given}"))
            console.print(f"{task.clip}: {wanted} does not take its picture: {task.output}")
        yield task


def refuse_collisions(tasks: Sequence[Task]) -> None:
    """Refuse tasks that would overwrite each other's result, or any of the clips.

    Raises:
        ParameterError: names both files.
    """
    clips = {task.clip.resolve() for task in tasks}
    seen: dict[Path, Path] = {}
    for task in tasks:
        for path in (output.resolve() for output in task.outputs()):
            if path in clips:
                raise ParameterError(
                    f"the result for {task.clip} would overwrite the clip {path}; "
                    "name another output"
                )
            if path in seen:
                raise ParameterError(
                    f"{seen[path]} and {task.clip} would both be written to {path}; "
                    "name other outputs"
                )
            seen[path] = task.clip


def _make_folders(tasks: Sequence[Task]) -> None:
    for folder in {task.output.parent for task in tasks}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"folder {folder} cannot be made ({error.strerror}); name another output"
            ) from error


def _run(maker: Maker, task: Task, trim: bool, console: Console) -> None:
    with Progress(
        TextColumn("{task.fields[clip]}  {task.description:16}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bars:
        bar = bars.add_task("", total=1, clip=task.clip.name)

        def show(stage: str, step: int, num_steps: int) -> None:
            bars.update(bar, description=stage, completed=step, total=num_steps)

        made = maker.make(task, trim=trim, show=show)
    for notice in dict.fromkeys(made.notices):
        console.print(f"{task.clip}: {notice}", style="yellow")
    for path, seed in zip(made.paths, made.seeds, strict=True):
        console.print(f"{path}: {_summary(made, seed)}")


def _summary(made: Sounded, seed: int) -> str:
    stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in made.timings.items())
    total = sum(made.timings.values())
    return f"{made.duration_seconds:.2f} s of sound in {total:.2f} s ({stages}), seed {seed}"

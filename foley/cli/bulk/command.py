"""`foley bulk`: the sounds of many clips, in a run that can be cut off and continued."""

import contextlib
import importlib.util
import math
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from foley.bulk import BulkOutcome, BulkStart, BulkTask
from foley.cli.bulk.estimate import print_estimate
from foley.cli.bulk.picture import draw_picture
from foley.cli.bulk.records import (
    Plan,
    keep_failure,
    lock_output,
    make_report,
    plan_rows,
    write_report,
)
from foley.cli.bulk.rows import BadRow, Defaults, list_fields, make_tasks
from foley.cli.bulk.sources import read_source
from foley.cli.bulk.stations import Stations, plan_environments
from foley.cli.options import MarkFlags, MixFlags, ModelOptions, SoundOptions
from foley.cli.plan import check_part_flags
from foley.cli.whole import WHOLE
from foley.errors import ConfigError, ParameterError
from foley.hardware.doctor import refuse_unfit
from foley.quiet import silence_imports
from foley.request import Format
from foley.storage import Storage, is_remote, open_storage

PICTURE = "summary.svg"
MAX_JOBS = 512
LINE_SECONDS = 60.0  # between two lines about the progress, in a log


def bulk(
    source: Annotated[
        str,
        Parameter(
            help="Folder of clips, pattern such as 'clips/*.mp4', numbered pictures such as "
            "frames/%04d.png, table (.csv .jsonl .parquet), or s3:// address of a prefix or a "
            "table. A row of a table is a clip with any option of a request; lists such as cues "
            "are JSON."
        ),
    ],
    output: Annotated[str, Parameter(help="Folder or s3:// prefix of the results.")],
    *,
    sound: SoundOptions = SoundOptions(),  # noqa: B008 - it is frozen
    mix: MixFlags = MixFlags(),  # noqa: B008
    file_format: Annotated[
        Format | None,
        Parameter(
            name="--format", help="Of the results; by default that of the clip, or wav without one."
        ),
    ] = None,
    trim: Annotated[
        bool,
        Parameter(
            negative=(),
            help="Cut clips that are longer than FOLEY_MAX_CLIP_SECONDS instead of refusing them.",
        ),
    ] = False,
    start_seconds: Annotated[
        float,
        Parameter(name="--start", help="Second of each clip at which the used part begins."),
    ] = 0.0,
    frame_rate: Annotated[
        float | None,
        Parameter(
            help="Pictures per second of numbered pictures: frames/%04d.png, or zips of them. "
            "Zips in a folder are clips if it is given."
        ),
    ] = None,
    retry_failed: Annotated[
        bool, Parameter(negative=(), help="Work again on rows that failed in an earlier run.")
    ] = False,
    limit: Annotated[
        int | None,
        WHOLE,
        Parameter(help="Work on so many rows at most, from 1, and leave the others."),
    ] = None,
    max_errors: Annotated[
        int | None, WHOLE, Parameter(help="Stop when more rows than this have failed; from 0.")
    ] = None,
    dry_run: Annotated[
        bool,
        Parameter(
            negative=(), help="Say what would be made, how long it takes and how large it is."
        ),
    ] = False,
    jobs: Annotated[
        int | None,
        WHOLE,
        Parameter(
            alias="-j",
            help="Rows at once in each process; by default what suits the device. More need more "
            "memory.",
        ),
    ] = None,
    address: Annotated[
        str | None,
        Parameter(
            help="Ray cluster to work on, such as auto or 10.0.0.1:6379; local starts Ray on this "
            "machine. Needs the extra 'bulk'. Every machine must reach the source and the output."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        WHOLE,
        Parameter(
            help="Processes with a model; by default one for each GPU, and one on a CPU. Those of "
            "one machine share its cores."
        ),
    ] = None,
    hourly_price: Annotated[
        float | None,
        Parameter(
            help="What an hour of all machines of the run costs, in any currency, from 0. The "
            "progress, the summary and --dry-run then say what the run costs."
        ),
    ] = None,
    quiet: Annotated[bool, Parameter(alias="-q", negative=(), help="Show errors only.")] = False,
    verbose: Annotated[bool, Parameter(alias="-v", negative=(), help="Show logs.")] = False,
    model: ModelOptions = ModelOptions(),  # noqa: B008
    marks: MarkFlags = MarkFlags(),  # noqa: B008
) -> int:
    """Generate the sounds of many clips.

    The same command continues a run that was cut off: rows that are done are left out, and none is
    made twice. OUTPUT gets report.csv with the state of each row, and summary.svg.

    --prompt may name columns: "the sound of {animal}"; {name} and {folder} are those of the clip. A
    row's own prompt comes first.
    """
    _check_numbers(jobs=jobs, limit=limit, max_errors=max_errors, workers=workers)
    if hourly_price is not None and not 0 <= hourly_price < math.inf:
        raise ParameterError(f"--hourly-price: {hourly_price:g} is no price; give 0 or more")
    console = Console(stderr=True, quiet=quiet, highlight=False, markup=False, soft_wrap=True)
    output = output.rstrip("/") if is_remote(output) else str(Path(output).absolute())
    request = sound.parse()
    check_part_flags(start_seconds, frame_rate)
    rows = read_source(
        source, output, list_fields(request.prompt), console, with_zips=frame_rate is not None
    )
    defaults = Defaults(
        request,
        mix.parse(),
        trim=trim,
        format=file_format,
        output=output,
        start_seconds=start_seconds,
        frame_rate=frame_rate,
    )
    tasks, bad = make_tasks(rows, defaults)
    storage = open_storage(output)
    if dry_run:
        plan = plan_rows(tasks, storage, output, retry_failed=retry_failed)
        _print_plan(console, plan, bad)
        num_unfit = print_estimate(
            console, plan.waiting[:limit], plan.finished.values(), hourly_price=hourly_price
        )
        return 1 if bad or num_unfit else 0
    start = BulkStart(
        preset=model.preset,
        weights=str(model.weights.absolute()) if model.weights else None,
        device=model.device,
        precision=model.precision,
        memory=model.memory,
        adapters=_make_absolute(model.adapters),
        marks=marks.marks,
        marks_key=str(marks.marks_key.absolute()) if marks.marks_key else None,
        marks_chain=str(marks.marks_chain.absolute()) if marks.marks_chain else None,
        marks_prompt=marks.marks_prompt,
        jobs=jobs,
        verbose=verbose,
    )
    with lock_output(output):
        plan = plan_rows(tasks, storage, output, retry_failed=retry_failed)
        _print_plan(console, plan, bad)
        outcomes = dict(plan.finished)
        run = _Run(
            console,
            storage,
            outcomes,
            max_errors=max_errors,
            num_failed=len(bad),
            hourly_price=hourly_price,
        )
        try:
            if plan.waiting:
                waiting = plan.waiting[:limit]
                if address is None:
                    ended = _run_here(console, start, waiting, workers)
                else:
                    ended = _run_on_cluster(console, start, waiting, address, workers)
                run.work(ended, waiting)
        finally:
            # Also after an interruption: the next run then begins with what is there.
            lines = make_report(tasks, bad, outcomes)
            names = write_report(storage, lines)
            everything = [*outcomes.values(), *map(_fail, bad)]
            title = ": ".join(
                part for part in (f"foley bulk {source}", run.describe_cost()) if part
            )
            storage.write(PICTURE, draw_picture(everything, title=title).encode())
        run.print_summary([f"{output}/{name}" for name in (*names, PICTURE)])
    num_failed = sum(one.state == "failed" for one in outcomes.values()) + len(bad)
    return 1 if num_failed else 0


def _check_numbers(
    *, jobs: int | None, limit: int | None, max_errors: int | None, workers: int | None
) -> None:
    if jobs is not None and not 1 <= jobs <= MAX_JOBS:
        raise ParameterError(f"--jobs: {jobs} rows at once are not possible; give 1 to {MAX_JOBS}")
    if limit is not None and limit < 1:
        raise ParameterError(f"--limit: {limit} rows are none; give 1 or more, or --dry-run")
    if workers is not None and workers < 1:
        raise ParameterError(f"--workers: {workers} processes are none; give 1 or more")
    if max_errors is not None and max_errors < 0:
        raise ParameterError(f"--max-errors: {max_errors} is below 0; give 0 or more")


def _print_plan(console: Console, plan: Plan, bad: Sequence[BadRow]) -> None:
    num_rows = len(plan.finished) + len(plan.waiting) + len(bad)
    num_done = sum(one.state == "done" for one in plan.finished.values())
    num_failed = len(plan.finished) - num_done
    parts = [_count_rows(num_rows), f"{len(plan.waiting)} to make"]
    parts += [f"{num_done} done"] if num_done else []
    parts += [f"{num_failed} failed earlier (--retry-failed)"] if num_failed else []
    parts += [f"{len(bad)} refused"] if bad else []
    console.print(", ".join(parts))
    if plan.num_changed:
        console.print(
            f"done with other options than now, and left so: {_count_rows(plan.num_changed)}; "
            "remove their results, or name another output",
            style="yellow",
        )
    for row in bad[:10]:
        console.print(f"foley: {row.error}", style="red")
    if len(bad) > 10:
        console.print(f"foley: {_count_rows(len(bad) - 10)} more refused; the report has them")


def _count_rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def _fail(row: BadRow) -> BulkOutcome:
    return BulkOutcome(id=row.id, state="failed", error_code=row.error.code, error=str(row.error))


def _run_here(
    console: Console, start: BulkStart, tasks: Sequence[BulkTask], workers: int | None
) -> Iterator[BulkOutcome]:
    """Yield the outcomes of rows, from processes on this machine."""
    if importlib.util.find_spec("ray") is None:
        console.print(
            "this machine alone; the extra 'bulk' adds clusters (--address), s3:// and Parquet"
        )
    if importlib.util.find_spec("structlog") is None:
        raise ConfigError("foley bulk needs the extra 'serve': pip install 'foley-serving[serve]'")
    with silence_imports():
        machine = refuse_unfit(
            preset=start.preset, device=start.device, weights=_path(start.weights)
        )
    environments = plan_environments(start.device, len(machine.gpus), workers)[: len(tasks)]
    stations = Stations(
        start, environments, lambda message: console.print(f"foley: {message}", style="red")
    )
    try:
        ready = stations.processes[0].ready
        count = f"{len(environments)} processes of " if len(environments) > 1 else ""
        console.print(f"{count}{ready.description}, {_count_rows(ready.jobs)} at once")
        yield from stations.work(tasks)
    finally:
        stations.close()


def _run_on_cluster(
    console: Console,
    start: BulkStart,
    tasks: Sequence[BulkTask],
    address: str,
    workers: int | None,
) -> Iterator[BulkOutcome]:
    """Yield the outcomes of rows, from a Ray cluster."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("--address needs the extra 'bulk': pip install 'foley-serving[bulk]'")
    from foley.cli.bulk.cluster import run_on_cluster

    yield from run_on_cluster(tasks, start, console, address=address, num_workers=workers)


def _make_absolute(paths: str | None) -> str | None:
    """Return paths separated by commas as absolute ones, for a process in another folder."""
    return paths and ",".join(str(Path(path.strip()).absolute()) for path in paths.split(","))


def _path(weights: str | None) -> Path | None:
    return Path(weights) if weights else None


class _Run:
    """Shows outcomes as they come, and stops after too many errors.

    Args:
        console: for the progress.
        storage: of the output.
        outcomes: of all rows so far, by id; new ones are added.
        max_errors: stop when more rows have failed; None for no limit.
        num_failed: rows of this run that have failed before it began.
        hourly_price: of the machines; None where nobody gave one.
    """

    def __init__(
        self,
        console: Console,
        storage: Storage,
        outcomes: dict[str, BulkOutcome],
        *,
        max_errors: int | None,
        num_failed: int,
        hourly_price: float | None,
    ) -> None:
        self._console = console
        self._storage = storage
        self._outcomes = outcomes
        self._max_errors = max_errors
        self._num_failed = num_failed
        self._num_ended = 0
        self._num_done = 0
        self._sound_seconds = 0.0
        self._device_seconds = 0.0
        self._hourly_price = hourly_price
        self._shown = time.monotonic()
        self._began = time.monotonic()

    def work(self, ended: Iterator[BulkOutcome], tasks: Sequence[BulkTask]) -> None:
        """Take outcomes until there are no more, or too many errors.

        Args:
            ended: yields them.
            tasks: the rows that they are of.

        Raises:
            OutputError: a record of a failure cannot be written.
        """
        with (
            Progress(
                TextColumn("rows"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
                disable=not self._console.is_terminal,
            ) as bars,
            contextlib.closing(_as_generator(ended)) as closing,
        ):
            bar = bars.add_task("", total=len(tasks))
            for outcome in closing:
                if outcome.id in self._outcomes:
                    continue  # another process gave it too, before it died
                self._take(outcome)
                bars.update(bar, advance=1, description=self._describe())
                self._print_progress(len(tasks))
                if self._max_errors is not None and self._num_failed > self._max_errors:
                    self._console.print(
                        f"stopped after {self._num_failed} errors (--max-errors)", style="red"
                    )
                    return

    def _take(self, outcome: BulkOutcome) -> None:
        self._outcomes[outcome.id] = outcome
        self._num_ended += 1
        if outcome.state == "done":
            self._num_done += 1
            self._sound_seconds += outcome.duration_seconds * len(outcome.seeds)
            self._device_seconds += outcome.device_seconds
            return
        self._num_failed += 1
        keep_failure(self._storage, outcome)
        self._console.print(f"foley: {outcome.id}: {outcome.error}", style="red")

    def _describe(self) -> str:
        seconds = max(time.monotonic() - self._began, 1e-3)
        failed = f", {self._num_failed} failed" if self._num_failed else ""
        rate = self._sound_seconds / seconds
        cost = "" if self._hourly_price is None else f", cost {self._cost():.4g}"
        return f"{self._sound_seconds:.1f} s of sound, {rate:.2f} s a second{cost}{failed}"

    def _cost(self) -> float:
        """Return what the machines have cost since the run began, with the model's loading."""
        return (self._hourly_price or 0.0) * (time.monotonic() - self._began) / 3600

    def describe_cost(self) -> str:
        """Return what the run has cost, for people; empty without a price or a row."""
        if self._hourly_price is None or not self._num_ended:
            return ""
        minutes = self._sound_seconds / 60
        share = f", {self._cost() / minutes:.4g} a minute of sound" if minutes else ""
        return f"cost {self._cost():.4g} at {self._hourly_price:g} an hour{share}"

    def _print_progress(self, num_rows: int) -> None:
        """Print a line now and then where there is no terminal that could show a bar."""
        if self._console.is_terminal or time.monotonic() - self._shown < LINE_SECONDS:
            return
        self._shown = time.monotonic()
        self._console.print(f"{self._num_ended} of {num_rows} rows, {self._describe()}")

    def print_summary(self, paths: Sequence[str]) -> None:
        """Print what the run made, and where the report is.

        Args:
            paths: of the report and the picture.
        """
        seconds = time.monotonic() - self._began
        self._console.print(
            f"{_count_rows(self._num_done)} done, {self._num_failed} failed: "
            f"{self._sound_seconds:.2f} s of sound in {seconds:.2f} s"
        )
        minutes = self._sound_seconds / 60
        if minutes:
            a_minute = self._device_seconds / minutes
            self._console.print(f"devices worked {a_minute:.2f} s for a minute of sound")
        if cost := self.describe_cost():
            self._console.print(cost)
        for path in paths:
            self._console.print(path)


def _as_generator(ended: Iterator[BulkOutcome]) -> Generator[BulkOutcome, None, None]:
    yield from ended

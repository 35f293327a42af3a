"""What `foley generate` shows: a progress bar for each clip, and its results or its error."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from foley.cli.backends import ClipResult, OnStage
from foley.cli.plan import ClipTask
from foley.errors import OutputError, RequestError
from foley.mix import Loudness, LoudnessReport


@contextmanager
def show_progress(task: ClipTask, console: Console) -> Iterator[OnStage]:
    """Show a progress bar inside the block; yield the function that moves it.

    Args:
        task: its clip's name stands beside the bar.
        console: where the bar is drawn; nothing is drawn if it is not a terminal.
    """
    with Progress(
        TextColumn("{task.fields[clip]}  {task.description:16}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bars:
        bar = bars.add_task("", total=1, clip=task.clip.name if task.clip else task.name)

        def move(stage: str, step: int = 0, num_steps: int = 1) -> None:
            bars.update(bar, description=stage, completed=step, total=num_steps)

        yield move


class Report:
    """Where results and errors of clips go.

    Standard output gets the path of each file, or a line of JSON for each clip. All else goes to
    standard error.

    Args:
        console: for notices and a line about each result.
        as_json: whether standard output gets JSON.
    """

    def __init__(self, console: Console, *, as_json: bool) -> None:
        self.console = console
        self._as_json = as_json

    def print_result(self, task: ClipTask, result: ClipResult) -> None:
        """Print the notices about a clip, a line for each of its sounds, and its files.

        Args:
            task: what was asked for.
            result: what was made.
        """
        for notice in dict.fromkeys(result.notices):
            self.console.print(f"{task.name}: {notice}", style="yellow")
        stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in result.timings.items())
        summary = f"{result.duration_seconds:.2f} s of sound in {result.seconds:.2f} s ({stages})"
        for seed in result.seeds:
            self.console.print(f"{task.name}: {summary}, seed {seed}")
        for report in result.loudness:
            self.console.print(f"{task.name}: {_describe_loudness(report)}")
        if self._as_json:
            files = [
                {"path": str(path), "seed": seed}
                for path, seed in zip(result.paths, result.seeds, strict=True)
            ]
            for file, report in zip(files, result.loudness, strict=False):
                file["loudness"] = report.model_dump(exclude_none=True)
            _write_json(
                {
                    "clip": str(task.clip) if task.clip else None,
                    "files": files,
                    "duration_seconds": result.duration_seconds,
                    "seconds": result.seconds,
                    "timings_seconds": result.timings,
                    "notices": list(result.notices),
                }
            )
        else:
            for path in result.paths:
                _write_line(os.fsencode(path))

    def print_error(self, task: ClipTask, error: RequestError) -> None:
        """Print why a clip has no result.

        Args:
            task: what was asked for.
            error: which ended it.
        """
        print(f"foley: {task.name}: {error}", file=sys.stderr)
        if self._as_json:
            details = {"code": error.code, "message": str(error)}
            _write_json({"clip": str(task.clip) if task.clip else None, "error": details})


def _describe_loudness(report: LoudnessReport) -> str:
    def name(loudness: Loudness) -> str:
        integrated, peak = loudness.integrated_lufs, loudness.true_peak_dbtp
        return ", ".join(
            [
                "under -70 LUFS" if integrated is None else f"{integrated:.1f} LUFS",
                "no peak" if peak is None else f"{peak:.1f} dBTP",
            ]
        )

    return f"{name(report.after)} (before: {name(report.before)})"


def _write_json(value: dict[str, Any]) -> None:
    _write_line(json.dumps(value).encode())


def _write_line(line: bytes) -> None:
    # As bytes, since a path need not be text. At once, so that the next program can begin.
    try:
        sys.stdout.buffer.write(line + b"\n")
        sys.stdout.buffer.flush()
    except OSError as error:
        # Python writes what is left in the buffer when it ends, and would fail once more.
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise OutputError(
            f"standard output cannot be written ({error.strerror}); finished files are kept, and "
            "--skip-existing continues after them"
        ) from error

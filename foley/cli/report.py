"""What `foley generate` shows: a progress bar for each clip and a line for each result."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from foley.cli.backends import ClipResult, OnStage
from foley.cli.plan import ClipTask


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
        bar = bars.add_task("", total=1, clip=task.clip.name)

        def move(stage: str, step: int = 0, num_steps: int = 1) -> None:
            bars.update(bar, description=stage, completed=step, total=num_steps)

        yield move


def print_result(task: ClipTask, result: ClipResult, console: Console) -> None:
    """Print the notices about a clip, and a line for each of its files.

    Args:
        task: what was asked for.
        result: what was made.
        console: where to print.
    """
    for notice in dict.fromkeys(result.notices):
        console.print(f"{task.clip}: {notice}", style="yellow")
    stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in result.timings.items())
    summary = f"{result.duration_seconds:.2f} s of sound in {result.seconds:.2f} s ({stages})"
    for path, seed in zip(result.paths, result.seeds, strict=True):
        console.print(f"{path}: {summary}, seed {seed}")

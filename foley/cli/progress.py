"""The progress bar of `foley generate`: the steps of one clip, or how many of several are done."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from foley.cli.plan import ClipTask
from foley.types import Stage


class ProgressBar:
    """One bar for all clips of a call.

    Args:
        bars: draws it.
        bar: which of the bars.
        num_clips: at least 1. With one clip, the bar shows the steps of its stages.
    """

    def __init__(self, bars: Progress, bar: TaskID, num_clips: int) -> None:
        self._bars = bars
        self._bar = bar
        self._num_clips = num_clips
        self._shares: dict[Path, float] = {}  # what is done of each clip, by its output

    def move(
        self, tasks: Sequence[ClipTask], stage: str, step: int = 0, num_steps: int = 1
    ) -> None:
        """Move the bar; see `foley.cli.backends.OnStage`."""
        if self._num_clips == 1:
            self._bars.update(self._bar, description=stage, completed=step, total=num_steps)
            return
        if stage == Stage.SAMPLE:  # nearly all the time goes there
            self._shares |= {task.output: step / num_steps for task in tasks}
        self._show(stage)

    def finish(self, task: ClipTask) -> None:
        """Show that a clip is done, or has failed.

        Args:
            task: of the clip.
        """
        if self._num_clips > 1:
            self._shares[task.output] = 1.0
            self._show()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Take the bar off the terminal inside the block, so that lines can be written."""
        self._bars.stop()
        yield
        self._bars.start()

    def _show(self, stage: str | None = None) -> None:
        self._bars.update(self._bar, description=stage, completed=sum(self._shares.values()))


@contextmanager
def show_progress(tasks: Sequence[ClipTask], console: Console) -> Iterator[ProgressBar]:
    """Show a progress bar inside the block, and yield it.

    Args:
        tasks: all clips, at least 1.
        console: where the bar is drawn; nothing is drawn if it is not a terminal.
    """
    single = len(tasks) == 1
    with Progress(
        TextColumn("{task.fields[subject]}  {task.description:16}", markup=False),
        BarColumn(),
        TextColumn(
            "{task.completed:.0f}/{task.total:.0f}" if single else "{task.percentage:.0f} %"
        ),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bars:
        subject = tasks[0].short_name if single else f"{len(tasks)} clips"
        bar = bars.add_task("", total=1 if single else len(tasks), subject=subject)
        yield ProgressBar(bars, bar, len(tasks))

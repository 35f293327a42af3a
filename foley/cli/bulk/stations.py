"""The processes that have the model on this machine: one for each GPU, and rows for all of them.

A row goes to the process with the fewest rows. One that cannot be started again is left out, and
its rows go to the others.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue

from foley.bulk import BulkOutcome, BulkStart, BulkTask
from foley.cli.bulk.station import COMMAND, StationProcess
from foley.errors import ParameterError

VISIBLE = "CUDA_VISIBLE_DEVICES"
THREADS = "OMP_NUM_THREADS"


def plan_environments(
    device: str, num_gpus: int, num_processes: int | None
) -> list[dict[str, str]]:
    """Return the variables of each process with a model, beside those of this one.

    A process sees one GPU, so that it holds no memory of the others. Processes on one machine share
    its cores.

    Args:
        device: auto, cpu, cuda or cuda:N.
        num_gpus: that this process sees.
        num_processes: that were asked for, at least 1; None for one a GPU, or one without.

    Raises:
        ParameterError: there are not so many GPUs.
    """
    if device in ("auto", "cuda") and num_gpus:
        count = num_processes or num_gpus
        if count > num_gpus:
            raise ParameterError(
                f"--workers: {count} processes need a GPU each, and there are {num_gpus}; give "
                f"1 to {num_gpus}"
            )
        given = os.environ.get(VISIBLE, "")
        names = given.split(",") if given else [str(index) for index in range(num_gpus)]
        environments = [{VISIBLE: name.strip()} for name in names[:count]]
    else:
        count = num_processes or 1
        if count > 1 and device != "cpu" and num_gpus:
            raise ParameterError(f"--workers: {device} is one GPU, for one process; give 1")
        environments = [{} for _ in range(count)]
    if count > 1 and THREADS not in os.environ:
        for environment in environments:
            environment[THREADS] = str(max(1, (os.cpu_count() or 1) // count))
    return environments


@dataclass(eq=False)
class _Member:
    """A process, and how many rows it has got and not ended."""

    process: StationProcess
    num_rows: int = field(default=0, init=False)

    @property
    def most_rows(self) -> int:
        """Rows that it works on, and some that wait for it while an outcome is taken."""
        return self.process.ready.jobs + 1 + self.process.ready.jobs // 4


_Ended = tuple[_Member, BulkTask, "Future[BulkOutcome]"]


class Stations:
    """Works on rows in one or several processes with a model, which load it side by side.

    Args:
        start: which model each of them loads.
        environments: variables of each process beside those of this one; at least one.
        on_loss: called with a sentence when a process is left out.
        command: of each process.

    Attributes:
        processes: all of them, in the order of `environments`.

    Raises:
        ServerError: the model cannot be loaded by one of them.
    """

    def __init__(
        self,
        start: BulkStart,
        environments: Sequence[Mapping[str, str]],
        on_loss: Callable[[str], None] = lambda message: None,
        command: tuple[str, ...] = COMMAND,
    ) -> None:
        self._on_loss = on_loss
        start = start.model_copy(update={"num_processes": len(environments)})
        self.processes = tuple(
            StationProcess(start, command, {**os.environ, **environment})
            for environment in environments
        )
        try:
            for process in self.processes:
                process.load()
        except BaseException:  # Ctrl+C among them
            self.close()
            raise

    def work(self, tasks: Sequence[BulkTask]) -> Iterator[BulkOutcome]:
        """Yield outcomes as they come.

        Args:
            tasks: the rows, in the order in which they are begun.

        Raises:
            ServerError: every process died again and again.
        """
        members = [_Member(process) for process in self.processes]
        left = list(reversed(tasks))
        num_given = 0
        ended: SimpleQueue[_Ended] = SimpleQueue()
        while True:
            while left and (member := _find_free(members)) is not None:
                _give(member, left.pop(), ended)
                num_given += 1
            if not num_given:
                return
            member, task, outcome = ended.get()
            member.num_rows -= 1
            num_given -= 1
            error = outcome.exception()
            if error is None:
                yield outcome.result()
                continue
            if member in members:
                members.remove(member)
                if members:
                    count = len(members)
                    verb = "goes" if count == 1 else "go"
                    self._on_loss(f"{error}; {count} of the processes {verb} on")
            if not members:
                raise error
            # It may have left results in part, which are its own.
            left.append(task.model_copy(update={"replace": True}))

    def close(self) -> None:
        """End the processes. Rows in hand are given up."""
        for process in self.processes:
            process.hang_up()
        for process in self.processes:
            process.close()


def _give(member: _Member, task: BulkTask, ended: "SimpleQueue[_Ended]") -> None:
    member.num_rows += 1
    future = member.process.submit(task)
    future.add_done_callback(lambda outcome: ended.put((member, task, outcome)))


def _find_free(members: Sequence[_Member]) -> _Member | None:
    """Return the process with the fewest rows that takes another one; None if there is none."""
    free = [member for member in members if member.num_rows < member.most_rows]
    return min(free, key=lambda member: member.num_rows, default=None)

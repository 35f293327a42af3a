"""The files of a long sound: its encoders run while the sound is made."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from foley.marks.mark import Marks
from runners.handoff import announce_end
from runners.jobs.job import GenerationJob
from runners.jobs.marks import make_answer
from runners.messages import FinishedPiece
from runners.sandbox.pool import Sandbox

Written = list[list[dict[str, Any]]]


class EarlyWriter:
    """Writes the files of a job, and begins with the first piece of its sound if it is long.

    Sounds that are mixed or levelled are known only at the end, and wav is not encoded.

    Args:
        sandbox: writes the files.
        marks: of the service; None for none.
        job: whose files are written.
        limits: on its clip: the fields of `foley.media.source.MediaLimits` as JSON.
    """

    def __init__(
        self, sandbox: Sandbox, marks: Marks | None, job: GenerationJob, limits: dict[str, Any]
    ) -> None:
        self._sandbox = sandbox
        self._answer = make_answer(marks)
        self._job = job
        self._limits = limits
        self._task: asyncio.Task[Written] | None = None

    def start(self, piece: FinishedPiece) -> None:
        """Begin to encode the sounds of the job, unless that has begun.

        Args:
            piece: of one of them, the first or a later one.
        """
        job = self._job
        can_begin = job.options.is_default and any(name != "wav" for name in job.formats)
        if self._task is not None or not can_begin:
            return
        running = self._sandbox.run(
            "write_along",
            job.folder,
            owner=job.caller,
            answer=self._answer,
            # It waits for the model most of the time, and must not keep others from their turns.
            until=_return_at_once,
            num_sounds=job.options.num_variations,
            formats=job.formats,
            sample_rate=piece.sample_rate,
            limits=self._limits,
        )
        self._task = asyncio.create_task(running)

    async def write(self, **arguments: Any) -> Written:
        """Write the files, now that the sounds are complete, and return their descriptions.

        Args:
            arguments: of the task `write`, as JSON can hold them.

        Raises:
            FoleyError: as `Sandbox.run`.
        """
        job = self._job
        if self._task is None:
            written: Written = await self._sandbox.run(
                "write", job.folder, owner=job.caller, answer=self._answer, **arguments
            )
            return written
        announce_end(arguments, job.folder)
        return await self._task

    async def close(self) -> None:
        """End what was begun; its child is dead when this returns."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


@contextlib.asynccontextmanager
async def begin_writing(
    sandbox: Sandbox, marks: Marks | None, job: GenerationJob, limits: dict[str, Any]
) -> AsyncIterator[EarlyWriter]:
    """Yield the writer of a job's files, and end it with the block; arguments as `EarlyWriter`."""
    writer = EarlyWriter(sandbox, marks, job, limits)
    try:
        yield writer
    finally:
        await writer.close()


async def _return_at_once() -> None:
    pass

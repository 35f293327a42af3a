"""The files of a sound: what can be done for them while it is made is done meanwhile.

Long sounds are encoded as they come. For a short one, which is decoded at once, a child is started
ahead, reads the clip's head, and waits for the sound.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from foley.configs import SYNC_FPS, WHOLE_CLIP_FRAMES
from foley.marks.mark import Marks
from foley.types import Stage
from runners.handoff import announce_end, read_expectation
from runners.jobs.job import GenerationJob
from runners.jobs.marks import make_answer
from runners.messages import FinishedPiece, ProgressUpdate
from runners.sandbox.pool import Sandbox
from runners.sandbox.questions import WHEN_COMPLETE

Written = list[list[dict[str, Any]]]


class EarlyWriter:
    """Writes the files of a job, and begins before its sound is complete.

    Long sounds that are mixed or levelled are known only at the end, and wav is not encoded.

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
        # What the child of a short sound waits for, and whether it waits.
        self._told: asyncio.Future[dict[str, Any]] | None = None
        self._is_waiting = asyncio.Event()

    def note(self, update: ProgressUpdate) -> None:
        """Start the child of a short sound when half of the sampling is done.

        Not earlier, because it takes memory while it waits.

        Args:
            update: of the progress of the job.
        """
        step, num_steps = update.step or 0, update.num_steps or 0
        is_near = update.stage is Stage.SAMPLE and 2 * step >= num_steps > 0
        if self._task is not None or not is_near or self._is_long:
            return
        self._told = asyncio.get_running_loop().create_future()
        self._begin(
            "write_ready", self._answer_when_told, self._wait_for_pause, formats=self._job.formats
        )

    def start(self, piece: FinishedPiece) -> None:
        """Begin to encode the sounds of the job, unless that has begun.

        Args:
            piece: of one of them, the first or a later one.
        """
        job = self._job
        can_begin = job.options.is_default and any(name != "wav" for name in job.formats)
        if self._task is not None or not can_begin:
            return
        self._begin(
            "write_along",
            self._answer,
            # It waits for the model most of the time, and must not keep others from their turns.
            _return_at_once,
            num_sounds=job.options.num_variations,
            formats=job.formats,
            sample_rate=piece.sample_rate,
        )

    async def write(self, **arguments: Any) -> Written:
        """Write the files, now that the sounds are complete, and return their descriptions.

        Args:
            arguments: of the task `write`, as JSON can hold them.

        Raises:
            FoleyError: as `Sandbox.run`.
        """
        job = self._job
        if self._told is not None and self._task is not None and self._task.done():
            # It ended while it waited. What is wrong with the clip shows again.
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._task is None:
            written: Written = await self._sandbox.run(
                "write", job.folder, owner=job.caller, answer=self._answer, **arguments
            )
            return written
        if self._told is None:
            announce_end(arguments, job.folder)
            return await self._task
        # One that does not wait yet has a turn, or will get one, and keeps it.
        has_paused = self._is_waiting.is_set()
        async with self._sandbox.take_turn(job.caller) if has_paused else contextlib.nullcontext():
            self._told.set_result(arguments)
            return await self._task

    async def close(self) -> None:
        """End what was begun; its child is dead when this returns."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def _is_long(self) -> bool:
        seconds = self._job.options.duration_seconds
        if seconds is None:
            try:
                seconds = read_expectation(self._job.folder)
            except ValueError:  # a clip that has taken its child over wrote something else
                return True
        return seconds is not None and seconds * SYNC_FPS > WHOLE_CLIP_FRAMES

    def _begin(
        self,
        task: str,
        answer: Callable[[Any], Any] | None,
        until: Callable[[], Coroutine[Any, Any, None]],
        **arguments: Any,
    ) -> None:
        running = self._sandbox.run(
            task,
            self._job.folder,
            owner=self._job.caller,
            answer=answer,
            until=until,
            limits=self._limits,
            **arguments,
        )
        self._task = asyncio.create_task(running)

    def _answer_when_told(self, question: Any) -> Any:
        assert self._told is not None
        if question == WHEN_COMPLETE:
            if not self._told.done():
                self._is_waiting.set()
            return asyncio.shield(self._told)  # a child that is ended does not end it
        if self._answer is None:
            return {"refused": "nothing is signed here"}
        return self._answer(question)

    async def _wait_for_pause(self) -> None:
        """Return when the child waits for the model, and needs its turn no more."""
        await self._is_waiting.wait()


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

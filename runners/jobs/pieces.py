"""Pieces of a long sound: written and handed out while the rest of the sound is made."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from foley.marks.mark import Marks
from foley.mix import MixOptions
from runners.jobs.job import GenerationJob
from runners.jobs.marks import log_unsigned, make_answer, make_write_arguments
from runners.jobs.outputs import PieceFile
from runners.messages import FinishedPiece, OnPiece
from runners.sandbox.pool import Sandbox

OnSound = Callable[[PieceFile], Awaitable[None]]


@contextlib.asynccontextmanager
async def write_pieces(
    sandbox: Sandbox, marks: Marks | None, job: GenerationJob, preset: str, on_sound: OnSound | None
) -> AsyncIterator[OnPiece]:
    """Yield a function that takes the pieces of a job, which are written one after another.

    All of them have been handed out when the block ends. If it fails, the rest is left out.

    Args:
        sandbox: writes the files.
        marks: what they say of how they were made; None for nothing.
        job: whose folder has the pieces.
        preset: name of the model.
        on_sound: called with each file; None leaves the pieces out.

    Raises:
        ServerError: a piece could not be written.
    """
    queue: asyncio.Queue[FinishedPiece | None] = asyncio.Queue()

    async def write(piece: FinishedPiece, on_sound: OnSound) -> None:
        # A piece is the new sound alone, before the mix.
        marking = make_write_arguments(
            marks, preset, [piece.seed], job.generation_request(), MixOptions()
        )
        written = await sandbox.run(
            "write_piece",
            job.folder,
            owner=job.caller,
            variation=piece.variation,
            number=piece.number,
            start_sample=round(piece.start_seconds * piece.sample_rate),
            num_samples=round(piece.duration_seconds * piece.sample_rate),
            sample_rate=piece.sample_rate,
            is_beginning=piece.is_beginning,
            answer=make_answer(marks),
            **marking,
        )
        log_unsigned([[written]])
        await on_sound(PieceFile(piece=piece, path=job.folder / written["name"]))

    async def write_all() -> None:
        while (piece := await queue.get()) is not None:
            if on_sound is not None:
                await write(piece, on_sound)

    writing = asyncio.create_task(write_all())
    try:
        yield queue.put_nowait
        queue.put_nowait(None)
        await writing
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)

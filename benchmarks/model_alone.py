"""The model without what `foley bulk` does around it: the other side of `bench_bulk`.

It speaks as `python -m runners.bulk` does. A row's frames were decoded before, and its waveforms
are its result: nothing is decoded, measured, marked, encoded or published for it.
"""

import asyncio
import logging
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from foley.bulk import BulkOutcome, BulkReady, BulkStart, BulkTask
from foley.configs import PRESETS
from foley.media.decode import decode_frames
from runners.bulk.station import make_settings
from runners.handoff import FRAMES, FrameCounts, announce_frames, save_frames
from runners.jobs.scratch import Scratch
from runners.logs import configure_logging
from runners.messages import RunnerRequest, RunnerResult
from runners.worker.startup import start_worker
from runners.worker.stream import stream_events
from runners.worker.worker import Worker

TIMEOUT_SECONDS = 3600.0


class Frames:
    """The frames of clips, each decoded once.

    Args:
        folder: of their files.
        preset: name of the model.
    """

    def __init__(self, folder: Path, preset: str) -> None:
        self._folder = folder
        self._preset = PRESETS[preset]
        self._counts: dict[str, FrameCounts] = {}

    def hand_on(self, clip: str, folder: Path) -> None:
        """Leave the frames of a clip for the model.

        Args:
            clip: path.
            folder: of a request.
        """
        own = self._folder / Path(clip).name
        if clip not in self._counts:
            own.mkdir()
            frames = decode_frames(
                Path(clip),
                visual_size=self._preset.vision.image_size,
                sync_size=self._preset.synchformer.image_size,
                exact_clock=self._preset.exact_clock,
                whole_segments=self._preset.whole_segments,
            )
            self._counts[clip] = save_frames(frames, own)
        os.link(own / FRAMES, folder / FRAMES)
        announce_frames(self._counts[clip], folder)


async def run(worker: Worker, frames: Frames, scratch: Scratch, task: BulkTask) -> BulkOutcome:
    """Return the outcome of a row, whose waveforms are dropped.

    Args:
        worker: has the model.
        frames: of the clips.
        scratch: for the files of requests.
        task: the row.
    """
    began = time.monotonic()
    assert task.clip is not None
    with scratch.workspace() as folder:
        frames.hand_on(task.clip, folder)
        result = await generate(worker, folder, task)
    return BulkOutcome(
        id=task.id,
        state="done",
        seeds=result.seeds,
        duration_seconds=result.duration_seconds,
        device_seconds=result.device_seconds,
        seconds=time.monotonic() - began,
        finished=time.time(),
    )


async def generate(worker: Worker, folder: Path, task: BulkTask) -> RunnerResult:
    """Return the result of a row whose frames are in a folder."""
    request = RunnerRequest(
        id=folder.name,
        owner="",
        priority="bulk",
        folder=str(folder),
        options=task.request.of_clip(),
        timeout_seconds=TIMEOUT_SECONDS,
    )
    async for event in stream_events(worker, request):
        if event.error is not None:
            raise RuntimeError(event.error)
        if event.result is not None:
            return event.result
    raise RuntimeError("the model gave no result")


async def serve(start: BulkStart, folder: Path) -> None:
    """Load the model, and work on rows of standard input until it ends.

    Args:
        start: which model.
        folder: for all files.
    """
    scratch = Scratch(folder)
    worker = start_worker(make_settings(start))
    while worker.status.state == "loading":
        await asyncio.sleep(0.05)
    kept = folder / "frames"
    kept.mkdir()
    frames = Frames(kept, worker.status.preset)
    reader = asyncio.StreamReader(limit=1 << 26)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer
    )
    print(BulkReady(preset=worker.status.preset, jobs=start.jobs or 1).model_dump_json())
    running: set[asyncio.Task[None]] = set()

    async def work(line: bytes) -> None:
        try:
            outcome = await run(worker, frames, scratch, BulkTask.model_validate_json(line))
        except Exception:  # noqa: BLE001 - after any error, no figure is better than a wrong one
            traceback.print_exc()
            os._exit(1)
        print(outcome.model_dump_json(), flush=True)

    while line := await reader.readline():
        task = asyncio.create_task(work(line))
        running.add(task)
        task.add_done_callback(running.discard)


def main() -> None:
    """Serve rows until standard input ends."""
    start = BulkStart.model_validate_json(sys.stdin.buffer.readline())
    messages = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(messages, "w", buffering=1)
    configure_logging("error")
    logging.disable(logging.WARNING)
    folder = tempfile.mkdtemp(prefix="foley-", dir="/dev/shm")
    try:
        asyncio.run(serve(start, Path(folder)))
    finally:
        shutil.rmtree(folder)
        os._exit(0)  # the threads of the model end with the process


if __name__ == "__main__":
    main()

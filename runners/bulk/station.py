"""Rows side by side: decode, generate, write and publish each of them.

task ── fetch ── GenerationService: decode (child), Worker, write (child) ── publish
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO, TextIO, cast

import structlog

from foley.bulk import BulkOutcome, BulkReady, BulkStart, BulkTask, name_record
from foley.errors import FoleyError, ModelFailedError, OutputError, ServerError, StorageFullError
from foley.media.numbering import is_pattern, pack_pictures
from foley.request import Format
from foley.storage import fetch_clip, is_remote, open_storage
from runners.handoff import CLIP, MAX_FRAMES_BYTES
from runners.jobs.deadline import Deadline
from runners.jobs.job import GenerationJob, GenerationOptions
from runners.jobs.marks import load_service_marks
from runners.jobs.run import GenerationService
from runners.jobs.scratch import Scratch
from runners.messages import ModelStatus, RunnerRequest
from runners.sandbox.fork_server import SandboxLimits
from runners.sandbox.pool import Sandbox
from runners.settings import Settings, child_environment
from runners.storage import is_storage_full
from runners.worker.loading import count_gpus
from runners.worker.startup import start_worker
from runners.worker.stream import stream_events
from runners.worker.worker import Worker

log = structlog.get_logger(__name__)

# Enough for a full evaluation of each engine while other rows are decoded and written.
JOBS_PER_GPU, JOBS_ON_CPU = 24, 6
MAX_JOBS = 512
POLL_SECONDS = 0.05
# Rows wait for nobody who would lose patience.
TIMEOUT_SECONDS = 7 * 86_400.0
BUG = "the row failed through no fault of its clip; the log says why"


class LocalRunner:
    """The `Runner` of a process that has the model itself.

    Args:
        worker: has the model.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    async def generate(self, *, request: RunnerRequest) -> AsyncIterator[str]:
        """See `Runner.generate`."""
        async with contextlib.aclosing(stream_events(self._worker, request)) as events:
            async for event in events:
                yield event.to_line()

    async def cancel(self, *, request_id: str) -> bool:
        """See `Runner.cancel`."""
        return self._worker.cancel(request_id)

    async def status(self) -> ModelStatus:
        """See `Runner.status`."""
        return self._worker.status


class Station:
    """Works on rows.

    Args:
        settings: limits on clips, and marks.
        worker: has the model.
        scratch: for the files of the rows.
        num_processes: like this one, that share the cores.

    Raises:
        ConfigError: the key of marks cannot be used.
    """

    def __init__(
        self, settings: Settings, worker: Worker, scratch: Scratch, num_processes: int = 1
    ) -> None:
        self._worker = worker
        self._scratch = scratch
        self._sandbox = Sandbox(
            SandboxLimits(
                memory_bytes=settings.decode_memory_bytes,
                cpu_seconds=settings.decode_cpu_seconds,
                file_bytes=settings.max_upload_bytes + MAX_FRAMES_BYTES,
                is_confined=settings.sandbox != "off",
            ),
            child_environment(),
            num_sharing=num_processes,
        )
        marks = load_service_marks(settings)
        self._service = GenerationService(
            settings, LocalRunner(worker), self._scratch, self._sandbox, marks
        )

    async def start(self) -> None:
        """Start the media processes while the model loads, and return when both are ready.

        Raises:
            ModelFailedError: the model cannot be loaded.
        """
        await self._sandbox.start()
        while self._worker.status.state == "loading":
            await asyncio.sleep(POLL_SECONDS)
        if self._worker.status.state == "failed":
            raise ModelFailedError(
                f"the model could not be loaded ({self._worker.status.error_code}); "
                "`foley doctor` says why"
            )

    def close(self) -> None:
        """End the media processes."""
        self._sandbox.close()

    async def run(self, task: BulkTask) -> BulkOutcome:
        """Work on a row; returns its outcome, also if it fails.

        Args:
            task: the row.
        """
        log.info("row_begun", row=task.id)
        try:
            with self._scratch.workspace() as folder:
                return await self._run_in(folder, task)
        except FoleyError as error:
            return BulkOutcome.from_error(task, error, finished=time.time())
        except Exception as error:
            log.exception("row_failed", row=task.id)
            failure = StorageFullError() if is_storage_full(error) else ServerError(BUG)
            return BulkOutcome.from_error(task, failure, finished=time.time())

    async def _run_in(self, folder: Path, task: BulkTask) -> BulkOutcome:
        began = time.monotonic()
        if task.clip is not None:
            await asyncio.to_thread(_fetch, task.clip, folder / CLIP)
        job = GenerationJob(
            owner="",
            caller="",
            request_id=folder.name,
            folder=folder,
            options=GenerationOptions(
                **task.request.model_dump(),
                **task.mix.changed(),
                trim=task.trim,
                start_seconds=task.start_seconds,
                frame_rate=task.frame_rate,
                priority="bulk",
            ),
            format=cast("Format", Path(task.names[0]).suffix[1:].lower()),
            measures=True,
        )
        result = await self._service.run(job, Deadline(TIMEOUT_SECONDS), lambda update: None)
        files = result.files
        outcome = BulkOutcome(
            id=task.id,
            state="done",
            digest=task.digest,
            names=tuple(
                str(Path(name).with_suffix(f".{file.container}"))
                for name, file in zip(task.names, files, strict=True)
            ),
            seeds=result.seeds,
            layer_seeds=tuple(file.seed for file in files if file.layer),
            duration_seconds=result.duration_seconds,
            seconds=time.monotonic() - began,
            finished=time.time(),
            device_seconds=result.device_seconds,
            loudness=tuple(file.loudness for file in files if file.loudness),
            speech_seconds=tuple(file.speech_seconds or 0.0 for file in files),
            notices=result.notices,
        )
        await asyncio.to_thread(publish, task, outcome, [file.path for file in files])
        return outcome


def _fetch(clip: str, destination: Path) -> None:
    """Copy a clip of a row, or pack its numbered pictures."""
    if not is_remote(clip) and is_pattern(Path(clip)):
        pack_pictures(Path(clip), destination)
    else:
        fetch_clip(clip, destination)


def publish(task: BulkTask, outcome: BulkOutcome, sources: list[Path]) -> None:
    """Copy the results of a row to its output, after what is kept of it.

    A process that is killed between the two leaves a record without results, which counts for
    nothing. So a row that has its results always has a record.

    Args:
        task: the row.
        outcome: with the names of the results.
        sources: path of each result.

    Raises:
        OutputError: a result exists, or cannot be written.
    """
    storage = open_storage(task.output)
    for name in () if task.replace else outcome.names:
        if storage.has(name):  # before the record of another run is overwritten
            raise OutputError(
                f"{task.output}/{name} exists; another run writes to the same output: let one of "
                "them end"
            )
    storage.write(name_record(task.id), outcome.model_dump_json().encode())
    for source, name in zip(sources, outcome.names, strict=True):
        storage.put(source, name, replace=task.replace)


def make_settings(start: BulkStart) -> Settings:
    """Return the settings of the environment with those of the command.

    Args:
        start: which model, and which marks.
    """
    given = start.model_dump(exclude={"jobs", "num_processes", "verbose"})
    for name in ("weights", "marks_key", "marks_chain"):
        given[name] = Path(given[name]) if given[name] else None
    return Settings().model_copy(update={**given, "max_concurrency": MAX_JOBS, "key_share": 1.0})


async def serve(start: BulkStart, lines: BinaryIO, messages: TextIO) -> None:
    """Load the model, and work on rows until there are no more lines.

    Args:
        start: which model.
        lines: a pipe with a `BulkTask` each.
        messages: gets a `BulkReady` and a `BulkOutcome` for each row.
    """
    settings = make_settings(start)
    reader = asyncio.StreamReader(limit=1 << 26)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), lines
    )
    scratch = Scratch(settings.scratch_root)
    try:
        await _read_rows(settings, start, scratch, reader, messages)
    finally:
        scratch.close()
        # The threads of the worker and of unfinished rows are of no use to anybody.
        os._exit(0)


async def _read_rows(
    settings: Settings,
    start: BulkStart,
    scratch: Scratch,
    reader: asyncio.StreamReader,
    messages: TextIO,
) -> None:
    try:
        worker = start_worker(settings)
        station = Station(settings, worker, scratch, start.num_processes)
        await station.start()
    except FoleyError as error:
        _write(messages, BulkReady(error=(error.code, str(error))).model_dump_json())
        return
    jobs = start.jobs
    if jobs is None:
        jobs = await asyncio.to_thread(_choose_jobs, settings.device)
    model = worker.status
    ready = BulkReady(preset=model.preset, description=model.description, jobs=jobs)
    _write(messages, ready.model_dump_json())
    running: set[asyncio.Task[None]] = set()

    async def work(line: bytes) -> None:
        outcome = await station.run(BulkTask.model_validate_json(line))
        _write(messages, outcome.model_dump_json())

    while line := await reader.readline():
        job = asyncio.create_task(work(line))
        running.add(job)
        job.add_done_callback(running.discard)
    station.close()


def _write(messages: TextIO, line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # the end of the input comes next
        messages.write(line + "\n")


def _choose_jobs(device: str) -> int:
    """Return the number of rows that keep the devices busy."""
    num_gpus = count_gpus(device)
    return min(MAX_JOBS, JOBS_PER_GPU * num_gpus) or JOBS_ON_CPU

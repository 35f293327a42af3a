"""Rows side by side: decode, generate, write and publish each of them.

task ── fetch ── decode (child) ── Worker: encode, sample, decode_audio ── write (child) ── publish
"""

import asyncio
import contextlib
import errno
import os
import time
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import structlog

from foley.bulk import BulkOutcome, BulkReady, BulkStart, BulkTask, name_record
from foley.errors import FoleyError, ModelFailedError, OutputError, ServerError, StorageFullError
from foley.mix import LoudnessReport
from foley.storage import fetch_clip, open_storage
from foley.types import NoPicture
from runners.handoff import CLIP, MAX_FRAMES_BYTES, FrameCounts
from runners.jobs.marks import load_service_marks, log_unsigned, make_write_arguments
from runners.jobs.scratch import Scratch
from runners.messages import RunnerRequest, RunnerResult
from runners.sandbox.fork_server import SandboxLimits
from runners.sandbox.pool import DECODE, Sandbox
from runners.settings import Settings, child_environment
from runners.worker.startup import start_worker
from runners.worker.worker import Worker

log = structlog.get_logger(__name__)

# Enough for a full evaluation of each engine while other rows are decoded and written.
JOBS_PER_GPU, JOBS_ON_CPU = 24, 6
MAX_JOBS = 512
POLL_SECONDS = 0.05
# Rows wait for nobody who would lose patience.
TIMEOUT_SECONDS = 7 * 86_400.0
BUG = "the row failed through no fault of its clip; the log says why"


class Station:
    """Works on rows.

    Args:
        settings: limits on clips.
        worker: has the model.
        scratch: for the files of the rows.

    Raises:
        ConfigError: the key for marks cannot be used.
    """

    def __init__(self, settings: Settings, worker: Worker, scratch: Scratch) -> None:
        self._marks = load_service_marks(settings)
        self._worker = worker
        self._scratch = scratch
        self._limits: dict[str, Any] = {
            "max_seconds": settings.max_clip_seconds,
            "max_pixels": settings.max_clip_pixels,
            "max_bytes": settings.max_upload_bytes,
            "codecs": settings.video_codecs.split(","),
        }
        self._sandbox = Sandbox(
            SandboxLimits(
                memory_bytes=settings.decode_memory_bytes,
                cpu_seconds=settings.decode_cpu_seconds,
                file_bytes=settings.max_upload_bytes + MAX_FRAMES_BYTES,
                is_confined=settings.sandbox != "off",
            ),
            child_environment(),
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
        try:
            with self._scratch.workspace() as folder:
                return await self._run_in(folder, task)
        except FoleyError as error:
            return BulkOutcome.from_error(task, error, finished=time.time())
        except Exception as error:
            log.exception("row_failed", row=task.id)
            is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            failure = StorageFullError() if is_full else ServerError(BUG)
            return BulkOutcome.from_error(task, failure, finished=time.time())

    async def _run_in(self, folder: Path, task: BulkTask) -> BulkOutcome:
        began = time.monotonic()
        trimmed, counts = await self._decode(folder, task)
        result = await self._generate(folder, task, counts)
        written = await self._sandbox.run(
            "write",
            folder,
            formats=[Path(task.names[0]).suffix[1:].lower()],
            sample_rate=result.sample_rate,
            stop_seconds=result.duration_seconds if trimmed else None,
            mix=task.mix.changed(),
            limits=self._limits,
            **make_write_arguments(
                self._marks,
                self._worker.status.preset,
                result.seeds,
                task.request,
                task.mix,
            ),
        )
        log_unsigned(written)
        files = [*(copies[0] for copies in written), *written[0][1:]]  # the layers come last
        names = tuple(
            str(Path(name).with_suffix(f".{file['container']}"))
            for name, file in zip(task.names, files, strict=True)
        )
        notices = [*result.notices, *(notice for file in files for notice in file["notices"])]
        outcome = BulkOutcome(
            id=task.id,
            state="done",
            digest=task.digest,
            names=names,
            seeds=result.seeds,
            layer_seeds=result.layer_seeds,
            duration_seconds=result.duration_seconds,
            seconds=time.monotonic() - began,
            finished=time.time(),
            loudness=tuple(
                LoudnessReport(**file["loudness"]) for file in files if file["loudness"]
            ),
            notices=tuple(dict.fromkeys(notices)),
        )
        sources = [folder / file["name"] for file in files]
        await asyncio.to_thread(publish, task, outcome, sources)
        return outcome

    async def _decode(self, folder: Path, task: BulkTask) -> tuple[bool, FrameCounts]:
        """Decode the clip; returns whether it was trimmed, and its frames' counts."""
        if task.clip is None:
            assert task.request.duration_seconds is not None
            nothing = NoPicture(duration_seconds=task.request.duration_seconds)
            return False, FrameCounts(nothing.num_visual, nothing.num_sync)
        await asyncio.to_thread(fetch_clip, task.clip, folder / CLIP)
        decoded = await self._sandbox.run(
            DECODE,
            folder,
            preset=self._worker.status.preset,
            container=Path(task.names[0]).suffix[1:].lower(),
            trim=task.trim,
            with_sound=task.mix.is_mixed,
            limits=self._limits,
        )
        return decoded["trimmed"], FrameCounts(decoded["num_visual"], decoded["num_sync"])

    async def _generate(self, folder: Path, task: BulkTask, counts: FrameCounts) -> RunnerResult:
        request = RunnerRequest(
            id=folder.name,
            priority="bulk",
            folder=str(folder),
            options=task.request,
            timeout_seconds=TIMEOUT_SECONDS,
        )
        job = self._worker.admit(request)
        self._worker.queue(job, counts)
        return await asyncio.wrap_future(job.outcome)


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


async def serve(start: BulkStart, lines: BinaryIO, messages: TextIO) -> None:
    """Load the model, and work on rows until there are no more lines.

    Args:
        start: which model.
        lines: a pipe with a `BulkTask` each.
        messages: gets a `BulkReady` and a `BulkOutcome` for each row.
    """
    settings = Settings().model_copy(
        update={
            **start.model_dump(include={"preset", "device", "precision", "memory"}),
            "weights": Path(start.weights) if start.weights else None,
            "max_concurrency": MAX_JOBS,
            "key_share": 1.0,
        }
    )
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
        station = Station(settings, worker, scratch)
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
    from runners.worker.engine import find_devices

    devices = find_devices(device)
    is_cpu = devices[0].type == "cpu"
    return JOBS_ON_CPU if is_cpu else min(MAX_JOBS, JOBS_PER_GPU * len(devices))

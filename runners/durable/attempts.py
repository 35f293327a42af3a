"""Run one job through the API of this service, again and again until it has an outcome.

The executor is a client as any other: the API decodes, admits and mixes a job's request with those
of interactive callers. The seed is fixed, so a repetition gives the same bytes.
"""

import asyncio
import contextlib
import functools
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError

from foley.client import AsyncFoleyClient, RemoteGeneration, RemoteUpdate
from foley.errors import (
    BusyError,
    CancelledRequestError,
    ConnectionFailedError,
    EndingError,
    FoleyError,
    ModelFailedError,
    NotFoundError,
    NotReadyError,
    RequestError,
    StorageFullError,
)
from runners.buckets import deliver
from runners.durable.bucket_files import AnyFiles, translate_errors
from runners.durable.queue import JobQueue
from runners.durable.request import JobRequest, find_output
from runners.durable.secret import make_job_key
from runners.durable.transport import AiohttpTransport
from runners.handoff import CLIP, SOURCE
from runners.status import PublicError, public_error

log = structlog.get_logger(__name__)

# The service was busy, starting or ending: none of it is about the job. `NotFoundError` means that
# the API had to drop the files before they were fetched.
WAITED_FOR = (
    BusyError,
    CancelledRequestError,
    ConnectionFailedError,
    EndingError,
    ModelFailedError,
    NotFoundError,
    NotReadyError,
    StorageFullError,
)
# A disk is full, or a database away, by other errors than these.
WAITED_CODES = (StorageFullError.code, NotReadyError.code)
# A job that ends the model's process, or that times out, must not do so for ever.
MAX_FAILURES = 10
FIRST_PAUSE_SECONDS = 0.25
MAX_PAUSE_SECONDS = 5.0
CONFIRM_SECONDS = 1.0


class ProgressNotes:
    """How far the running jobs are, until the queue knows.

    Jobs note in their event loop. A thread writes the latest of all of them in one transaction.
    """

    def __init__(self) -> None:
        self._latest: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def put(self, job_id: str, progress: dict[str, Any]) -> None:
        """Note how far a job is.

        Args:
            job_id: of the job.
            progress: as of `runners.durable.job.Job`.
        """
        with self._lock:
            self._latest[job_id] = progress

    def forget(self, job_id: str) -> None:
        """Forget what was noted of a job that has ended."""
        with self._lock:
            self._latest.pop(job_id, None)

    def write(self, queue: JobQueue) -> None:
        """Write what was noted since the last call.

        Raises:
            SQLAlchemyError: the database is away, or its disk is full; the next call tries again.
        """
        with self._lock:
            latest = dict(self._latest)
        if not latest:
            return
        queue.set_progress(latest)
        with self._lock:
            for job_id, progress in latest.items():
                if self._latest.get(job_id) is progress:
                    del self._latest[job_id]


class JobRunner:
    """Runs the jobs of a folder.

    Args:
        server: address of the API.
        secret: of the folder, see `runners.durable.secret`.
        files: of the jobs.
        queue: says whether a job was cancelled.
        notes: of the jobs' progress.
        require_claim: returns if the jobs of this process are still its own; None where no other
            can have taken them.
    """

    def __init__(
        self,
        server: str,
        secret: bytes,
        files: AnyFiles,
        queue: JobQueue,
        notes: ProgressNotes,
        require_claim: Callable[[], None] | None = None,
    ) -> None:
        self._server = server
        self._secret = secret
        self._files = files
        self._queue = queue
        self._notes = notes
        self._require_claim = require_claim
        self._clients: dict[str, AsyncFoleyClient] = {}  # by owner: making one takes 30 ms

    async def run(self, job_id: str, owner: str, request: JobRequest) -> dict[str, Any]:
        """Return the result of a job, whose files are in its folder then.

        Args:
            job_id: of the job.
            owner: in whose name the API is called.
            request: of the job.

        Raises:
            FoleyError: the job cannot succeed.
        """
        try:
            return await self._run(job_id, owner, request)
        finally:
            self._notes.forget(job_id)

    async def _run(self, job_id: str, owner: str, request: JobRequest) -> dict[str, Any]:
        pause_seconds = FIRST_PAUSE_SECONDS
        num_failures = num_retries = 0
        while True:
            if (result := await asyncio.to_thread(self._files.take_up, job_id)) is not None:
                return result
            try:
                return await self._run_once(job_id, owner, request)
            except (FoleyError, OSError, SQLAlchemyError) as error:
                if isinstance(error, CancelledRequestError) and await self._is_cancelled(
                    owner, job_id
                ):
                    raise
                public = public_error(error)
                if not isinstance(error, WAITED_FOR) and public.code not in WAITED_CODES:
                    num_failures += 1
                    if isinstance(error, RequestError) or num_failures == MAX_FAILURES:
                        raise
                log.warning("job_waits", job_id=job_id, code=public.code, reason=str(error))
                num_retries += 1
                self._note_wait(job_id, public, num_retries)
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, MAX_PAUSE_SECONDS)

    async def _run_once(self, job_id: str, owner: str, request: JobRequest) -> dict[str, Any]:
        if request.start_by is not None:
            await asyncio.to_thread(self._queue.starts.begin, job_id)
        client = self._find_client(owner)
        # A job that was accepted before pieces were refused would write files that nobody reads.
        options = request.options.model_dump(exclude_unset=True, exclude={"pieces"})
        with contextlib.ExitStack() as held:
            partial = held.enter_context(self._files.partial_results(job_id))
            inputs = await asyncio.to_thread(
                held.enter_context, self._files.open_inputs(job_id, request)
            )
            if request.options.edit is not None and request.options.edit.is_sent:
                options["edit"]["source"] = inputs / SOURCE
            generation = await client.generate(
                inputs / CLIP if request.has_clip else None,
                request_id=job_id,
                on_update=functools.partial(self._note_update, job_id),
                **options,
            )
            for file in generation.files:
                await client.download(file, partial / Path(file.url).name)
            result = describe_result(generation)
            if (output := find_output(job_id, request.output)) is not None:
                result = await self._store(job_id, deliver, partial, output, result)
                for file in result["files"]:
                    (partial / file["name"]).unlink()
            return await self._store(job_id, self._files.publish, partial, job_id, result)

    async def _store(
        self, job_id: str, store: Callable[..., dict[str, Any]], *arguments: object
    ) -> dict[str, Any]:
        """Return what a call that stores the files of a job returns.

        It is repeated while a bucket is away, since the sound need not be made again for that.
        """
        pause_seconds = FIRST_PAUSE_SECONDS
        for num_retries in itertools.count(1):
            await self._confirm(job_id)
            try:
                with translate_errors():
                    return await asyncio.to_thread(store, *arguments)
            except NotReadyError as error:
                self._note_wait(job_id, public_error(error), num_retries)
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, MAX_PAUSE_SECONDS)
        raise AssertionError("it counts for ever")

    async def _is_cancelled(self, owner: str, job_id: str) -> bool:
        """Whether the job itself was cancelled, and not only a request of it."""
        try:
            job = await asyncio.to_thread(self._queue.find, owner, job_id)
        except SQLAlchemyError:  # DBOS ends a cancelled job anyway
            return False
        return job.state == "cancelled"

    async def _confirm(self, job_id: str) -> None:
        """Return if the job is still this process's own; waits while the database is away."""
        while self._require_claim is not None:
            try:
                await asyncio.to_thread(self._require_claim)
            except SQLAlchemyError as error:
                log.warning("result_waits", job_id=job_id, reason=str(error))
            else:
                return
            await asyncio.sleep(CONFIRM_SECONDS)

    def _find_client(self, owner: str) -> AsyncFoleyClient:
        if owner not in self._clients:
            # Also where no key is needed: it tells the call from one that a caller makes.
            key = make_job_key(self._secret, owner)
            self._clients[owner] = AsyncFoleyClient(
                self._server, api_key=key, transport=AiohttpTransport()
            )
        return self._clients[owner]

    def _note_update(self, job_id: str, update: RemoteUpdate) -> None:
        self._notes.put(job_id, update.model_dump(mode="json", exclude_none=True))

    def _note_wait(self, job_id: str, error: PublicError, num_retries: int) -> None:
        told = {"code": error.code, "message": error.message, "retries": num_retries}
        self._notes.put(job_id, told)


def describe_result(generation: RemoteGeneration) -> dict[str, Any]:
    """Return a result as the queue keeps it: without what depends on where its files are.

    Args:
        generation: the API's answer.
    """
    described = generation.model_dump(
        mode="json",
        by_alias=True,
        exclude={"saved", "kept_seconds", "request_id", "files"},
        exclude_none=True,
    )
    files = [
        {
            "name": Path(file.url).name,
            **file.model_dump(mode="json", exclude={"url", "num_bytes"}, exclude_none=True),
            "bytes": file.num_bytes,
        }
        for file in generation.files
    ]
    return {**described, "files": files}

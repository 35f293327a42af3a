"""Receive the upload of a job and accept it: what HTTP and gRPC have in common."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foley.adapter_files import find_files
from foley.errors import RequestTimeoutError
from foley.request import check_adapter_names
from runners.durable.job import Job
from runners.durable.request import JobOptions, JobRequest
from runners.handoff import CLIP, SOURCE
from runners.jobs.cancellation import CancellationRegistry
from runners.jobs.clip_url import ClipLoader
from runners.jobs.deadline import run_until_cancelled
from runners.jobs.ending import Ending
from runners.jobs.intake import Intake, Upload
from runners.settings import Settings

if TYPE_CHECKING:  # the queue's library takes a second to import
    from runners.durable.service import JobService

# Called with the idempotency key, or None, before the clip is read.
Admit = Callable[[str | None], Awaitable[None]]
Read = Callable[[Path, Upload, Admit], Coroutine[Any, Any, JobOptions]]


class JobReception:
    """Accepts and cancels jobs for callers.

    Args:
        settings: time and size limits.
        jobs: of this service.
        intake: bounds the uploads.
        clips: stores clips that are named by their address.
        ending: of this process.
        registry: of the requests that can be cancelled.

    Attributes:
        jobs: of this service.
    """

    def __init__(
        self,
        settings: Settings,
        jobs: "JobService",
        intake: Intake,
        clips: ClipLoader,
        ending: Ending,
        registry: CancellationRegistry,
    ) -> None:
        self.jobs = jobs
        self._settings = settings
        self._intake = intake
        self._clips = clips
        self._ending = ending
        self._registry = registry
        # By name, since a job is also accepted while the model loads.
        self._adapters = [path.stem for path in find_files(settings.adapters or "")]

    async def submit(self, owner: str, caller: str, read: Read, *, root: str) -> Job:
        """Accept a job.

        Args:
            owner: see `runners.auth.ApiKeys.owner_of`.
            caller: whose share of the uploads and of the queue it is; see `Intake.receive`.
            read: stores the clip in a folder, as `runners.handoff.CLIP`, and returns the options.
            root: path below which the caller reached the service.

        Raises:
            ConflictError: the idempotency key was used for another request.
            FoleyError: as for a generation, before the work begins.
        """
        keys: list[str | None] = []

        async def admit(key: str | None) -> None:
            keys.append(key)
            await asyncio.to_thread(self.jobs.check_room, owner, caller, key)

        self._intake.check_requests(caller)
        with (
            self._ending.accept_work("job"),
            self._intake.receive(caller) as upload,
            self.jobs.files.receive() as folder,
        ):
            limit_seconds = self._settings.request_timeout_seconds
            try:
                async with asyncio.timeout(limit_seconds):
                    options = await run_until_cancelled(
                        self._receive(read(folder, upload, admit), folder, upload, owner),
                        self._ending.wait_for_cut_off(),
                    )
            except TimeoutError as error:
                raise RequestTimeoutError(
                    f"the upload took longer than {limit_seconds:g} s, and was dropped"
                ) from error
            has_clip = (folder / CLIP).exists() or options.upload is not None
            wanted = options.format or options.choose_default_format(has_clip=has_clip)
            options.check_files(
                (wanted, *options.also),
                has_clip=has_clip,
                is_stereo=options.is_stereo,
                has_original=options.has_original,
            )
            check_adapter_names((use.name for use in options.adapters), self._adapters)
            clip = folder / CLIP if has_clip else None
            if options.upload is not None:
                clip = self.jobs.uploads.find_complete(owner, options.upload)
            source = folder / SOURCE if (folder / SOURCE).exists() else None
            settled = await asyncio.to_thread(JobRequest.settle, options, clip, source)
            self._intake.count_request(caller)
            return await asyncio.to_thread(
                self.jobs.accept,
                owner,
                folder,
                settled,
                caller=caller,
                upload=options.upload,
                idempotency_key=keys[0],
                root=root,
            )

    async def _receive(
        self,
        reading: Coroutine[Any, Any, JobOptions],
        folder: Path,
        upload: Upload,
        owner: str,
    ) -> JobOptions:
        """Store what a job needs, and return its options."""
        options = await run_until_cancelled(reading, upload.watch_rate())
        return await self._clips.load(options, folder, upload, owner)

    async def cancel(self, owner: str, job_id: str) -> Job:
        """Cancel a job that has not ended, and return it.

        Args:
            owner: of the job.
            job_id: as the caller sent it; any text.

        Raises:
            NotFoundError: there is none, or it belongs to another owner.
        """
        job = await asyncio.to_thread(self.jobs.queue.cancel, owner, job_id)
        # The executor learns of it within a second, and its request is called as the job is.
        self._registry.cancel(owner, job_id)
        return job

"""Durable jobs as the client sees them.

Nothing here opens a connection: both clients use it.
"""

import uuid
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from pydantic import BaseModel

from foley.client import uploads
from foley.client.events import EventParser
from foley.client.request import Clip, PreparedRequest
from foley.client.response import parse_body
from foley.client.results import RemoteFile, RemoteObject
from foley.client.uploads import PiecewiseUpload, measure
from foley.errors import FoleyError, ParameterError, RequestError, ServerError, make_error

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
JOBS_PATH = "/v1/jobs"
FAILED_WEBHOOKS_PATH = "/v1/webhooks/failed"


class RemoteJobError(RemoteObject):
    """Why a job failed.

    Attributes:
        code: stable name of the error.
        message: for people.
    """

    code: str
    message: str


class RemoteJobResult(RemoteObject):
    """The result of a job.

    Attributes:
        model: name of the preset that made the sound.
        duration_seconds: length of each sound.
        sample_rate_hz: sample rate of each sound.
        timings_seconds: seconds in each stage, in order, and their `total`.
        device_seconds: for how long the model's devices, GPUs or the CPU, worked on it. Work that
            it shared with other requests counts by its part. None from an older service.
        notices: sentences about what was done to the clip or the prompts.
        seeds: the seed of each variation.
        files: by variation, the format asked for first.
    """

    model: str
    duration_seconds: float
    sample_rate_hz: int
    timings_seconds: dict[str, float]
    device_seconds: float | None = None
    notices: tuple[str, ...]
    seeds: tuple[int, ...]
    files: tuple[RemoteFile, ...]


class RemoteJob(RemoteObject):
    """A job of a service.

    Attributes:
        id: of the job.
        state: queued, running, succeeded, failed or cancelled.
        created_at: when it was accepted.
        finished_at: when it ended; None before that.
        expires_at: when the service removes it; None before it has ended.
        queue_position: how many jobs are started before one that waits; None for others.
        starts: how often it was started; more than once after restarts of the service.
        output: folder of a bucket to which its files are written; None where the service keeps
            them.
        progress: of a running job: its stage and steps, or the code and the message of what it
            waits for.
        error: of a job that failed.
        result: of a job that succeeded.
    """

    id: str
    state: JobState
    created_at: datetime
    finished_at: datetime | None = None
    expires_at: datetime | None = None
    queue_position: int | None = None
    starts: int = 0
    output: str | None = None
    progress: dict[str, Any] = {}
    error: RemoteJobError | None = None
    result: RemoteJobResult | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the job will not change any more."""
        return self.state not in ("queued", "running")

    def to_error(self) -> FoleyError | None:
        """Return the error of a job that failed; None for other jobs."""
        if self.error is None:
            return None
        try:
            error = make_error(self.error.code, self.error.message)
        except KeyError:  # the service's own fault, or a code of a newer service
            error = ServerError(f"{self.error.message} ({self.error.code})")
        error.request_id = self.id
        return error


class RemoteJobList(BaseModel):
    """A page of jobs, the newest first."""

    jobs: tuple[RemoteJob, ...]


class PreparedJob:
    """A request to `POST /v1/jobs`, checked before anything is sent.

    Args:
        clip: as of `PreparedRequest`.
        options: as of `PreparedRequest`.
        idempotency_key: the same request under the same key is the same job. Without one a key is
            drawn, so that a repetition after a broken connection makes no second job.
        of_the_job: further fields, of what becomes of the job itself. A value of None is not sent.

    Raises:
        ParameterError: an option is unknown or out of bounds.
    """

    def __init__(
        self,
        clip: Clip | None,
        options: Mapping[str, Any],
        idempotency_key: str | None,
        of_the_job: Mapping[str, str | None],
    ) -> None:
        self._request = PreparedRequest(clip, options, request_id=None, more_fields=of_the_job)
        self._key = idempotency_key or uuid.uuid4().hex
        self.open_form = self._request.open_form

    def begin_upload(self) -> PiecewiseUpload | None:
        """Return the upload of a clip that is sent in pieces; None for another, and without one.

        Raises:
            VideoDecodeError: the clip cannot be read.
        """
        clip = self._request.clip
        if clip is None or measure(clip) < uploads.MIN_PIECEWISE_BYTES:
            return None
        return PiecewiseUpload(clip)

    def take_upload(self, upload: PiecewiseUpload) -> None:
        """Have an upload be the clip.

        Args:
            upload: that is complete.
        """
        self._request.replace_clip("upload", upload.id)

    @property
    def headers(self) -> dict[str, str]:
        """The headers that replace those of the form."""
        return {"Idempotency-Key": self._key}


class JobEvents:
    """Reads the events of a job, over as many connections as it takes.

    Attributes:
        job: as the service told it last; None before that.
    """

    def __init__(self) -> None:
        self.job: RemoteJob | None = None
        self._parser = EventParser()
        self._last_id = ""

    def begin(self) -> dict[str, str]:
        """Return the headers of the next connection."""
        self._parser = EventParser()
        return {"Last-Event-ID": self._last_id} if self._last_id else {}

    def feed(self, chunk: bytes) -> list[RemoteJob]:
        """Return what the next bytes of the body tell.

        Args:
            chunk: any number of bytes.

        Raises:
            ServerError: an event does not match the service's interface.
        """
        jobs = []
        for event in self._parser.feed(chunk):
            if event.name == "job":
                self.job = parse_body(RemoteJob, event.data)
                self._last_id = event.id
                jobs.append(self.job)
        return jobs


def format_time(time: datetime | None) -> str | None:
    """Return a time as a form holds it; None for none.

    Args:
        time: of the local zone, if it has none.
    """
    return None if time is None else time.astimezone().isoformat()


def get_job_path(job_id: str, action: str = "") -> str:
    """Return the path of a job.

    Args:
        job_id: any text; it is percent-encoded.
        action: `cancel`, `events` or nothing.

    Raises:
        ParameterError: the id is empty.
    """
    path = f"{JOBS_PATH}/{_quote_id(job_id)}"
    return f"{path}/{action}" if action else path


def get_resend_path(job_id: str) -> str:
    """Return the path that sends the webhook of a job again when it receives a POST.

    Args:
        job_id: any text; it is percent-encoded.

    Raises:
        ParameterError: the id is empty.
    """
    return f"/v1/webhooks/{_quote_id(job_id)}/resend"


def _quote_id(job_id: str) -> str:
    if not job_id:
        raise ParameterError("the job's id is empty; give the one that its submission returned")
    return quote(job_id, safe="")


def get_page(state: JobState | None, limit: int, offset: int) -> dict[str, str | int]:
    """Return the parameters of a page of jobs."""
    page: dict[str, str | int] = {"limit": limit, "offset": offset}
    return page if state is None else {**page, "state": state}


def pair_job_files(job: RemoteJob, folder: Path) -> list[tuple[RemoteFile, Path]]:
    """Pair each file of a job with its path in a folder: foley-1.mp4, foley-1.wav and so on.

    Args:
        job: that has ended.
        folder: for the files.

    Raises:
        RequestError: the job has no result, or its files are in a bucket; its own error, if it
            failed.
    """
    if job.result is None:
        error = job.to_error() or RequestError(f"job {job.id} is {job.state}, and has no result")
        raise error
    if job.output is not None:
        raise RequestError(f"the files of job {job.id} are in {job.output}; read them there")
    return [(file, folder / file.name) for file in job.result.files]

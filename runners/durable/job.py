"""What is known of a job, and of its webhook."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from runners.messages import Priority

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
JOB_STATES: tuple[JobState, ...] = get_args(JobState)
# Waits for the end of the job; is being sent, with pauses between tries; was sent; was given up.
WebhookState = Literal["waiting", "sending", "delivered", "failed"]
WEBHOOK_STATES: tuple[WebhookState, ...] = get_args(WebhookState)
UNFINISHED: tuple[JobState, ...] = ("queued", "running")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as the queue knows it. Times are Unix times in milliseconds.

    Attributes:
        id: of the job.
        owner: see `runners.auth.ApiKeys.owner_of`.
        state: of the job.
        priority: interactive or bulk.
        created_ms: when it was accepted.
        started_ms: when it was started last; None before that.
        finished_ms: when it succeeded, failed or was cancelled; None before that.
        digest: of the request.
        progress: fields of `runners.messages.ProgressUpdate`, or why the job waits; may be empty.
        error: code and message of a failed job.
        result: of a job that succeeded.
        has_webhook: whether its end is told to a receiver.
        upload_digest: of the request, by the id of the upload that it names; None without one.
        output: address of the folder of a bucket to which its files are written; None where the
            service keeps them.
        start_by: when it must have begun, as ISO 8601; None for any time.
        num_starts: how often it was started; more than once after restarts of the service.
    """

    id: str
    owner: str
    state: JobState
    priority: Priority
    created_ms: int
    started_ms: int | None
    finished_ms: int | None
    digest: str
    progress: dict[str, Any]
    error: tuple[str, str] | None
    result: dict[str, Any] | None
    has_webhook: bool
    upload_digest: str | None
    output: str | None
    start_by: str | None
    num_starts: int


@dataclass(frozen=True, kw_only=True)
class Webhook:
    """The webhook of a job. Times are Unix times in milliseconds, and 0 where there is none yet.

    Attributes:
        job_id: of the job.
        owner: of the job.
        url: of the receiver.
        host: in it.
        root: path below which the caller reached the service.
        state: see `WebhookState`.
        created_ms: when the job was accepted.
        body: what is sent; empty before the job has ended.
        first_ms: when the first try could begin.
        next_ms: of the next try.
        num_tries: that were made, since it was asked for last.
        last_error: of the last try; empty if there was none.
        ended_ms: when it was delivered or given up.
    """

    job_id: str
    owner: str
    url: str
    host: str
    root: str
    state: WebhookState
    created_ms: int
    body: str
    first_ms: int
    next_ms: int
    num_tries: int
    last_error: str
    ended_ms: int

    @property
    def message_id(self) -> str:
        """The id of the message, which all tries have."""
        return f"msg_{self.job_id}"


class JobFailedError(Exception):
    """A job has failed for good.

    Args:
        message: for the caller.
        code: of the error.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code  # DBOS keeps it with the message and the name of this class

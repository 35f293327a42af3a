"""What is known of a job."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from runners.messages import Priority

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
JOB_STATES: tuple[JobState, ...] = get_args(JobState)
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


class JobFailedError(Exception):
    """A job has failed for good.

    Args:
        message: for the caller.
        code: of the error.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code  # DBOS keeps it with the message and the name of this class

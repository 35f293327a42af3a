"""The HTTP status, the gRPC code and the public form of every error.

`STATUS` is the only table from exception classes to statuses, and `public_error` the only place
that decides which messages callers may see. HTTP, server-sent events and gRPC use both.
"""

import math
import sys
from dataclasses import dataclass
from typing import NamedTuple

from foley.errors import (
    BusyError,
    CancelledRequestError,
    ConflictError,
    DeviceError,
    EndingError,
    FetchError,
    FoleyError,
    ForbiddenError,
    MediaTypeError,
    ModelFailedError,
    NoModelError,
    NotAcceptableError,
    NotFoundError,
    NotReadyError,
    OutputError,
    ParameterError,
    PromptTooLongError,
    RequestError,
    RequestTimeoutError,
    RunnerLostError,
    ServerError,
    StorageFullError,
    UnauthorizedError,
    UploadTooLargeError,
    UploadTooSlowError,
    VideoError,
    VideoTooLargeError,
)
from runners.storage import is_storage_full


class Status(NamedTuple):
    """The status of an error in both protocols.

    Attributes:
        http: status code, 400 to 599.
        grpc: name of a member of `grpc.StatusCode`.
    """

    http: int
    grpc: str


# An error class that is not listed has the status of its nearest listed ancestor.
STATUS: dict[type[FoleyError], Status] = {
    RequestError: Status(400, "INVALID_ARGUMENT"),
    ParameterError: Status(422, "INVALID_ARGUMENT"),
    PromptTooLongError: Status(422, "INVALID_ARGUMENT"),
    OutputError: Status(422, "INVALID_ARGUMENT"),
    VideoError: Status(422, "INVALID_ARGUMENT"),
    VideoTooLargeError: Status(413, "INVALID_ARGUMENT"),
    FetchError: Status(422, "INVALID_ARGUMENT"),
    UploadTooLargeError: Status(413, "RESOURCE_EXHAUSTED"),
    UploadTooSlowError: Status(408, "DEADLINE_EXCEEDED"),
    MediaTypeError: Status(415, "INVALID_ARGUMENT"),
    NotAcceptableError: Status(406, "INVALID_ARGUMENT"),
    UnauthorizedError: Status(401, "UNAUTHENTICATED"),
    ForbiddenError: Status(403, "PERMISSION_DENIED"),
    NotFoundError: Status(404, "NOT_FOUND"),
    ConflictError: Status(409, "FAILED_PRECONDITION"),
    BusyError: Status(429, "RESOURCE_EXHAUSTED"),
    CancelledRequestError: Status(499, "CANCELLED"),
    FoleyError: Status(500, "INTERNAL"),
    ServerError: Status(500, "INTERNAL"),
    DeviceError: Status(503, "UNAVAILABLE"),
    EndingError: Status(503, "UNAVAILABLE"),
    ModelFailedError: Status(503, "UNAVAILABLE"),
    NoModelError: Status(503, "UNAVAILABLE"),
    NotReadyError: Status(503, "UNAVAILABLE"),
    RunnerLostError: Status(503, "UNAVAILABLE"),
    StorageFullError: Status(503, "UNAVAILABLE"),
    RequestTimeoutError: Status(504, "DEADLINE_EXCEEDED"),
}

# Error codes of responses that no exception of ours caused: those of the router and of BentoML.
CODE_OF_HTTP_STATUS = {
    401: UnauthorizedError.code,
    403: ForbiddenError.code,
    404: NotFoundError.code,
    405: "method_not_allowed",
    409: ConflictError.code,
    413: UploadTooLargeError.code,
    415: MediaTypeError.code,
    416: "range_not_satisfiable",
    429: BusyError.code,
    503: NotReadyError.code,
    504: RequestTimeoutError.code,
}
RETRY_SECONDS = 5
INTERNAL_CODE = "internal"
INTERNAL_STATUS = Status(500, "INTERNAL")
INTERNAL_MESSAGE = "something went wrong inside the service"
REDACTED_MESSAGE = "the service cannot do this now; its log has the reason"

# The messages of these classes are written for callers. Those of other errors may name files.
_PUBLIC = (
    RequestError,
    NotReadyError,
    EndingError,
    ModelFailedError,
    NoModelError,
    RunnerLostError,
    StorageFullError,
    RequestTimeoutError,
)
# The same request may succeed later.
_TRANSIENT = (BusyError, NotReadyError, EndingError, RunnerLostError, StorageFullError)


@dataclass(frozen=True, kw_only=True)
class PublicError:
    """An error as callers see it.

    Attributes:
        code: stable name of the error; see `foley.errors`.
        message: one sentence for the caller.
        status: HTTP status and gRPC code.
        redacted: whether `message` replaces the error's own, which then belongs into the log.
        retry_after_seconds: whole seconds after which the same request may succeed; None where
            waiting does not help.
    """

    code: str
    message: str
    status: Status
    redacted: bool
    retry_after_seconds: int | None = None


def public_error(error: Exception) -> PublicError:
    """Return what callers may see of an error.

    Args:
        error: any exception; one that is no FoleyError becomes `internal`, or `storage_full` if a
            disk was full, or `not_ready` if a database is away.
    """
    if is_storage_full(error):
        error = StorageFullError()
    elif _is_database_away(error):
        error = NotReadyError("the database of the jobs does not answer; try again")
    if not isinstance(error, FoleyError):
        return PublicError(
            code=INTERNAL_CODE, message=INTERNAL_MESSAGE, status=INTERNAL_STATUS, redacted=True
        )
    is_public = isinstance(error, _PUBLIC)
    retry_after_seconds = None
    if isinstance(error, _TRANSIENT):
        retry_after_seconds = math.ceil(error.retry_after_seconds or RETRY_SECONDS)
    return PublicError(
        code=error.code,
        message=str(error) if is_public else REDACTED_MESSAGE,
        status=status_of(type(error)),
        redacted=not is_public,
        retry_after_seconds=retry_after_seconds,
    )


def _is_database_away(error: Exception) -> bool:
    """Whether PostgreSQL did not answer, or no connection to it was free in time."""
    psycopg, alchemy = sys.modules.get("psycopg"), sys.modules.get("sqlalchemy.exc")
    if psycopg is None or alchemy is None:  # nothing of them was imported, so it is not theirs
        return False
    away = (psycopg.OperationalError, psycopg.InterfaceError, alchemy.TimeoutError)
    return isinstance(getattr(error, "orig", error), away)


def status_of(kind: type[FoleyError]) -> Status:
    """Return the status of an error class.

    Args:
        kind: a class that `STATUS` lists, or a subclass of one.
    """
    return next(STATUS[ancestor] for ancestor in kind.__mro__ if ancestor in STATUS)


def code_of_http_status(status: int) -> str:
    """Return the error code of a response that has none of its own.

    Args:
        status: HTTP status, 400 to 599.
    """
    return CODE_OF_HTTP_STATUS.get(status, RequestError.code if status < 500 else INTERNAL_CODE)

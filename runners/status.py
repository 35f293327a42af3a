"""Exception class -> HTTP status and gRPC code, in one table."""

import math
from typing import NamedTuple

from foley.errors import (
    BusyError,
    CancelledRequestError,
    DeviceError,
    FetchError,
    FoleyError,
    MediaTypeError,
    ModelFailedError,
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
    UnauthorizedError,
    UploadTooLargeError,
    VideoError,
    VideoTooLargeError,
)


class Status(NamedTuple):
    """How an error is told to the caller."""

    http: int
    grpc: str  # a member of grpc.StatusCode


# An error that is not listed is told as the nearest of its ancestors that is.
STATUS: dict[type[FoleyError], Status] = {
    RequestError: Status(400, "INVALID_ARGUMENT"),
    ParameterError: Status(422, "INVALID_ARGUMENT"),
    PromptTooLongError: Status(422, "INVALID_ARGUMENT"),
    OutputError: Status(422, "INVALID_ARGUMENT"),
    VideoError: Status(422, "INVALID_ARGUMENT"),
    VideoTooLargeError: Status(413, "INVALID_ARGUMENT"),
    FetchError: Status(422, "INVALID_ARGUMENT"),
    UploadTooLargeError: Status(413, "RESOURCE_EXHAUSTED"),
    MediaTypeError: Status(415, "INVALID_ARGUMENT"),
    NotAcceptableError: Status(406, "INVALID_ARGUMENT"),
    UnauthorizedError: Status(401, "UNAUTHENTICATED"),
    NotFoundError: Status(404, "NOT_FOUND"),
    BusyError: Status(429, "RESOURCE_EXHAUSTED"),
    CancelledRequestError: Status(499, "CANCELLED"),
    FoleyError: Status(500, "INTERNAL"),
    ServerError: Status(500, "INTERNAL"),
    DeviceError: Status(503, "UNAVAILABLE"),
    ModelFailedError: Status(503, "UNAVAILABLE"),
    NotReadyError: Status(503, "UNAVAILABLE"),
    RunnerLostError: Status(503, "UNAVAILABLE"),
    RequestTimeoutError: Status(504, "DEADLINE_EXCEEDED"),
}

# Codes of answers that never were an exception of ours: routing, and the server underneath.
CODE_OF_HTTP_STATUS = {
    401: UnauthorizedError.code,
    404: NotFoundError.code,
    405: "method_not_allowed",
    413: UploadTooLargeError.code,
    415: MediaTypeError.code,
    416: "range_not_satisfiable",
    429: BusyError.code,
    503: NotReadyError.code,
    504: RequestTimeoutError.code,
}
RETRY_AFTER_SECONDS = 5
INTERNAL_CODE = "internal"
INTERNAL_MESSAGE = "something went wrong inside the service"

# Their messages are written for callers; those of other server errors may name files.
_OPEN = (RequestError, NotReadyError, ModelFailedError, RunnerLostError, RequestTimeoutError)


def status_of(kind: type[FoleyError]) -> Status:
    """The status of the class itself, or of its nearest listed ancestor."""
    return next(STATUS[ancestor] for ancestor in kind.__mro__ if ancestor in STATUS)


def code_of_http_status(status: int) -> str:
    """A stable code for an error answer that carries none."""
    return CODE_OF_HTTP_STATUS.get(status, RequestError.code if status < 500 else INTERNAL_CODE)


def public_message(error: FoleyError) -> str:
    """What the caller is told of an error; whoever runs the service finds the rest in its log."""
    if isinstance(error, _OPEN):
        return str(error)
    return "the service cannot do this now; whoever runs it finds the reason in its log"


def retry_after(error: FoleyError) -> int | None:
    """Seconds after which the same request may succeed; None where waiting does not help."""
    if not isinstance(error, BusyError | NotReadyError | RunnerLostError):
        return None
    return math.ceil(error.retry_after_seconds or RETRY_AFTER_SECONDS)

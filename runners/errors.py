"""The errors that only a service raises; in `foley.errors`, since its clients raise them too."""

from foley.errors import (
    BusyError,
    CancelledRequestError,
    MediaTypeError,
    ModelFailedError,
    NotAcceptableError,
    NotFoundError,
    NotReadyError,
    RequestTimeoutError,
    RunnerLostError,
    UnauthorizedError,
    UploadTooLargeError,
)
from foley.errors import error_of as revive

__all__ = [
    "BusyError",
    "CancelledRequestError",
    "MediaTypeError",
    "ModelFailedError",
    "NotAcceptableError",
    "NotFoundError",
    "NotReadyError",
    "RequestTimeoutError",
    "RunnerLostError",
    "UnauthorizedError",
    "UploadTooLargeError",
    "revive",
]

"""Errors that only a server can raise; they continue the tree in `foley.errors`.

RequestError
    MediaTypeError          the body is not a multipart form
    NotAcceptableError      no answer in a format that `Accept` allows
    UploadTooLargeError     the body is over the limit; raised while reading, before it is stored
    BusyError               as many requests as allowed are in the house; try again later
    CancelledRequestError   the caller gave up; nobody reads this answer
ServerError
    NotReadyError           the model is still loading
    ModelFailedError        the model could not be loaded
    RunnerLostError         the process that owns the model died during the request
    RequestTimeoutError     the request took longer than allowed, and was dropped
"""

from foley.errors import FoleyError, RequestError, ServerError


class MediaTypeError(RequestError):
    """The body is not a multipart form."""

    code = "unsupported_media_type"


class NotAcceptableError(RequestError):
    """No answer can be given in a format that `Accept` allows."""

    code = "not_acceptable"


class UploadTooLargeError(RequestError):
    """The request's body is over the limit."""

    code = "upload_too_large"


class BusyError(RequestError):
    """As many requests as allowed are being worked on."""

    code = "busy"


class CancelledRequestError(RequestError):
    """The caller gave up."""

    code = "cancelled"


class NotReadyError(ServerError):
    """The model is still loading."""

    code = "not_ready"


class ModelFailedError(ServerError):
    """The model could not be loaded."""

    code = "model_failed"


class RunnerLostError(ServerError):
    """The process that owns the model died, or was not to be reached."""

    code = "runner_lost"


class RequestTimeoutError(ServerError):
    """The request took longer than allowed, and was dropped."""

    code = "timeout"


def revive(code: str, message: str) -> FoleyError:
    """The error that another process described by its code."""
    return _BY_CODE[code](message)


def _family(kind: type[FoleyError]) -> list[type[FoleyError]]:
    return [kind, *(member for child in kind.__subclasses__() for member in _family(child))]


_BY_CODE = {kind.code: kind for kind in _family(FoleyError)}

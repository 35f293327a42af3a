"""The errors that this project raises on purpose. Their base class says who can fix them.

FoleyError
    RequestError                the caller can fix it
        VideoError              something about the clip
            VideoEmptyError         no bytes
            VideoDecodeError        not a video, truncated, unreadable, codec unknown
            NoVideoStreamError      the file has sound only
            NoFramesError           a video stream without a frame in range
            VideoTooLongError       over the duration limit, and no trimming was asked for
            VideoTooLargeError      too many pixels a frame, or too many bytes
            VideoTooCostlyError     decoding it takes more time or memory than allowed
        PromptTooLongError      more tokens than the text encoder takes
        ParameterError          an option out of its bounds
        OutputError             the result cannot be written as asked
        MediaTypeError          (service) the body is not a multipart form
        NotAcceptableError      (service) no answer in a format that `Accept` allows
        FetchError              (service) the clip's URL is refused, or gives no clip
        UploadTooLargeError     (service) over the limit; raised while reading, before it is stored
        UploadTooSlowError      (service) the upload comes more slowly than allowed
        UnauthorizedError       (service) no key, or a wrong one
        NotFoundError           (service) no such thing, or not the caller's
        ConflictError           (service) the state of the thing does not allow it
        BusyError               (service) all places for requests are taken
        CancelledRequestError   (service) the caller cancelled the request, or left
    ServerError                 the operator of the service must fix it
        CheckpointError         weights missing, damaged, or of another model
        DownloadError           weights could not be fetched
        ConfigError             settings that contradict themselves
        DeviceError             no such device, or it ran out of memory
        ModelError              the model gave values that are not finite
        NotReadyError           (service) the model is still loading
        NoModelError            (service) it has no model, and takes jobs alone
        EndingError             (service) it is being stopped, and takes no new work
        ModelFailedError        (service) the model could not be loaded
        RunnerLostError         (service) the process that owns the model ended during the request
        StorageFullError        (service) no room for the files of a request
        RequestTimeoutError     (service) the request took longer than allowed, and was dropped
            NotStartedError         (service) a job was not started by the time that was set
    ConnectionFailedError       (client) the service could not be reached, or the connection broke

Messages name what was wrong, the value, the limit, and what to do. `code` is stable: programs may
rely on it. A client raises the same class as the service: `make_error` finds it by its code.
"""

from collections.abc import Iterator
from typing import ClassVar


class FoleyError(Exception):
    """Base class of all errors raised on purpose.

    Attributes:
        code: stable name of the kind of error.
        retry_after_seconds: when to try again; None if unknown.
        request_id: of the request that failed; empty outside a service.
    """

    code: ClassVar[str] = "error"
    retry_after_seconds: float | None = None
    request_id: str = ""


class RequestError(FoleyError):
    """The caller can fix it."""

    code = "invalid_request"


class VideoError(RequestError):
    """The clip cannot be used as it is."""

    code = "invalid_video"


class VideoEmptyError(VideoError):
    """The clip has no bytes."""

    code = "video_empty"


class VideoDecodeError(VideoError):
    """The clip is not a video, is cut off, or cannot be read."""

    code = "video_unreadable"


class NoVideoStreamError(VideoError):
    """The file has no video stream."""

    code = "video_stream_missing"


class NoFramesError(VideoError):
    """The video stream has no frame at or after time zero."""

    code = "video_without_frames"


class VideoTooLongError(VideoError):
    """The clip lasts longer than the limit and trimming was not asked for."""

    code = "video_too_long"


class VideoTooLargeError(VideoError):
    """The clip has too many pixels a frame, or too many bytes."""

    code = "video_too_large"


class VideoTooCostlyError(VideoError):
    """Decoding the clip takes more time or memory than allowed."""

    code = "video_too_costly"


class PromptTooLongError(RequestError):
    """A prompt has more tokens than the text encoder takes."""

    code = "prompt_too_long"


class ParameterError(RequestError):
    """An option is out of its bounds."""

    code = "invalid_parameter"


class OutputError(RequestError):
    """The result cannot be written to the place or in the format asked for."""

    code = "invalid_output"


class MediaTypeError(RequestError):
    """The body is not a multipart form."""

    code = "unsupported_media_type"


class NotAcceptableError(RequestError):
    """No answer can be given in a format that `Accept` allows."""

    code = "not_acceptable"


class FetchError(RequestError):
    """The clip's URL was refused, or its content could not be downloaded."""

    code = "clip_not_fetched"


class UploadTooLargeError(RequestError):
    """The request's body is over the limit."""

    code = "upload_too_large"


class UploadTooSlowError(RequestError):
    """The request's body arrives more slowly than the service waits for."""

    code = "upload_too_slow"


class UnauthorizedError(RequestError):
    """No API key came with the request, or a wrong one."""

    code = "unauthorized"


class ForbiddenError(RequestError):
    """The request names a foreign host, or a page of another site sent it."""

    code = "forbidden"


class NotFoundError(RequestError):
    """There is no such thing, or it is not the caller's."""

    code = "not_found"


class ConflictError(RequestError):
    """The state of the thing that the request is about does not allow it."""

    code = "conflict"


class BusyError(RequestError):
    """All places for requests are taken; try again later."""

    code = "busy"


class CancelledRequestError(RequestError):
    """The caller cancelled the request, or left."""

    code = "cancelled"


class ServerError(FoleyError):
    """The operator of the service must fix it."""

    code = "server_error"


class CheckpointError(ServerError):
    """Weights are missing, damaged, or belong to another model."""

    code = "checkpoint_invalid"


class DownloadError(ServerError):
    """Weights could not be fetched, verified or stored."""

    code = "download_failed"


class ConfigError(ServerError):
    """Settings contradict themselves or are out of range."""

    code = "config_invalid"


class DeviceError(ServerError):
    """The device does not exist, or ran out of memory."""

    code = "device_unavailable"


class ModelError(ServerError):
    """The model gave values that are not finite."""

    code = "model_output_invalid"


class NotReadyError(ServerError):
    """The model is still loading."""

    code = "not_ready"


class NoModelError(ServerError):
    """The service has no model: it accepts jobs, and others do them."""

    code = "no_model"


class EndingError(ServerError):
    """The service is being stopped, and takes no new work."""

    code = "ending"


class ModelFailedError(ServerError):
    """The model could not be loaded."""

    code = "model_failed"


class RunnerLostError(ServerError):
    """The process that owns the model ended, or could not be reached."""

    code = "runner_lost"


class StorageFullError(ServerError):
    """The service had no room left for the files of the request."""

    code = "storage_full"

    def __init__(
        self,
        message: str = "the service has no room for the files of this request; try again later",
    ) -> None:
        super().__init__(message)


class RequestTimeoutError(ServerError):
    """The request took longer than allowed, and was dropped."""

    code = "timeout"


class NotStartedError(RequestTimeoutError):
    """The job was not started by the time that its caller had set."""

    code = "not_started"


class ConnectionFailedError(FoleyError):
    """The service could not be reached, did not answer in time, or the connection broke."""

    code = "connection_failed"


def make_error(code: str, message: str) -> FoleyError:
    """Return the error of a code.

    Args:
        code: the `code` of a class in this module.
        message: for people.

    Raises:
        KeyError: no error has this code.
    """
    return _BY_CODE[code](message)


def iterate_causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that have led to it, the latest first, each once.

    A library that raises an error which it has kept can make a circle of them.

    Args:
        error: any; None for none.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def _family(kind: type[FoleyError]) -> list[type[FoleyError]]:
    return [kind, *(member for child in kind.__subclasses__() for member in _family(child))]


_BY_CODE = {kind.code: kind for kind in _family(FoleyError)}

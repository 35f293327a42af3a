"""Every error that this project raises on purpose. The class says whose fault it is.

FoleyError
    RequestError                the caller can fix it
        VideoError              something about the clip
            VideoEmptyError         no bytes
            VideoDecodeError        not a video, truncated, unreadable, codec unknown
            NoVideoStreamError      sound alone
            NoFramesError           a picture stream without a picture in range
            VideoTooLongError       over the duration limit, and no trimming was asked for
            VideoTooLargeError      too many pixels a frame, or too many bytes
        PromptTooLongError      more tokens than the text encoder takes
        ParameterError          an option out of its bounds
        OutputError             the result cannot be written as asked
    ServerError                 whoever runs this must fix it
        CheckpointError         weights missing, damaged, or of another model
        DownloadError           weights could not be fetched
        ConfigError             settings that contradict themselves
        DeviceError             no such device, or it ran out of memory
        ModelError              the model gave values that are not finite

Messages name what was wrong, the value, the limit, and what to do. `code` is stable: programs may
rely on it.
"""

from typing import ClassVar


class FoleyError(Exception):
    """Base of all errors raised on purpose."""

    code: ClassVar[str] = "error"


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
    """The file holds no picture."""

    code = "video_stream_missing"


class NoFramesError(VideoError):
    """The picture stream yields no frame at or after time zero."""

    code = "video_without_frames"


class VideoTooLongError(VideoError):
    """The clip lasts longer than the limit and trimming was not asked for."""

    code = "video_too_long"


class VideoTooLargeError(VideoError):
    """The clip has too many pixels a frame, or too many bytes."""

    code = "video_too_large"


class PromptTooLongError(RequestError):
    """A prompt has more tokens than the text encoder takes."""

    code = "prompt_too_long"


class ParameterError(RequestError):
    """An option is out of its bounds."""

    code = "invalid_parameter"


class OutputError(RequestError):
    """The result cannot be written to the place or in the format asked for."""

    code = "invalid_output"


class ServerError(FoleyError):
    """Whoever runs this must fix it."""

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

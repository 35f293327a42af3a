"""Whether a container takes a stream."""

import io
from collections.abc import Callable

import av
from av.container import OutputContainer


def takes(ffmpeg_format: str, add_stream: Callable[[OutputContainer], object]) -> bool:
    """Return whether FFmpeg writes a header with a stream.

    A header is written to memory, because some refusals (VP9 in mov) come only at that point.

    Args:
        ffmpeg_format: FFmpeg's name of the container, such as matroska.
        add_stream: adds the stream to a container; what it raises is a refusal too.
    """
    try:
        with av.open(io.BytesIO(), "w", format=ffmpeg_format) as writer:
            add_stream(writer)
            writer.start_encoding()
    except (ValueError, av.FFmpegError):
        return False
    return True

"""A large clip that is uploaded in pieces, by tus 1.0, before its job is submitted.

Nothing here opens a connection: both clients use it.

Source: https://tus.io/protocols/resumable-upload, version 1.0.0: the core, and creation.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foley.client.transport import RETRYABLE_JOB_ERRORS
from foley.errors import ConflictError, RequestTimeoutError, ServerError, VideoDecodeError

UPLOADS_PATH = "/v1/uploads"
# A smaller clip is sent again after a broken connection, which costs less than further requests.
MIN_PIECEWISE_BYTES = 32 * 1024 * 1024
PIECE_BYTES = 8 * 1024 * 1024
VERSION = {"Tus-Resumable": "1.0.0"}
# After these the service knows how much has arrived. A conflict ends with the request that is cut
# off, and still writes.
RETRYABLE_UPLOAD_ERRORS = (*RETRYABLE_JOB_ERRORS, ConflictError, RequestTimeoutError)


class PiecewiseUpload:
    """Says which request comes next, until the service has the whole clip.

    Args:
        clip: path of the video, or its bytes.

    Raises:
        VideoDecodeError: it cannot be read.
    """

    def __init__(self, clip: Path | bytes) -> None:
        self._clip = clip
        self._num_bytes = measure(clip)
        self._offset: int | None = None  # None before the service has said it
        self.id = ""

    @property
    def is_complete(self) -> bool:
        """Whether the service has the whole clip, under `id`."""
        return self._offset == self._num_bytes

    def begin(self) -> dict[str, Any]:
        """Return the next request: `method` and `path`, and what else httpx takes.

        Raises:
            VideoDecodeError: the clip cannot be read.
        """
        if not self.id:
            headers = {**VERSION, "Upload-Length": str(self._num_bytes)}
            return {"method": "POST", "path": UPLOADS_PATH, "headers": headers}
        path = f"{UPLOADS_PATH}/{self.id}"
        if self._offset is None:
            return {"method": "HEAD", "path": path, "headers": VERSION}
        headers = {
            **VERSION,
            "Upload-Offset": str(self._offset),
            "Content-Type": "application/offset+octet-stream",
        }
        piece = self._read(self._offset)
        return {"method": "PATCH", "path": path, "headers": headers, "content": piece}

    def take(self, headers: Mapping[str, str]) -> None:
        """Note the answer to the request of `begin`.

        Args:
            headers: of the answer.

        Raises:
            ServerError: the answer is none of tus.
        """
        try:
            if not self.id:
                self.id = headers["location"].rstrip("/").rpartition("/")[2]
                self._offset = 0
            else:
                self._offset = int(headers["upload-offset"])
        except (KeyError, ValueError) as error:
            raise ServerError(f"{UPLOADS_PATH}: the service's answer has no {error}") from error

    def lose(self) -> None:
        """Note that a request has failed: how much has arrived has to be asked for."""
        self._offset = None

    def _read(self, offset: int) -> bytes:
        if isinstance(self._clip, bytes):
            return self._clip[offset : offset + PIECE_BYTES]
        try:
            with self._clip.open("rb") as file:
                file.seek(offset)
                piece = file.read(PIECE_BYTES)
        except OSError as error:
            raise VideoDecodeError(
                f"{self._clip} cannot be read ({error.strerror}); check the path"
            ) from error
        if not piece or self._clip.stat().st_size != self._num_bytes:
            raise VideoDecodeError(f"{self._clip} has changed while it was sent; send it again")
        return piece


def measure(clip: Path | bytes) -> int:
    """Return the bytes of a clip.

    Args:
        clip: path of the video, or its bytes.

    Raises:
        VideoDecodeError: it cannot be read.
    """
    if isinstance(clip, bytes):
        return len(clip)
    try:
        return clip.stat().st_size
    except OSError as error:
        raise VideoDecodeError(
            f"{clip} cannot be read ({error.strerror}); check the path"
        ) from error

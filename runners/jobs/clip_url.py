"""The clip of a request that names it by `clip_url` instead of sending it."""

import asyncio
import base64
import binascii
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote_to_bytes

from foley.errors import ParameterError, UploadTooLargeError
from runners.fetch import Fetcher
from runners.handoff import CLIP
from runners.jobs.intake import Upload
from runners.jobs.job import GenerationOptions
from runners.settings import Settings

# A data: URI is held in memory, and gRPC takes no larger message.
MAX_DATA_URI_BYTES = 4 * 1000 * 1000
DATA = "data:"
Options = TypeVar("Options", bound=GenerationOptions)


class ClipLoader:
    """Stores the clips that requests name.

    Args:
        settings: whether addresses are fetched, and the limits on a clip.
        fetcher: downloads clips; None makes one that reaches only the open internet.
    """

    def __init__(self, settings: Settings, fetcher: Fetcher | None = None) -> None:
        self._is_fetching = settings.clip_urls
        self._max_bytes = int(settings.max_upload_bytes)
        self._fetcher = fetcher or Fetcher(
            max_bytes=self._max_bytes,
            timeout_seconds=settings.fetch_timeout_seconds,
            schemes=("https", "http"),
        )

    async def load(self, options: Options, folder: Path, upload: Upload) -> Options:
        """Store the clip that `clip_url` names in `folder`, and return the options without it.

        Args:
            options: of the request; without a `clip_url` they are returned as they are.
            folder: of the request. The clip is stored as `runners.handoff.CLIP`.
            upload: counts the bytes of the clip.

        Raises:
            ParameterError: the service fetches no addresses, or the data: URI is malformed.
            FetchError: the address is refused, or gives no clip in time.
            UploadTooLargeError: the clip has more bytes than an upload may have.
            BusyError: the uploads of all requests have too many bytes together.
        """
        address = options.clip_url
        if address is None:
            return options
        if address[: len(DATA)].lower() == DATA:
            content = decode_data_uri(address, self._max_bytes)
            upload.add(len(content))
            await asyncio.to_thread((folder / CLIP).write_bytes, content)
        elif self._is_fetching:
            await self._fetcher.fetch(address, folder / CLIP, upload.add)
        else:
            raise ParameterError(
                "clip_url: this service fetches no addresses; send the clip itself, or a data: URI"
            )
        return options.model_copy(update={"clip_url": None})


def decode_data_uri(text: str, max_bytes: int) -> bytes:
    """Return the content of a data: URI.

    Args:
        text: such as `data:video/mp4;base64,AAAA`, or with percent-encoded bytes.
        max_bytes: largest content.

    Raises:
        ParameterError: it has no comma, its base64 is wrong, or it is empty.
        UploadTooLargeError: the URI or its content is too large.

    Source: RFC 2397.
    """
    if len(text) > MAX_DATA_URI_BYTES:
        raise UploadTooLargeError(
            f"clip_url: a data: URI may have {MAX_DATA_URI_BYTES} characters, got {len(text)}; "
            "send the clip itself"
        )
    head, comma, body = text.partition(",")
    if not comma:
        raise ParameterError(
            "clip_url: the data: URI has no comma; write data:video/mp4;base64, and the clip"
        )
    content = unquote_to_bytes(body)
    if head.lower().endswith(";base64"):
        try:
            content = base64.b64decode(content, validate=True)
        except binascii.Error as error:
            raise ParameterError(f"clip_url: the data: URI is not base64 ({error})") from error
    if not content:
        raise ParameterError("clip_url: the data: URI is empty; put the clip behind its comma")
    if len(content) > max_bytes:
        raise UploadTooLargeError(f"the clip is larger than the limit of {max_bytes} bytes")
    return content

"""The clip of a request, or the source of its edit, where it is named instead of being sent."""

import asyncio
import base64
import binascii
import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote_to_bytes

from foley.errors import ParameterError, UploadTooLargeError
from foley.request import MAX_ADDRESS_CHARACTERS, is_address
from foley.storage import S3, require_library
from runners.buckets import check_clip, fetch_object
from runners.fetch import Fetcher
from runners.handoff import CLIP, SOURCE
from runners.jobs.intake import Upload
from runners.jobs.job import GenerationOptions
from runners.settings import Settings

MAX_DATA_URI_BYTES = MAX_ADDRESS_CHARACTERS  # it is held in memory
DATA = "data:"
# Returns a file of a request's or a job's result, by its owner, its id and the file's name, if one
# is named; None if there is none.
FindSound = Callable[[str, str, str | None], Path | None]
Options = TypeVar("Options", bound=GenerationOptions)


class ClipLoader:
    """Stores the clips, and the sources of edits, that requests name.

    Args:
        settings: whether addresses are fetched, and the limits on a clip.
        fetcher: downloads clips; None makes one that reaches only the open internet.
        find_sound: of earlier results; None where there are none.

    Raises:
        ConfigError: clips may be in buckets, and the library for them is not installed.
    """

    def __init__(
        self,
        settings: Settings,
        fetcher: Fetcher | None = None,
        find_sound: FindSound | None = None,
    ) -> None:
        self._find_sound = find_sound or (lambda _owner, _id, _name: None)
        self._is_fetching = settings.clip_urls
        self._buckets = settings.readable_buckets
        if self._buckets:
            require_library("FOLEY_CLIP_BUCKETS")
        self._timeout_seconds = settings.fetch_timeout_seconds
        self._max_bytes = int(settings.max_upload_bytes)
        self._fetcher = fetcher or Fetcher(
            max_bytes=self._max_bytes,
            timeout_seconds=self._timeout_seconds,
            schemes=("https", "http"),
        )

    async def load(
        self, options: Options, folder: Path, upload: Upload, owner: str = ""
    ) -> Options:
        """Store what the options name in `folder`, and return the options without the names.

        Args:
            options: of the request; those that name nothing are returned as they are.
            folder: of the request. A clip is stored as `runners.handoff.CLIP`, and the source of an
                edit as `runners.handoff.SOURCE`.
            upload: counts the bytes.
            owner: whose results an edit may start from.

        Raises:
            ParameterError: the service fetches no such addresses, the data: URI is malformed, or
                there is no such result.
            FetchError: the address is refused, or gives no clip in time.
            UploadTooLargeError: the clip has more bytes than an upload may have.
            NotReadyError: the bucket of the clip does not answer.
            BusyError: the uploads of all requests have too many bytes together.
        """
        if not options.has_references:
            return options
        changes: dict[str, object] = {}
        if options.clip_url is not None:
            await self._fetch("clip_url", options.clip_url, folder / CLIP, upload)
            changes["clip_url"] = None
        edit = options.edit
        if edit is not None and not (edit.is_original or edit.is_sent):
            if is_address(edit.source):
                await self._fetch("edit.source", edit.source, folder / SOURCE, upload)
            else:
                await asyncio.to_thread(self._copy_result, owner, edit.source, folder / SOURCE)
            changes["edit"] = edit.model_copy(update={"source": "file"})
        return options.model_copy(update=changes)

    async def _fetch(self, name: str, address: str, path: Path, upload: Upload) -> None:
        """Store what an address names."""
        if address[: len(DATA)].lower() == DATA:
            content = decode_data_uri(address, self._max_bytes, name)
            upload.add(len(content))
            await asyncio.to_thread(path.write_bytes, content)
        elif address.startswith(S3):
            check_clip(name, address, self._buckets, "FOLEY_CLIP_BUCKETS")
            await fetch_object(
                address,
                path,
                max_bytes=self._max_bytes,
                timeout_seconds=self._timeout_seconds,
                on_bytes=upload.add,
            )
        elif self._is_fetching:
            await self._fetcher.fetch(address, path, upload.add)
        else:
            raise ParameterError(
                f"{name}: this service fetches no addresses; send the file itself, or a data: URI"
            )

    def _copy_result(self, owner: str, source: str, path: Path) -> None:
        """Store a file of an earlier result, whose id, and perhaps name, a source gives."""
        result_id, slash, name = source.partition("/")
        found = self._find_sound(owner, result_id, name if slash else None)
        if found is not None:
            with contextlib.suppress(OSError):  # it expired meanwhile, or has another file system
                os.link(found, path)
                return
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(found, path)
                return
        raise ParameterError(
            f"edit.source: there is no result {source}; name one whose files are still kept, or "
            "send the sound as edit_source, with source file"
        )


def decode_data_uri(text: str, max_bytes: int, name: str = "clip_url") -> bytes:
    """Return the content of a data: URI.

    Args:
        text: such as `data:video/mp4;base64,AAAA`, or with percent-encoded bytes.
        max_bytes: largest content.
        name: of the field that held it.

    Raises:
        ParameterError: it has no comma, its base64 is wrong, or it is empty.
        UploadTooLargeError: the URI or its content is too large.

    Source: RFC 2397.
    """
    if len(text) > MAX_DATA_URI_BYTES:
        raise UploadTooLargeError(
            f"{name}: a data: URI may have {MAX_DATA_URI_BYTES} characters, got {len(text)}; "
            "send the file itself"
        )
    head, comma, body = text.partition(",")
    if not comma:
        raise ParameterError(
            f"{name}: the data: URI has no comma; write data:video/mp4;base64, and the file"
        )
    content = unquote_to_bytes(body)
    if head.lower().endswith(";base64"):
        try:
            content = base64.b64decode(content, validate=True)
        except binascii.Error as error:
            raise ParameterError(f"{name}: the data: URI is not base64 ({error})") from error
    if not content:
        raise ParameterError(f"{name}: the data: URI is empty; put the file behind its comma")
    if len(content) > max_bytes:
        raise UploadTooLargeError(f"the clip is larger than the limit of {max_bytes} bytes")
    return content

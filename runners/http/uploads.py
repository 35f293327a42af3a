"""The routes of resumable uploads: /v1/uploads, with the protocol tus 1.0.

Source: https://tus.io/protocols/resumable-upload, version 1.0.0: the core, and the extensions
creation, termination and expiration.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from foley.errors import (
    CancelledRequestError,
    MediaTypeError,
    ParameterError,
    RequestTimeoutError,
    UploadTooLargeError,
)
from runners.durable.uploads import StoredUpload, UploadStore, UploadWriter
from runners.http.parameters import find_root
from runners.jobs.deadline import run_until_cancelled
from runners.jobs.ending import Ending
from runners.jobs.intake import Intake, Upload
from runners.settings import Settings

VERSION = "1.0.0"
EXTENSIONS = "creation,termination,expiration"
CONTENT_TYPE = "application/offset+octet-stream"
MAX_METADATA_CHARACTERS = 4096


class UploadHandlers:
    """Answers requests about resumable uploads.

    `ErrorMiddleware` around them has put "foley.owner" and "foley.caller" into the scope.

    Args:
        settings: time and size limits.
        uploads: of this service.
        intake: bounds the uploads of the moment.
        ending: of this process.
    """

    def __init__(
        self, settings: Settings, uploads: UploadStore, intake: Intake, ending: Ending
    ) -> None:
        self._max_bytes = int(settings.max_upload_bytes)
        self._limit_seconds = settings.request_timeout_seconds
        self._uploads = uploads
        self._intake = intake
        self._ending = ending

    async def describe(self, _request: Request) -> Response:
        """OPTIONS /v1/uploads: what the service takes."""
        more = {"Tus-Version": VERSION, "Tus-Extension": EXTENSIONS}
        return _answer(204, {**more, "Tus-Max-Size": str(self._max_bytes)})

    async def create(self, request: Request) -> Response:
        """POST /v1/uploads: begin an upload.

        Raises:
            ParameterError: a header is missing or malformed.
            UploadTooLargeError: it would have more bytes than an upload may have.
            BusyError: the uploads together, or those of the caller, would take too much room.
            StorageFullError: the disk has no room for it.
        """
        if (refusal := _check_version(request)) is not None:
            return refusal
        num_bytes = _read_count(request, "Upload-Length")
        if num_bytes > self._max_bytes:
            raise UploadTooLargeError(
                f"Upload-Length: the limit is {self._max_bytes} bytes, got {num_bytes}"
            )
        metadata = request.headers.get("upload-metadata", "")
        is_text = re.fullmatch(r"[ -~]*", metadata, re.ASCII)
        if len(metadata) > MAX_METADATA_CHARACTERS or not is_text:
            raise ParameterError(
                f"Upload-Metadata: may have {MAX_METADATA_CHARACTERS} characters of ASCII"
            )
        caller = request.scope["foley.caller"]
        with self._ending.accept_work("upload"), self._intake.receive(caller):
            upload = await asyncio.to_thread(
                self._uploads.create, request.scope["foley.owner"], caller, num_bytes, metadata
            )
        location = f"{find_root(request)}/v1/uploads/{upload.id}"
        return self._answer_about(201, upload, {"Location": location})

    async def get_offset(self, request: Request) -> Response:
        """HEAD /v1/uploads/{id}: how many bytes have arrived.

        Raises:
            NotFoundError: there is none, or it belongs to another key.
        """
        if (refusal := _check_version(request)) is not None:
            return refusal
        upload = await self._find(request)
        metadata = {"Upload-Metadata": upload.metadata} if upload.metadata else {}
        return self._answer_about(200, upload, metadata)

    async def change(self, request: Request) -> Response:
        """PATCH /v1/uploads/{id}: add bytes; DELETE: remove it.

        Raises:
            NotFoundError: there is none, or it belongs to another key.
            ConflictError: the bytes do not belong there, or another request adds some.
            MediaTypeError: the body is of another type.
            UploadTooLargeError: there are more bytes than the upload was to have.
            FoleyError: as for other uploads.
        """
        if (refusal := _check_version(request)) is not None:
            return refusal
        # Source: the core protocol, "X-HTTP-Method-Override".
        method = request.headers.get("x-http-method-override", request.method)
        if method == "DELETE":
            upload = await self._find(request)
            await asyncio.to_thread(self._uploads.remove, upload.id)
            return _answer(204)
        if method != "PATCH":
            return _answer(405, {"Allow": "HEAD, PATCH, DELETE"})
        if request.headers.get("content-type") != CONTENT_TYPE:
            raise MediaTypeError(f"send the bytes as {CONTENT_TYPE}")
        offset = _read_count(request, "Upload-Offset")
        upload = await self._find(request)
        with (
            self._ending.accept_work(f"upload {upload.id}"),
            self._intake.receive(request.scope["foley.caller"]) as received,
            self._uploads.open(upload, offset) as writer,
        ):
            try:
                async with asyncio.timeout(self._limit_seconds):
                    await run_until_cancelled(
                        _store(request, writer, received),
                        received.watch_rate(),
                        self._ending.wait_for_cut_off(),
                    )
            except TimeoutError as error:
                raise RequestTimeoutError(
                    f"the request took longer than {self._limit_seconds:g} s; what has arrived "
                    "is kept: ask for the offset and go on there"
                ) from error
        return self._answer_about(204, upload)

    async def _find(self, request: Request) -> StoredUpload:
        return await asyncio.to_thread(
            self._uploads.find, request.scope["foley.owner"], request.path_params["id"]
        )

    def _answer_about(
        self, status: int, upload: StoredUpload, more: dict[str, str] | None = None
    ) -> Response:
        expires = formatdate(self._uploads.find_expiry(upload), usegmt=True)
        headers = {
            "Upload-Offset": str(self._uploads.find_offset(upload)),
            "Upload-Length": str(upload.num_bytes),
            "Upload-Expires": expires,
            "Cache-Control": "no-store",
        }
        return _answer(status, {**headers, **(more or {})})


class _Api(Protocol):
    upload_handlers: UploadHandlers | None


def build_upload_routes(find_api: Callable[[], _Api]) -> list[Route]:
    """Return the routes of a service that takes jobs.

    Args:
        find_api: returns the instance of this process.
    """

    def bind(
        method: Callable[[UploadHandlers, Request], Awaitable[Response]],
    ) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            handlers = find_api().upload_handlers
            assert handlers is not None
            return await method(handlers, request)

        return handle

    change = ["PATCH", "DELETE", "POST"]
    return [
        Route("/v1/uploads", bind(UploadHandlers.describe), methods=["OPTIONS"]),
        Route("/v1/uploads", bind(UploadHandlers.create), methods=["POST"]),
        Route("/v1/uploads/{id}", bind(UploadHandlers.get_offset), methods=["HEAD"]),
        Route("/v1/uploads/{id}", bind(UploadHandlers.change), methods=change),
    ]


async def _store(request: Request, writer: UploadWriter, received: Upload) -> None:
    """Add the body to an upload. What has arrived when the connection breaks is kept."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > writer.num_missing:
        raise _too_large(writer)
    try:
        async for chunk in request.stream():
            if len(chunk) > writer.num_missing:
                raise _too_large(writer)
            received.add(len(chunk))
            if chunk:
                await asyncio.to_thread(writer.write, chunk)
    except ClientDisconnect as error:
        raise CancelledRequestError("the caller disconnected during the upload") from error


def _too_large(writer: UploadWriter) -> UploadTooLargeError:
    return UploadTooLargeError(
        f"the body has more than {writer.num_missing} bytes, which are missing by Upload-Length"
    )


def _check_version(request: Request) -> Response | None:
    """Return the refusal of a request in another version of the protocol."""
    if request.headers.get("tus-resumable") == VERSION:
        return None
    return _answer(412, {"Tus-Version": VERSION})


def _read_count(request: Request, name: str) -> int:
    text = request.headers.get(name)
    if text is None:
        raise ParameterError(f"{name}: missing; send the number of bytes in this header")
    if not re.fullmatch(r"\d{1,100}", text, re.ASCII):
        raise ParameterError(f"{name}: must be a number of bytes, got {text[:80]!r}")
    return int(text)


def _answer(status: int, headers: dict[str, str] | None = None) -> Response:
    return Response(status_code=status, headers={"Tus-Resumable": VERSION, **(headers or {})})

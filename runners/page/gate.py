"""What the page lets through to Gradio: a list of requests, and uploads up to a quota."""

import asyncio
import contextlib
import os
import re
import shutil
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from foley.client import AsyncFoleyClient
from foley.errors import (
    FoleyError,
    ModelFailedError,
    NotReadyError,
    ParameterError,
    UnauthorizedError,
)
from runners.jobs.scratch import MIN_ROOM_BYTES

UPLOAD = re.compile(r"/gradio_api/upload/?")
# All that the page's own requests change. Gradio has more, and one runs the system's FFmpeg.
CHANGES = re.compile(r"/gradio_api/(upload|queue/join|run/[^/]+|cancel|reset)/?")
# All that the page reads. A file with a scheme would be any public URL, read for any caller.
READS = re.compile(
    r"|/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt|/pwa_icon(/\d+)?"
    r"|/(assets|static|svelte|results)/.+"
    r"|/modules/(page|editor)/[a-z_]+\.js"
    r"|/gradio_api/(app_id|info|startup-events|theme\.css|upload_progress|queue/data)/?"
    r"|/gradio_api/heartbeat/[^/]+"
    r"|/gradio_api/file=(?![a-z][a-z0-9+.-]*:).+",
    re.IGNORECASE | re.DOTALL,
)
FORM_BYTES = 64 * 1024  # of an upload's form around the file
NUM_LARGEST = 8  # uploads of the largest size that are kept at once
KEEP_SECONDS = 3600.0
# A tab that has just uploaded a clip is about to use it.
MIN_KEEP_SECONDS = 600.0
RETRY_SECONDS = 60

CheckKey = Callable[[str], Awaitable[None]]


def is_refused(method: str, path: str) -> bool:
    """Return whether the page has no use for a request, which then does not reach Gradio.

    Args:
        method: of the request, such as GET.
        path: of the request, without the page's prefix.
    """
    allowed = READS if method in ("GET", "HEAD") else CHANGES
    return allowed.fullmatch(path) is None


class UploadGate:
    """Bounds the bytes of each upload and of all uploads together, and how long they are kept.

    Args:
        folder: where Gradio writes uploads.
        max_bytes: the largest upload.
        check_key: raises an error unless an API key is the service's; None where it asks for none.
    """

    def __init__(self, folder: Path, max_bytes: int, check_key: CheckKey | None = None) -> None:
        self._check_key = check_key
        self._folder = folder
        self._max_bytes = max_bytes + FORM_BYTES
        self._quota = NUM_LARGEST * self._max_bytes
        self._arriving = 0  # bytes

    async def receive_upload(
        self, app: ASGIApp, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Pass an upload on to an application if there is room for it.

        Args:
            app: writes the upload.
            scope: of the request.
            receive: as in ASGI.
            send: as in ASGI.
        """
        headers = Request(scope).headers
        if self._check_key is not None:
            try:
                await self._check_key(headers.get("x-api-key", ""))
            except (UnauthorizedError, ParameterError):
                refusal = PlainTextResponse("Enter the API key before you choose a clip.", 401)
                await refusal(scope, receive, send)
                return
            except FoleyError:
                refusal = PlainTextResponse("The service cannot check the API key now.", 503)
                await refusal(scope, receive, send)
                return
        length = headers.get("content-length", "")
        if not length.isdecimal():
            refusal = PlainTextResponse("An upload states its length (Content-Length).", 411)
            await refusal(scope, receive, send)
            return
        num_bytes = int(length)
        if num_bytes > self._max_bytes:
            text = f"The file is too large: the limit is {self._max_bytes - FORM_BYTES} bytes."
            await PlainTextResponse(text, 413)(scope, receive, send)
            return
        self._arriving += num_bytes
        try:
            if not await asyncio.to_thread(self._make_room, self._arriving):
                refusal = PlainTextResponse(
                    "The page has no room for another upload. Try again in some minutes.",
                    503,
                    headers={"Retry-After": str(RETRY_SECONDS)},
                )
                await refusal(scope, receive, send)
                return
            await app(scope, receive, send)
        finally:
            self._arriving -= num_bytes

    async def sweep_forever(self) -> None:
        """Remove old uploads, also of callers who left in the middle."""
        while True:
            await asyncio.to_thread(self._remove_older_than, KEEP_SECONDS)
            await asyncio.sleep(KEEP_SECONDS / 60)

    def _make_room(self, num_bytes: int) -> bool:
        """Remove the oldest uploads until there is room for more bytes; return whether there is."""
        free = self._quota - num_bytes
        kept = sorted((stat.st_mtime, stat.st_size, path) for path, stat in self._list_files())
        used = sum(size for _, size, _ in kept)
        for modified, size, path in kept:
            if used <= free or time.time() - modified < MIN_KEEP_SECONDS:
                break
            path.unlink(missing_ok=True)
            used -= size
        self._folder.mkdir(parents=True, exist_ok=True)
        on_disk = shutil.disk_usage(self._folder).free - MIN_ROOM_BYTES
        return used <= free and num_bytes <= on_disk

    def _remove_older_than(self, seconds: float) -> None:
        for path, stat in self._list_files():
            if time.time() - stat.st_mtime > seconds:
                path.unlink(missing_ok=True)

    def _list_files(self) -> Iterable[tuple[Path, os.stat_result]]:
        for path in self._folder.rglob("*"):
            try:
                if path.is_file():
                    yield path, path.stat()
            except FileNotFoundError:  # Gradio moves or removes files meanwhile
                continue


async def ask_service(server_url: str, api_key: str) -> None:
    """Return if a service accepts an API key.

    Args:
        server_url: address of the service.
        api_key: any text; empty for none.

    Raises:
        UnauthorizedError: it does not.
        ParameterError: no header can carry the key.
        ConnectionFailedError: the service cannot be reached.
    """
    async with AsyncFoleyClient(server_url, api_key=api_key or None) as client:
        with contextlib.suppress(NotReadyError, ModelFailedError):  # it has accepted the key
            await client.list_models()

"""Serve the files of the editor below /editor, each page with a content security policy."""

import secrets
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from foley.errors import NotFoundError

ASSETS = Path(__file__).parent / "assets"
INDEX = "index.html"
# The library that draws waveforms puts its styles into the page, with the nonce that it is given.
# It analyses sound in a worker that it makes from a blob.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'nonce-{nonce}'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; connect-src 'self'; "
    "worker-src 'self' blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors {ancestors}"
)
# The files are small, and have no version in their names.
HEADERS = {"Cache-Control": "no-cache"}


class EditorFiles:
    """ASGI application that serves the editor's files; the page itself has a nonce of its own.

    Args:
        frame_ancestors: the sites whose pages may show the editor in a frame, as in the policy's
            directive of this name.
    """

    def __init__(self, frame_ancestors: str) -> None:
        self._frame_ancestors = frame_ancestors
        self._page = (ASSETS / INDEX).read_text()
        self._files = StaticFiles(directory=ASSETS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises:
            NotFoundError: there is no such file.
        """
        path = self._files.get_path(scope)
        if path in (".", INDEX) and scope["method"] in ("GET", "HEAD"):
            nonce = secrets.token_urlsafe(16)
            policy = POLICY.format(nonce=nonce, ancestors=self._frame_ancestors)
            headers = {**HEADERS, "Content-Security-Policy": policy}
            page = HTMLResponse(self._page.replace("{nonce}", nonce), headers=headers)
            await page(scope, receive, send)
            return
        try:
            response = await self._files.get_response(path, scope)
        except HTTPException as error:
            if error.status_code != 404:
                raise
            raise NotFoundError("the editor has no such file") from None
        response.headers.update(HEADERS)
        await response(scope, receive, send)

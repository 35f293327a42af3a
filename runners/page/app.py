"""The page as an ASGI application: a placeholder while it starts, then Gradio and result files.

Importing Gradio takes seconds, and the page needs the service's limits before it can be built. The
application therefore answers with a placeholder until the page is ready.
"""

import asyncio
import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from fastapi import FastAPI
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from runners.editor import files as editor
from runners.page.bounds import PageBounds, fetch_bounds
from runners.page.gate import UPLOAD, UploadGate, ask_service, is_refused
from runners.page.public_url import PublicUrl
from runners.sandbox.pool import Sandbox

if TYPE_CHECKING:
    from runners.page.sessions import PageSessions

log = structlog.get_logger(__name__)

ASSETS = Path(__file__).parent / "assets"
START_SECONDS = 5  # about what it takes


class _Modules(StaticFiles):
    """Serves modules of JavaScript, which have no version in their names."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(editor.HEADERS)
        return response


class PageApp:
    """Serves the page once it is built, and until then a placeholder to browsers and 503 to others.

    Args:
        server_url: address of the service.
        folder: for the files of the sessions; the caller creates and removes it.
        prefix: path below which the page is served: empty, or such as /ui.
        same_origin: whether the service has the page's own address.
        sandbox: draws the pictures of results; this object closes it.
    """

    def __init__(
        self, server_url: str, folder: Path, *, prefix: str, same_origin: bool, sandbox: Sandbox
    ) -> None:
        self._server_url = server_url
        self._folder = folder
        self._prefix = prefix
        self._same_origin = same_origin
        self._sandbox = sandbox
        self._page: ASGIApp | None = None
        self._uploads: UploadGate | None = None
        self._placeholder = (ASSETS / "starting.html").read_text()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Args:
            scope: of an HTTP request.
            receive: as in ASGI.
            send: as in ASGI.
        """
        app = self._page or self._choose_placeholder(scope)
        path = scope["path"].removeprefix(self._prefix)
        if is_refused(scope["method"], path):
            log.warning("page_refused", method=scope["method"], path=scope["path"][:200])
            app = PlainTextResponse("no such file", status_code=404)
        elif self._uploads is not None and UPLOAD.fullmatch(path):
            await self._uploads.receive_upload(app, scope, receive, send)
            return
        await app(scope, receive, send)

    def _choose_placeholder(self, scope: Scope) -> ASGIApp:
        # A program would take a page with status 200 for its answer.
        if b"text/html" in dict(scope["headers"]).get(b"accept", b""):
            return HTMLResponse(self._placeholder, headers={"Cache-Control": "no-store"})
        text = "The page is starting. Try again in some seconds."
        return PlainTextResponse(text, 503, headers={"Retry-After": str(START_SECONDS)})

    async def run(self) -> None:
        """Build the page and serve it until the task is cancelled.

        It waits as long as the service cannot be reached.
        """
        try:
            bounds = await fetch_bounds(self._server_url)
            app, sessions = await asyncio.to_thread(self._build, bounds)
            check_key = functools.partial(ask_service, self._server_url)
            uploads = UploadGate(
                Path(tempfile.gettempdir()) / "gradio",
                bounds.max_bytes,
                check_key if bounds.needs_key else None,
            )
            await self._sandbox.start()
            async with app.router.lifespan_context(app):
                self._uploads, self._page = uploads, PublicUrl(app, self._prefix)
                log.info("page_ready", server=self._server_url, prefix=self._prefix)
                await asyncio.gather(uploads.sweep_forever(), sessions.sweep_forever())
        finally:
            self._sandbox.close()

    def _build(self, bounds: PageBounds) -> tuple[FastAPI, "PageSessions"]:
        import gradio as gr  # takes seconds

        from runners.page.build import build_page
        from runners.page.controls import EXAMPLES_FOLDER
        from runners.page.sessions import MAX_SESSIONS, PageSessions
        from runners.page.theme import build_theme

        sessions = PageSessions(
            self._folder, self._server_url, self._sandbox, max_clip_bytes=bounds.max_bytes
        )
        blocks = build_page(sessions, bounds, prefix=self._prefix, same_origin=self._same_origin)
        blocks.queue(default_concurrency_limit=None)  # the service has its own queue
        blocks.state_session_capacity = MAX_SESSIONS
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        app.mount(f"{self._prefix}/results", StaticFiles(directory=self._folder))
        # The player of sounds that are being made is the editor's.
        app.mount(f"{self._prefix}/modules/page", _Modules(directory=ASSETS))
        app.mount(f"{self._prefix}/modules/editor", _Modules(directory=editor.ASSETS))
        mounted = gr.mount_gradio_app(
            app,
            blocks,
            path=self._prefix or "/",
            theme=build_theme(),
            css=(ASSETS / "page.css").read_text(),
            head=(ASSETS / "head.html").read_text()
            + f"<script>{(ASSETS / 'page.js').read_text()}</script>",
            allowed_paths=[str(EXAMPLES_FOLDER)],
            max_file_size=bounds.max_bytes,
            footer_links=[],
            show_error=False,
            ssr_mode=False,
        )
        return mounted, sessions

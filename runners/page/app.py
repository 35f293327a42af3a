"""The page as an ASGI application: a placeholder while it starts, then Gradio and result files.

Importing Gradio takes seconds, and the page needs the service's limits before it can be built. The
application therefore answers with a placeholder until the page is ready.
"""

import asyncio
import re
from pathlib import Path

import structlog
from fastapi import FastAPI
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from runners.page.bounds import PageBounds, fetch_bounds
from runners.sandbox.pool import Sandbox

log = structlog.get_logger(__name__)

ASSETS = Path(__file__).parent / "assets"
# All that the page's own requests change. Gradio has more, and one runs the system's FFmpeg.
CHANGES = re.compile(r".*/gradio_api/(upload|queue/join|run/[^/]+|cancel|reset)/?")
# Gradio would read any public URL for any caller.
FOREIGN_FILES = re.compile(r"/gradio_api/(proxy=|file/|file=[a-z][a-z0-9+.-]*:)", re.IGNORECASE)


class PageApp:
    """Serves the page once it is built, and a placeholder until then.

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
        self._placeholder = (ASSETS / "starting.html").read_text()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Args:
            scope: of an HTTP request.
            receive: as in ASGI.
            send: as in ASGI.
        """
        app: ASGIApp = HTMLResponse(self._placeholder, headers={"Cache-Control": "no-store"})
        if self._page is not None:
            app = self._page
        if is_refused(scope["method"], scope["path"]):
            log.warning("page_refused", method=scope["method"], path=scope["path"][:200])
            app = PlainTextResponse("no such file", status_code=404)
        await app(scope, receive, send)

    async def run(self) -> None:
        """Build the page and serve it until the task is cancelled.

        It waits as long as the service cannot be reached.
        """
        try:
            bounds = await fetch_bounds(self._server_url)
            app = await asyncio.to_thread(self._build, bounds)
            await self._sandbox.start()
            async with app.router.lifespan_context(app):
                self._page = app
                log.info("page_ready", server=self._server_url, prefix=self._prefix)
                await asyncio.Event().wait()
        finally:
            self._sandbox.close()

    def _build(self, bounds: PageBounds) -> FastAPI:
        import gradio as gr  # takes seconds

        from runners.page.build import build_page
        from runners.page.controls import EXAMPLES_FOLDER
        from runners.page.sessions import PageSessions
        from runners.page.theme import build_theme

        sessions = PageSessions(self._folder, self._server_url, self._sandbox)
        blocks = build_page(sessions, bounds, prefix=self._prefix, same_origin=self._same_origin)
        blocks.queue(default_concurrency_limit=None)  # the service has its own queue
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        app.mount(f"{self._prefix}/results", StaticFiles(directory=self._folder))
        return gr.mount_gradio_app(
            app,
            blocks,
            path=self._prefix or "/",
            root_path=self._prefix or None,
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


def is_refused(method: str, path: str) -> bool:
    """Return whether the page has no use for a request, which then does not reach Gradio.

    Args:
        method: of the request, such as GET.
        path: of the request, with the page's prefix.
    """
    if method in ("GET", "HEAD"):
        return FOREIGN_FILES.search(path) is not None
    return CHANGES.fullmatch(path) is None

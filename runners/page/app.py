"""The page as an ASGI application: Gradio's, the results of visits, and what stands in till then.

Gradio takes seconds to import, and the page is built from what the service tells of its limits, so
this answers at once and holds the page as soon as there is one.
"""

import asyncio
import contextlib
from pathlib import Path

import httpx
import structlog
from fastapi import FastAPI
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

log = structlog.get_logger(__name__)

ASSETS = Path(__file__).parent / "assets"
ASK_AGAIN_SECONDS = 1.0


class LatePage:
    """Answers with the page once it is built, and says that it comes until then.

    Args:
        server_url: of the service.
        folder: for the files of visits; whoever made it removes it.
        prefix: path below which the page is served: empty, or such as /ui.
        same_origin: whether visitors reach the service at the page's own address.
    """

    def __init__(self, server_url: str, folder: Path, *, prefix: str, same_origin: bool) -> None:
        self._server_url = server_url
        self._folder = folder
        self._prefix = prefix
        self._same_origin = same_origin
        self._page: ASGIApp | None = None
        self._starting = (ASSETS / "starting.html").read_text()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        app: ASGIApp = HTMLResponse(self._starting, headers={"Cache-Control": "no-store"})
        if self._page is not None:
            app = self._page
        if "/file=http" in scope["path"]:  # Gradio would fetch any public address for anybody
            app = PlainTextResponse("no such file", status_code=404)
        await app(scope, receive, send)

    async def run(self) -> None:
        """Build the page, and keep it until this is cancelled."""
        facts = await self._ask_clip_limits()
        app = await asyncio.to_thread(self._build, facts)
        async with app.router.lifespan_context(app):
            self._page = app
            log.info("page_ready", server=self._server_url, prefix=self._prefix)
            await asyncio.Event().wait()

    async def _ask_clip_limits(self) -> dict[str, float]:
        """The service's limits, as soon as it tells them."""
        async with httpx.AsyncClient(base_url=self._server_url, timeout=10) as client:
            while True:
                with contextlib.suppress(httpx.HTTPError, ValueError, KeyError):
                    document = (await client.get("/docs.json")).json()
                    form = document["components"]["schemas"]["GenerationOptions"]
                    facts: dict[str, float] = form["properties"]["clip"]
                    return facts
                await asyncio.sleep(ASK_AGAIN_SECONDS)

    def _build(self, facts: dict[str, float]) -> FastAPI:
        import gradio as gr  # takes seconds

        from runners.page.layout import EXAMPLES_FOLDER, Page, PageBounds
        from runners.page.sessions import Visits
        from runners.page.theme import theme

        bounds = PageBounds(
            max_seconds=facts["x-max-seconds"], max_bytes=int(facts["x-max-request-bytes"])
        )
        visits = Visits(self._folder, self._server_url)
        page = Page(visits, bounds, prefix=self._prefix, same_origin=self._same_origin)
        blocks = page.build()
        blocks.queue(default_concurrency_limit=None)  # the service has the queue
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        app.mount(f"{self._prefix}/made", StaticFiles(directory=self._folder))
        return gr.mount_gradio_app(
            app,
            blocks,
            path=self._prefix or "/",
            root_path=self._prefix or None,
            theme=theme(),
            css=(ASSETS / "page.css").read_text(),
            head=(ASSETS / "head.html").read_text()
            + f"<script>{(ASSETS / 'page.js').read_text()}</script>",
            allowed_paths=[str(EXAMPLES_FOLDER)],
            max_file_size=bounds.max_bytes,
            footer_links=[],
            show_error=False,
            ssr_mode=False,
        )

"""The page as a process of its own: `python -m runners.page --server http://127.0.0.1:3000`."""

import asyncio
import contextlib
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import uvicorn
from cyclopts import App, Parameter

from foley.errors import ParameterError
from runners.browser import BrowserHeaders
from runners.jobs.scratch import Scratch
from runners.logs import configure_logging
from runners.page.app import PageApp
from runners.sandbox.confinement import require_all_parts
from runners.sandbox.fork_server import SandboxLimits
from runners.sandbox.pool import Sandbox
from runners.settings import Settings, child_environment

GRACE_SECONDS = 2
MAX_PICTURE_BYTES = 16 * 1024 * 1024

app = App(name="python -m runners.page", help_format="plaintext")


@app.default
def main(
    *,
    server: Annotated[str, Parameter(help="Address of the service.")] = "http://127.0.0.1:3000",
    host: Annotated[
        str, Parameter(help="Address to listen on; 0.0.0.0 listens on every interface.")
    ] = "127.0.0.1",
    port: Annotated[int, Parameter(help="Port to listen on.")] = 7860,
    socket: Annotated[
        Path | None, Parameter(help="Unix socket to listen on instead of host and port.")
    ] = None,
    prefix: Annotated[str, Parameter(help="Path below which the page is served.")] = "",
    below_service: Annotated[
        bool,
        Parameter(
            help="The service starts this process, forwards requests to it, and ends it by "
            "closing its standard input."
        ),
    ] = False,
) -> None:
    """Serve the page of a Foley service."""
    configure_logging("info")
    if below_service:
        # The launcher sends its signal to all processes of the service. This one is needed until
        # the accepted generations have ended.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    else:
        # Uvicorn raises the signal again when it has stopped. With this handler the signal becomes
        # an exception, so that the temporary folder is removed.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # Unlike a temporary folder of the library, it is swept at the next start if this is killed.
    with contextlib.closing(Scratch(Path(tempfile.gettempdir()))) as scratch:
        tempfile.tempdir = str(scratch.folder)  # Gradio's uploads are removed with it
        results = scratch.folder / "results"
        results.mkdir()
        page = PageApp(
            server, results, prefix=prefix, same_origin=below_service, sandbox=_make_sandbox()
        )
        config = uvicorn.Config(
            page if below_service else BrowserHeaders(page, Settings().frame_ancestors),
            host=host,
            port=port,
            uds=str(socket) if socket else None,
            http="h11",  # bounds the heads of requests, unlike httptools, which is preferred
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        server_here = _EndedByInput(config) if below_service else uvicorn.Server(config)
        try:
            asyncio.run(_serve(page, server_here))
        except ParameterError as error:  # the address of the service is none
            sys.exit(f"page: --server: {str(error).removeprefix('base_url: ')}")


def _make_sandbox() -> Sandbox:
    """Return the sandbox in which pictures are drawn, by the service's limits for decoding."""
    settings = Settings()
    if settings.sandbox == "required":
        require_all_parts()
    limits = SandboxLimits(
        memory_bytes=settings.decode_memory_bytes,
        cpu_seconds=settings.decode_cpu_seconds,
        file_bytes=MAX_PICTURE_BYTES,
        is_confined=settings.sandbox != "off",
    )
    return Sandbox(limits, child_environment(), module="runners.page.plot_server")


async def _serve(page: PageApp, server: uvicorn.Server) -> None:
    """Serve until the server is asked to stop, or the page cannot be built."""
    building = asyncio.create_task(page.run())
    # A page that cannot be built ends the process instead of showing the placeholder for ever.
    building.add_done_callback(lambda _: setattr(server, "should_exit", True))
    await server.serve()
    building.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await building


class _EndedByInput(uvicorn.Server):
    """A server that ends when standard input is closed, and heeds no signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        threading.Thread(target=self._wait_for_end_of_input, daemon=True).start()
        yield

    def _wait_for_end_of_input(self) -> None:
        sys.stdin.buffer.read()
        self.should_exit = True


if __name__ == "__main__":
    app()

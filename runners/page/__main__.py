"""The page as a process of its own: `python -m runners.page --server http://127.0.0.1:3000`."""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Annotated

import uvicorn
from cyclopts import App, Parameter

from runners.logs import configure_logging
from runners.page.app import LatePage

GRACE_SECONDS = 2

app = App(name="python -m runners.page", help_format="plaintext")


@app.default
def main(
    *,
    server: Annotated[str, Parameter(help="Address of the service.")] = "http://127.0.0.1:3000",
    host: Annotated[
        str, Parameter(help="Address to listen on; 0.0.0.0 for every interface.")
    ] = "127.0.0.1",
    port: Annotated[int, Parameter(help="Port to listen on.")] = 7860,
    socket: Annotated[
        Path | None, Parameter(help="Unix socket to listen on, in place of host and port.")
    ] = None,
    prefix: Annotated[str, Parameter(help="Path below which the page is served.")] = "",
    below_service: Annotated[
        bool,
        Parameter(
            help="The service hands this page to visitors, and ends it by closing its input."
        ),
    ] = False,
) -> None:
    """Serve the page of a Foley service."""
    configure_logging("info")
    # Uvicorn raises the signal again when it has ended; this way what follows is still done.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if below_service:
        threading.Thread(target=_end_with_input, daemon=True).start()
    with tempfile.TemporaryDirectory(prefix="foley-page-") as folder:
        tempfile.tempdir = folder  # uploads too go when this process ends
        asyncio.run(_serve(server, Path(folder), host, port, socket, prefix, below_service))


async def _serve(
    server_url: str,
    folder: Path,
    host: str,
    port: int,
    socket: Path | None,
    prefix: str,
    same_origin: bool,
) -> None:
    made = folder / "made"
    made.mkdir()
    page = LatePage(server_url, made, prefix=prefix, same_origin=same_origin)
    config = uvicorn.Config(
        page,
        host=host,
        port=port,
        uds=str(socket) if socket else None,
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    listening = uvicorn.Server(config)
    building = asyncio.create_task(page.run())
    # A page that cannot be built is an error of this process, not a page that starts for ever.
    building.add_done_callback(lambda _: setattr(listening, "should_exit", True))
    await listening.serve()
    building.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await building


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    app()

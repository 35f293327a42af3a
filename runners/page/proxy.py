"""The page on the service's own port: a process of its own, behind /ui of every API process.

    browser -- /ui --> FoleyApi -- unix socket --> runners.page -- HTTP --> FoleyApi
                       (any worker)                (one process)            (as anybody calls it)

Gradio keeps a visit in one process, while a visit's requests go to any API worker; importing it
takes seconds and drawing takes a core, of which probes and requests know nothing here. The process
starts when somebody first asks for the page: who serves programs alone does not pay for it.
"""

import asyncio
import contextlib
import fcntl
import importlib.util
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import structlog
from starlette.responses import HTMLResponse
from starlette.types import Receive, Scope, Send

from foley.errors import NotFoundError, NotReadyError
from runners.process import on_end_asked

log = structlog.get_logger(__name__)

SOURCE_ROOT = Path(__file__).resolve().parents[2]
STARTING = Path(__file__).parent / "assets" / "starting.html"
STOP_SECONDS = 3.0
MAX_SOCKET_BYTES = 107  # Linux takes no longer path of a socket
# They are about one connection, or said again for the next one.
HOP_BY_HOP = {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"te", b"date"}


class PageHost:
    """An ASGI application that hands /ui on to the page's process, and starts that when asked for.

    Args:
        common: folder that all API processes of this server share.
        prefix: path below which the page is.
    """

    def __init__(self, common: Path, prefix: str) -> None:
        self._prefix = prefix
        self._lock = common / "page.lock"  # held by the page's process for as long as it lives
        self._socket = common / "page.sock"
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = asyncio.Event()
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(
                uds=str(self._socket),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            ),
            timeout=httpx.Timeout(None, connect=5),
        )
        self._client.headers.clear()  # the visitor's go, and no others

    def heed_signals(self) -> None:
        """End the page's streams when the process is asked to end.

        A tab holds one open for as long as it is; the server waits for open ones before it tells
        anybody that it ends.
        """
        on_end_asked(self._stopping.set)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises:
            NotFoundError: the page is not installed.
            NotReadyError: it is starting, and something else than a document was asked for.
        """
        try:
            await self._forward(scope, receive, send)
        except httpx.ConnectError:
            self._start(scope)
            if b"text/html" not in dict(scope["headers"]).get(b"accept", b""):
                raise NotReadyError("the page is starting") from None
            starting = HTMLResponse(STARTING.read_text(), headers={"Cache-Control": "no-store"})
            await starting(scope, receive, send)

    def close(self) -> None:
        """End the page's process, if it is this one's."""
        if self._process is None:
            return
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        self._process.kill()
        self._process.wait()

    def _start(self, scope: Scope) -> None:
        """Start the page's process, unless there is one."""
        if importlib.util.find_spec("gradio") is None:
            raise NotFoundError("the page is not installed here; it needs the extra 'page'")
        if len(os.fsencode(self._socket)) > MAX_SOCKET_BYTES:
            raise NotFoundError("the page has no room for its socket; shorten FOLEY_SCRATCH_DIR")
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        else:
            host, port = scope["server"]
            host = f"[{host}]" if ":" in host else host
            command = [sys.executable, "-m", "runners.page", "--below-service"]
            command += ["--server", f"http://{host}:{port}", "--prefix", self._prefix]
            command += ["--socket", str(self._socket)]
            # Its input closes when this process ends, however it ends; then it ends too.
            self._process = subprocess.Popen(
                command, cwd=SOURCE_ROOT, stdin=subprocess.PIPE, pass_fds=[descriptor]
            )
            log.info("page_starting", pid=self._process.pid)
        finally:
            os.close(descriptor)

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        left = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    left.set()
                    raise httpx.ReadError("the visitor left while sending")
                yield message.get("body", b"")
                more = message.get("more_body", False)

        names = {name for name, _ in scope["headers"]}
        sends_body = bool(names & {b"content-length", b"transfer-encoding"})
        request = self._client.build_request(
            scope["method"],
            httpx.URL(scheme="http", host="page", raw_path=_target(scope)),
            headers=_end_to_end(scope["headers"]),
            content=body() if sends_body else None,
        )
        try:
            response = await self._client.send(request, stream=True)
        except httpx.ReadError:
            if left.is_set():
                return
            raise
        async with contextlib.aclosing(response):
            await self._hand_on(response, receive, send)

    async def _hand_on(self, response: httpx.Response, receive: Receive, send: Send) -> None:
        """Send an answer, until it ends, its visitor leaves, or this process is to end."""
        headers = _end_to_end(response.headers.raw)
        await send(
            {"type": "http.response.start", "status": response.status_code, "headers": headers}
        )

        async def pump() -> None:
            async for chunk in response.aiter_raw():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})

        async def leave() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass  # what was sent is read: an empty end may still come

        tasks = [asyncio.ensure_future(work) for work in (pump(), leave(), self._stopping.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        if isinstance(outcomes[0], Exception):  # half an answer is out: break off
            raise outcomes[0]
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _target(scope: Scope) -> bytes:
    query = scope["query_string"]
    path: bytes = scope["raw_path"]
    return path + b"?" + query if query else path


def _end_to_end(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in headers if name.lower() not in HOP_BY_HOP]

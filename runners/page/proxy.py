"""Serve the page, which runs in a process of its own, below /ui of every API process.

    browser -- /ui --> FoleyApi -- unix socket --> runners.page -- HTTP --> FoleyApi
                       (any process)               (one process)            (the public API)

Gradio keeps a session in one process, while the requests of a session may reach any API process.
Importing Gradio takes seconds and drawing takes a core; in a process of its own neither delays
probes and requests. The process starts with the first request for the page, so a service that only
programs call does not pay for it.
"""

import asyncio
import contextlib
import fcntl
import importlib.util
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import httpx
import structlog
from starlette.responses import HTMLResponse
from starlette.types import Receive, Scope, Send

from foley.errors import EndingError, NotFoundError, NotReadyError
from foley.processes import end_within
from runners.jobs.cancellation import CancellationRegistry, has_active_request
from runners.jobs.ending import Ending
from runners.process import call_on_stop_signal

log = structlog.get_logger(__name__)

SOURCE_ROOT = Path(__file__).resolve().parents[2]
STARTING = Path(__file__).parent / "assets" / "starting.html"
STOP_SECONDS = 3.0
LAST_EVENT_SECONDS = 1.0  # less than half of the time that is left after the cut-off
POLL_SECONDS = 0.05
EVENTS = "/gradio_api/queue/data"  # ends when no event of its session runs
RUNNING = "page-events"  # the folder of files that say which events run
MAX_SOCKET_BYTES = 107  # length of the longest socket path that Linux takes
# These concern one connection only, or are set again for the next one.
HOP_BY_HOP = {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"te", b"date"}


class PageProxy:
    """An ASGI application that forwards /ui to the page's process, and starts that when needed.

    Args:
        shared: folder that all API processes of this server share.
        prefix: path below which the page is served, such as /ui.
        ending: of this process. A generation of the page is accepted work.
    """

    def __init__(self, shared: Path, prefix: str, ending: Ending) -> None:
        self._prefix = prefix
        self._ending = ending
        self._shared = shared
        self._lock = shared / "page.lock"  # the page's process holds it while it runs
        self._socket = shared / "page.sock"
        (shared / RUNNING).mkdir(exist_ok=True)
        # The kernel drops the lock of an event with its process: one that is killed leaves none.
        self._running = CancellationRegistry(shared / RUNNING)
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = asyncio.Event()
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(
                uds=str(self._socket),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            ),
            timeout=httpx.Timeout(None, connect=5),
        )
        self._client.headers.clear()  # only the browser's headers are forwarded

    def end_streams_on_stop_signal(self) -> None:
        """End the page's streams on SIGTERM or SIGINT, as soon as no generation of it runs.

        An open tab keeps a stream open, and the server waits for open streams before it runs
        shutdown hooks.
        """
        call_on_stop_signal(self._stopping.set)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises:
            NotFoundError: the page is not installed, or its socket's path would be too long.
            NotReadyError: the page is starting, and the request does not accept HTML; or this
                process is to end, and the page did not answer in time.
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
        """End the page's process, if this process has started it."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()  # it heeds no signal
        end_within(self._process, STOP_SECONDS)

    def _start(self, scope: Scope) -> None:
        """Start the page's process, unless it runs already."""
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
            # The kernel closes its standard input when this process ends; then it ends too.
            self._process = subprocess.Popen(
                command, cwd=SOURCE_ROOT, stdin=subprocess.PIPE, pass_fds=[descriptor]
            )
            log.info("page_starting", pid=self._process.pid)
        finally:
            os.close(descriptor)

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        disconnected = asyncio.Event()

        async def read_body() -> AsyncIterator[bytes]:
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    disconnected.set()
                    raise httpx.ReadError("the browser disconnected while it was sending")
                yield message.get("body", b"")
                more = message.get("more_body", False)

        names = {name for name, _ in scope["headers"]}
        sends_body = bool(names & {b"content-length", b"transfer-encoding"})
        request = self._client.build_request(
            scope["method"],
            httpx.URL(scheme="http", host="page", raw_path=_raw_target(scope)),
            headers=_keep_end_to_end(scope["headers"]),
            content=read_body() if sends_body else None,
        )
        try:
            response = await self._send_request(request)
        except httpx.ConnectError:
            raise
        except httpx.TransportError as error:
            if disconnected.is_set():
                return
            # Its process ended before it answered, and is started again.
            raise httpx.ConnectError("the page was lost") from error
        async with contextlib.aclosing(response):
            if scope["path"] != f"{self._prefix}{EVENTS}":
                await self._send_response(response, receive, send, self._wait_until_idle())
                return
            with (
                contextlib.nullcontext()
                if self._stopping.is_set()
                else self._ending.accept_work("page"),
                self._running.enter("", ""),
            ):
                await self._send_response(response, receive, send, self._wait_for_last_event())

    async def _send_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return the response, whose body is still to be read.

        A page that does not answer must not keep this process from ending.
        """
        sending = asyncio.ensure_future(self._client.send(request, stream=True))
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait((sending, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                await asyncio.wait((sending,), timeout=STOP_SECONDS)
            if not sending.done():
                log.warning("page_did_not_answer", path=request.url.path[:200])
                raise NotReadyError("the service is ending")
            return sending.result()
        finally:
            stopping.cancel()
            sending.cancel()

    async def _wait_until_idle(self) -> None:
        """Wait until this process is to end, and no event runs behind any process.

        Gradio takes the end of a tab's stream for the end of the tab, and its generation would be
        cancelled.
        """
        await self._stopping.wait()
        while has_active_request(self._shared / RUNNING):
            await asyncio.sleep(POLL_SECONDS)

    async def _wait_for_last_event(self) -> None:
        """Wait until a generation was cut off, and its error had time to get here."""
        with contextlib.suppress(EndingError):
            await self._ending.wait_for_cut_off()
        await asyncio.sleep(LAST_EVENT_SECONDS)

    async def _send_response(
        self,
        response: httpx.Response,
        receive: Receive,
        send: Send,
        end: Coroutine[Any, Any, object],
    ) -> None:
        """Send a response until it ends, the browser disconnects, or `end` returns."""
        headers = _keep_end_to_end(response.headers.raw)
        await send(
            {"type": "http.response.start", "status": response.status_code, "headers": headers}
        )

        async def pump() -> None:
            async for chunk in response.aiter_raw():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})

        async def wait_for_disconnect() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass  # the end of the request's body may still come

        tasks = [asyncio.ensure_future(work) for work in (pump(), wait_for_disconnect(), end)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        if isinstance(outcomes[0], Exception):  # a part of the response is sent: break off
            raise outcomes[0]
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _raw_target(scope: Scope) -> bytes:
    query = scope["query_string"]
    path: bytes = scope["raw_path"]
    return path + b"?" + query if query else path


def _keep_end_to_end(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in headers if name.lower() not in HOP_BY_HOP]

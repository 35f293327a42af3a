"""A reverse proxy that serves a service below /foley, in a thread of its own."""

import asyncio
import contextlib
import functools
import threading
from collections.abc import Callable, Iterator

import aiohttp
from aiohttp import web

from runners.process import find_free_port
from tests.patience import scale

HOP_BY_HOP = ("host", "connection", "transfer-encoding")


@contextlib.contextmanager
def run_proxy(upstream: str, *, keeps_path: bool) -> Iterator[tuple[str, list[str]]]:
    """Yield its address with the path, and the requests that came for other paths.

    It says nothing of the path in a header, as a plain `proxy_pass` of nginx does not.

    Args:
        upstream: address of the service.
        keeps_path: whether it passes /foley on, or takes it off.
    """
    outside: list[str] = []
    session: aiohttp.ClientSession
    stop: Callable[[], object]

    async def forward(request: web.Request) -> web.StreamResponse:
        path = request.raw_path
        if not path.startswith("/foley"):
            outside.append(path)
            return web.Response(status=404)
        if not keeps_path:
            path = path.removeprefix("/foley")
        headers = [(k, v) for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP]
        async with session.request(
            request.method,
            upstream + path,
            headers=headers,
            data=await request.read() or None,
            allow_redirects=False,
        ) as answer:
            kept = [(k, v) for k, v in answer.headers.items() if k.lower() not in HOP_BY_HOP]
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            with contextlib.suppress(ConnectionError):  # the tab was closed
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
            return response

    async def serve() -> None:
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", forward)
        nonlocal session, stop
        stopping = asyncio.Event()
        stop = functools.partial(asyncio.get_running_loop().call_soon_threadsafe, stopping.set)
        async with aiohttp.ClientSession(auto_decompress=False) as session:
            runner = web.AppRunner(app, shutdown_timeout=1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", port).start()
            started.set()
            await stopping.wait()
            await runner.cleanup()

    port, started = find_free_port(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert started.wait(scale(20))
        yield f"http://127.0.0.1:{port}/foley", outside
    finally:
        stop()
        thread.join()

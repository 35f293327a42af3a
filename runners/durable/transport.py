"""Sends the requests of httpx by aiohttp, which takes a third of the processor time.

A job has two requests and a stream of events, so this is half of what running one costs.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator

import aiohttp
import httpx

# The last bytes of a response that a client has read as far as it needs. They are on their way, and
# without them the connection could not be used again.
END_SECONDS = 0.05


class AiohttpTransport(httpx.AsyncBaseTransport):
    """Sends requests to a service of this machine, and never through a proxy.

    The session is opened by the first request, in its event loop.
    """

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; returns its response, whose body has not been read.

        Args:
            request: with a body of its own length, or none.

        Raises:
            httpx.TransportError: the service cannot be reached, or broke off.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),  # as many as jobs run at once
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,  # httpx does it
                trust_env=False,
            )
        limits = request.extensions.get("timeout", {})
        assert isinstance(request.stream, httpx.AsyncByteStream)
        has_body = "content-length" in request.headers
        try:
            async with asyncio.timeout(None) as sending:
                body = _limit_pauses(request.stream, sending, limits) if has_body else None
                response = await self._session.request(
                    request.method,
                    str(request.url),
                    headers=list(request.headers.multi_items()),
                    data=body,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(
                        total=None,
                        sock_connect=limits.get("connect"),
                        sock_read=limits.get("read"),
                    ),
                )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _translate(error, request) from error
        return httpx.Response(
            response.status, headers=list(response.raw_headers), stream=_Body(response, request)
        )

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()


async def _limit_pauses(
    stream: httpx.AsyncByteStream, sending: asyncio.Timeout, limits: dict[str, float | None]
) -> AsyncIterator[bytes]:
    """Yield the body of a request, which ends if a chunk of it is not taken in time.

    aiohttp waits for ever for a service that does not read on.
    """
    now = asyncio.get_running_loop().time
    pause_seconds = limits.get("write") or math.inf
    async for chunk in stream:
        with contextlib.suppress(RuntimeError):  # it was answered already, and is limited no more
            sending.reschedule(now() + pause_seconds)
        yield chunk
    with contextlib.suppress(RuntimeError):
        # The last chunk is on its way. aiohttp counts the time to the answer when it has left.
        sending.reschedule(now() + pause_seconds + (limits.get("read") or math.inf))


class _Body(httpx.AsyncByteStream):
    def __init__(self, response: aiohttp.ClientResponse, request: httpx.Request) -> None:
        self._response = response
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _translate(error, self._request) from error

    async def aclose(self) -> None:
        """Give the connection back, or close it if more of the body is still to come."""
        content = self._response.content
        if content.exception() is not None:  # which reading on would raise again
            self._response.close()
            return
        try:
            async with asyncio.timeout(END_SECONDS):
                while not content.at_eof():
                    await content.readany()
        except (aiohttp.ClientError, TimeoutError, OSError):
            self._response.close()
        else:
            self._response.release()


def _translate(error: Exception, request: httpx.Request) -> httpx.TransportError:
    if isinstance(error, TimeoutError):
        return httpx.ReadTimeout(str(error), request=request)
    if isinstance(error, aiohttp.ClientConnectorError):
        return httpx.ConnectError(str(error), request=request)
    return httpx.ReadError(str(error) or type(error).__name__, request=request)

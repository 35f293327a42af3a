"""The connections of HTTP: h11 with bounded heads and deadlines.

Uvicorn prefers httptools where that is installed. It keeps a head of any size in memory, and loses
the body of a request that offers to continue with HTTP/2, as Java's client does. A websocket would
pass by every check of a request.
"""

import asyncio

import structlog
import uvicorn
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.h11_impl import H11Protocol

log = structlog.get_logger(__name__)

# A client has this time for the head of a request: from its first byte, or from the connection.
HEAD_SECONDS = 30
# Proxies keep unused connections for 60 s and longer. A server that closes them earlier would lose
# a request that is sent at that moment.
KEEP_ALIVE_SECONDS = 90
# While the server ends, a caller who takes nothing of an answer for so long is given up.
STALL_SECONDS = 5.0
REPORT_SECONDS = 2.0
POLL_SECONDS = 0.2


class BoundedConnection(H11Protocol):
    """One connection, which is closed if the head of a request takes too long.

    H11 refuses a head of more than 64 KiB with 400. The body has no deadline here.
    """

    _head_deadline: asyncio.TimerHandle | None = None
    _unread = (0, 0.0)  # bytes that wait for the caller, and since when there are so many

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first head."""
        super().connection_made(transport)
        self.timeout_keep_alive = max(self.timeout_keep_alive, KEEP_ALIVE_SECONDS)
        self._start_deadline()

    def data_received(self, data: bytes) -> None:
        """Read a part of a request; the deadline ends with the head."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._start_deadline()
        else:
            self._end_deadline()

    def on_response_complete(self) -> None:
        """Wait for the rest of a head that began before the response ended."""
        super().on_response_complete()
        if self.cycle.response_complete and self.conn.trailing_data[0]:
            self._start_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        self._end_deadline()
        super().connection_lost(exc)

    def _should_upgrade(self) -> bool:
        """Serve a request that offers another protocol, such as a websocket's, as HTTP/1.1."""
        return False

    def hasten_end(self) -> None:
        """Close the connection if nothing is asked of it, or break it if its answer is not read.

        The server asks connections to close once, and waits for them. One that was being accepted
        at that moment was not asked. A closed one stays until its last bytes are read.
        """
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self.shutdown()
        num_bytes, now = self.transport.get_write_buffer_size(), self.loop.time()
        if num_bytes == 0 or num_bytes != self._unread[0]:
            self._unread = num_bytes, now
        elif now - self._unread[1] > STALL_SECONDS:
            log.warning("stalled_caller_left", path=self.path, num_bytes=num_bytes)
            self.transport.abort()

    @property
    def path(self) -> str:
        """The path that is being asked; empty if nothing was asked yet."""
        return "" if self.cycle is None else str(self.cycle.scope["path"])[:200]

    def _start_deadline(self) -> None:
        if self._head_deadline is None:
            self._head_deadline = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _end_deadline(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None


async def end_connections(server: uvicorn.Server) -> None:
    """Let no caller hold up the end of a server, until cancelled.

    Args:
        server: that was told to end, with connections of `BoundedConnection`.
    """
    is_logged, loop = False, asyncio.get_running_loop()
    started = loop.time()
    while True:
        await asyncio.sleep(POLL_SECONDS)
        connections = server.server_state.connections
        left = [each for each in connections if isinstance(each, BoundedConnection)]
        if left and not is_logged and loop.time() - started > REPORT_SECONDS:
            is_logged = True
            log.info("ending_waits", connections=sorted(each.path for each in left))
        for connection in left:
            connection.hasten_end()


def use_bounded_connections() -> None:
    """Let the servers that this process makes from now on use `BoundedConnection`.

    BentoML makes the server itself, and has no option for its protocol.
    """
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedConnection.__name__}"

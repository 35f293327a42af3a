"""The connections of HTTP: h11 with bounded heads and deadlines.

Uvicorn prefers httptools where that is installed. It keeps a head of any size in memory, and loses
the body of a request that offers to continue with HTTP/2, as Java's client does.
"""

import asyncio

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.h11_impl import H11Protocol

# A client has this time for the head of a request: from its first byte, or from the connection.
HEAD_SECONDS = 30
# Proxies keep unused connections for 60 s and longer. A server that closes them earlier would lose
# a request that is sent at that moment.
KEEP_ALIVE_SECONDS = 90


class BoundedConnection(H11Protocol):
    """One connection, which is closed if the head of a request takes too long.

    H11 refuses a head of more than 64 KiB with 400. The body has no deadline here.
    """

    _head_deadline: asyncio.TimerHandle | None = None

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

    def _start_deadline(self) -> None:
        if self._head_deadline is None:
            self._head_deadline = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _end_deadline(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None


def use_bounded_connections() -> None:
    """Let the servers that this process makes from now on use `BoundedConnection`.

    BentoML makes the server itself, and has no option for its protocol.
    """
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedConnection.__name__}"

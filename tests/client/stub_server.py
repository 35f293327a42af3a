"""A small HTTP server on loopback that answers as it is told to, wrongly too."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """One answer: its body comes in these pieces; then the connection ends."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    pieces: tuple[bytes, ...] = ()
    wait: Callable[[], object] = lambda: None  # before each piece but the first
    stated_length: int | None = None


@dataclass
class Stand:
    url: str
    replies: list[Reply]  # the last one repeats
    requests: list[Request] = field(default_factory=list)


@contextlib.contextmanager
def stand() -> Iterator[Stand]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = self.rfile.read(length)
            headers = {name.lower(): value for name, value in self.headers.items()}
            seen.requests.append(Request(self.command, self.path, headers, body))
            reply = seen.replies.pop(0) if len(seen.replies) > 1 else seen.replies[0]
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if reply.stated_length is not None:
                self.send_header("Content-Length", str(reply.stated_length))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the client may have left
                for index, piece in enumerate(reply.pieces):
                    if index:
                        reply.wait()
                    self.wfile.write(piece)
                    self.wfile.flush()

        do_POST = do_GET  # noqa: N815 - the library's name

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    seen = Stand(f"http://127.0.0.1:{server.server_port}", [])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

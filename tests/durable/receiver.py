"""A receiver of webhooks on loopback, which notes what comes."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET = "whsec_" + "c2VjcmV0IG9mIHRoZSB0ZXN0cyBvZiB3ZWJob29rcw=="


@dataclass
class Receiver:
    """What a receiver has got.

    Attributes:
        url: of it.
        statuses: what it answers, one after the other; 200 after the last one.
        got: headers and body of each request.
        taken: those of them that were answered with 200.
        released: ends the requests to /hang and /drip.
        dripped: bytes that were sent by /drip.
    """

    url: str
    statuses: list[int] = field(default_factory=list)
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    taken: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    dripped: int = 0


@contextlib.contextmanager
def receive_webhooks(host: str = "127.0.0.1") -> Iterator[Receiver]:
    """Yield a receiver. /hang never answers, /endless never ends to, /away leads elsewhere.

    /drip sends a byte of its answer now and then.

    Args:
        host: address of loopback.
    """

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.got.append((headers, body))
            if self.path == "/hang":
                receiver.released.wait()
                return
            with contextlib.suppress(OSError):
                while self.path == "/drip" and not receiver.released.wait(0.02):
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nX: y\r\n"[receiver.dripped :][:1] or b"y")
                    self.wfile.flush()
                    receiver.dripped += 1
            status = receiver.statuses.pop(0) if receiver.statuses else 200
            if status == 200:
                receiver.taken.append((headers, body))
            self.send_response(307 if self.path == "/away" else status)
            self.send_header("Location", receiver.url)
            self.end_headers()
            with contextlib.suppress(OSError):
                while self.path == "/endless" and not receiver.released.is_set():
                    self.wfile.write(bytes(65536))

        def log_message(self, *_: object) -> None:
            pass

    with serve_handler(Answers, host) as port:
        receiver = Receiver(f"http://{host}:{port}/")
        try:
            yield receiver
        finally:
            receiver.released.set()


@contextlib.contextmanager
def serve_handler(handler: Callable[..., BaseHTTPRequestHandler], host: str) -> Iterator[int]:
    """Yield the port of a server whose requests a handler answers."""
    server = ThreadingHTTPServer((host, 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

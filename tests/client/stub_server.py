"""An HTTP server on loopback with prepared replies, correct and broken ones."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class ReceivedRequest:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """One reply. The connection closes after the last piece of its body."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    pieces: tuple[bytes, ...] = ()
    wait: Callable[[], object] = lambda: None  # before each piece but the first
    stated_length: int | None = None


@dataclass
class StubServer:
    url: str
    replies: list[Reply]  # the last one repeats
    requests: list[ReceivedRequest] = field(default_factory=list)


@contextlib.contextmanager
def run_stub_server() -> Iterator[StubServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = self.rfile.read(length)
            headers = {name.lower(): value for name, value in self.headers.items()}
            stub.requests.append(ReceivedRequest(self.command, self.path, headers, body))
            reply = stub.replies.pop(0) if len(stub.replies) > 1 else stub.replies[0]
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if reply.stated_length is not None:
                self.send_header("Content-Length", str(reply.stated_length))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the client may have closed the connection
                for index, piece in enumerate(reply.pieces):
                    if index:
                        reply.wait()
                    self.wfile.write(piece)
                    self.wfile.flush()

        do_POST = do_GET  # noqa: N815 - the library's name

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub = StubServer(f"http://127.0.0.1:{server.server_port}", [])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def encode_event(name: str, data: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def event_reply(*pieces: bytes, **more: Any) -> Reply:
    return Reply(headers={"Content-Type": "text/event-stream"}, pieces=pieces, **more)


def error_reply(status: int, code: str, **headers: str) -> Reply:
    body = json.dumps({"error": {"code": code, "message": "why", "request_id": "r-2"}})
    return Reply(status, headers, (body.encode(),))


RESULT: dict[str, Any] = {
    "request_id": "r-1",
    "kept_seconds": 600,
    "model": "tiny",
    "duration_seconds": 1.0,
    "sample_rate_hz": 48000,
    "timings_seconds": {"decode_video": 0.1, "total": 0.5},
    "notices": ["cut \u2028 here"],
    "seeds": [7, 8],
    "files": [
        {
            "variation": variation,
            "seed": 6 + variation,
            "format": name,
            "media_type": kind,
            "bytes": 4,
            "url": f"/v1/results/r-1/foley-{variation}.{name}",
            "new": "ignored",
        }
        for variation in (1, 2)
        for name, kind in (("wav", "audio/wav"), ("mkv", "video/x-matroska"))
    ],
}
EVENTS = (
    encode_event("accepted", {"request_id": "r-1"})
    + b": keep-alive\n\n"
    + encode_event("progress", {"stage": "queue", "queue_position": 2})
    + encode_event("progress", {"stage": "sample", "step": 1, "num_steps": 4, "seconds_left": 1.5})
    + encode_event("something_new", {"a": 1})
    + encode_event("result", RESULT)
)

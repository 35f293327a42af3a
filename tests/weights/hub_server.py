"""A server on the loopback interface with the part of the hub's protocol that is used here.

`/{repo}/resolve/{revision}/{path}` answers small files itself, with git's blob id as ETag. It
redirects large files to another host, with their SHA-256 as X-Linked-ETag, and X-Linked-Size.
Ranges are honoured. All requests are recorded.
"""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from foley.weights.sources import HubFile

REPO = "owner/model"
REVISION = "0123456789abcdef0123456789abcdef01234567"
LARGE_BYTES = 1000  # files of at least this size are redirected


@dataclass(frozen=True)
class Seen:
    """A request that the server received."""

    method: str
    path: str  # of the file
    start: int  # first byte asked for
    authorization: str
    num_sent: int


@dataclass
class Hub:
    """The server: its content, and the faults that a test injects."""

    files: dict[str, bytes] = field(default_factory=dict)
    token: str = ""  # if set, requests without it are refused
    gated: bool = False  # 403 even with a token
    cut_after: dict[str, int] = field(
        default_factory=dict
    )  # bytes sent before the connection is closed
    corrupt: set[str] = field(default_factory=set)  # files sent with one byte changed
    misstated: dict[str, int] = field(default_factory=dict)  # wrong sizes to state
    ignore_ranges: bool = False
    num_busy: int = 0  # how many requests for content are answered 503 first
    slow: threading.Event | None = None  # if set, content is sent after this event
    seen: list[Seen] = field(default_factory=list)

    def __post_init__(self) -> None:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub.answer(self)

            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def fetched(self) -> list[str]:
        """The files whose content was requested, in order."""
        return [seen.path for seen in self.seen if seen.method == "GET" and seen.path in self.files]

    def close(self) -> None:
        if self.slow is not None:
            self.slow.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def table(self, *, hashed: bool = True) -> list[HubFile]:
        """Return the table of files to download, with sizes and checksums if `hashed`."""
        return [
            HubFile(
                repo=REPO,
                revision=REVISION,
                path=path,
                place=path,
                num_bytes=len(content) if hashed else None,
                sha256=hashlib.sha256(content).hexdigest() if hashed else None,
            )
            for path, content in self.files.items()
        ]

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        is_cdn = request.path.startswith("/cdn/")
        found = re.fullmatch(rf"/(?:{REPO}/resolve/{REVISION}|cdn)/(.+)", request.path)
        path = found[1] if found else request.path
        authorization = request.headers.get("Authorization", "")
        refusal = None if is_cdn else self.refusal(path, authorization)
        content = self.files.get(path, b"")
        headers = {"X-Repo-Commit": REVISION, "Accept-Ranges": "bytes"}
        start = int(request.headers.get("Range", "bytes=0-")[6:].split("-")[0])
        status, body = 200, content
        if request.command == "GET" and self.num_busy:
            self.num_busy -= 1
            refusal = 503, ""
        if refusal:
            status, code = refusal
            headers |= {"X-Error-Code": code} if code else {}
            body = b""
        elif not is_cdn and len(content) >= LARGE_BYTES:
            status, body = 302, b""
            headers["Location"] = f"http://localhost:{self.port}/cdn/{path}"
            headers["X-Linked-Size"] = str(self.misstated.get(path, len(content)))
            headers["X-Linked-ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        else:
            headers["ETag"] = f'"{git_id(content)}"'
            if path in self.corrupt:
                body = body[:-1] + bytes([body[-1] ^ 1])
            if start and not self.ignore_ranges:
                status, body = 206, body[start:]
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        num_sent = 0
        if request.command == "GET" and status in (200, 206):
            if self.slow is not None:
                self.slow.wait()
            limit = self.cut_after.pop(path, len(body))
            num_sent = min(limit, len(body))
            request.wfile.write(body[:num_sent])
            if num_sent < len(body):
                request.close_connection = True
        if status != 302 or request.command == "HEAD":
            self.seen.append(Seen(request.command, path, start, authorization, num_sent))

    def refusal(self, path: str, authorization: str) -> tuple[int, str] | None:
        """Return the status and error code of a refused request; None if it is served."""
        if self.token and authorization != f"Bearer {self.token}":
            return (401, "") if authorization else (401, "RepoNotFound")
        if self.gated:
            return 403, "GatedRepo"
        return None if path in self.files else (404, "EntryNotFound")


def git_id(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def write_table(files: list[HubFile], path: Path) -> Path:
    """Write the table as JSON for another process."""
    path.write_text(json.dumps([vars(file) for file in files]))
    return path

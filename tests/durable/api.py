"""The part of the API that an executor calls, without a model: a sound is text of its seed."""

import contextlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from tests.durable.receiver import serve_handler

FIELD = re.compile(rb'name="(\w+)"\r\n\r\n([^\r]*)\r\n')


@dataclass
class Api:
    """What was asked of it.

    Attributes:
        url: of it.
        seeds: how often each was asked for.
        keys: with which it was asked.
        delay_seconds: of each answer.
        released: lets the requests go on that wait.
        stalls: where it falls silent, once each: "upload" is a clip that it does not read on,
            "events" and "file" are answers that it does not go on with. "cut" is an answer whose
            connection it closes.
        closed: its time is over.
    """

    url: str = ""
    seeds: Counter[str] = field(default_factory=Counter)
    keys: set[str] = field(default_factory=set)
    delay_seconds: float = 0.0
    released: threading.Event = field(default_factory=threading.Event)
    stalls: list[str] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)

    def stall(self, where: str) -> None:
        """Fall silent for good if it is to do so there."""
        if where in self.stalls:
            self.stalls.remove(where)
            self.closed.wait()


@contextlib.contextmanager
def serve_api(*, held: bool = False) -> Iterator[Api]:
    """Yield an API.

    Args:
        held: whether requests wait until they are released.
    """
    api = Api()
    if not held:
        api.released.set()

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            api.stall("upload")
            if api.closed.is_set():
                self.close_connection = True
                return
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seed = dict(FIELD.findall(body))[b"seed"].decode()
            api.seeds[seed] += 1
            api.keys.add(self.headers.get("Authorization", "").removeprefix("Bearer "))
            api.released.wait()
            time.sleep(api.delay_seconds)
            file = {"variation": 1, "seed": int(seed), "format": "wav", "media_type": "audio/wav"}
            file |= {"bytes": len(seed), "url": f"/v1/results/{seed}/foley-1.wav"}
            result = {"request_id": "x", "kept_seconds": 60, "model": "tiny", "seeds": [int(seed)]}
            result |= {"duration_seconds": 1.0, "sample_rate_hz": 48000, "notices": []}
            result |= {"timings_seconds": {"total": 0.0}, "files": [file]}
            answer = f"event: result\ndata: {json.dumps(result)}\n\n"
            self._answer("text/event-stream", answer, "events")

        def do_GET(self) -> None:
            self._answer("audio/wav", self.path.split("/")[3], "file")

        def _answer(self, media_type: str, text: str, what: str) -> None:
            with contextlib.suppress(OSError):  # the executor was killed
                self.send_response(200)
                self.send_header("Content-Type", media_type)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text[:1].encode())
                self.wfile.flush()
                api.stall(what)
                if "cut" in api.stalls:
                    api.stalls.remove("cut")
                    self.close_connection = True
                    return
                self.wfile.write(text[1:].encode())

        def log_message(self, *_: object) -> None:
            pass

    with serve_handler(Answers, "127.0.0.1") as port:
        api.url = f"http://127.0.0.1:{port}"
        try:
            yield api
        finally:
            api.released.set()
            api.closed.set()

"""A collector of traces, which receives what a server sends."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.patience import wait_until


class Collector:
    """Receives OTLP over HTTP.

    Attributes:
        spans: (process, span) in the order in which they arrived.
        received: the bytes of all requests.
    """

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []
        self.received = b""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.receive(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever)
        self._thread.start()

    def receive(self, body: bytes) -> None:
        self.received += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            about = {a.key: a.value.string_value for a in resource.resource.attributes}
            assert about["service.name"] == "foley"
            spans = [span for scope in resource.scope_spans for span in scope.spans]
            self.spans += [(about["foley.process"], span) for span in spans]

    def of(self, trace_id: str) -> list[tuple[str, Span]]:
        return [(p, span) for p, span in self.spans if span.trace_id.hex() == trace_id]

    def wait_for(self, trace_id: str, name: str) -> None:
        """Wait for a span with this name in this trace."""
        wait_until(
            lambda: name in [span.name for _, span in self.of(trace_id)],
            what=lambda: [span.name for _, span in self.spans],
        )

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

"""Traces from a request to its steps, across the real processes, sent to a test collector."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from foley.v1.foley_pb2 import GetModelRequest
from foley.v1.foley_pb2_grpc import FoleyServiceStub
from tests.patience import is_within, scale, wait_until
from tests.server import Server

NUM_STEPS = 3
CALLER = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
SECRET = "a walrus in a lighthouse"


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


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Server]:
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.address, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    server = Server(tmp_path_factory.mktemp("traced"), settings)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


def attributes(span: Span) -> dict[str, str | int]:
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


def test_a_request_is_one_trace_down_to_its_steps(
    traced: Server, collector: Collector, short_clip: bytes
) -> None:
    trace_id, parent_id = CALLER
    answer = traced.client.post(
        "/v1/generate",
        files={"clip": short_clip},
        data={"num_inference_steps": str(NUM_STEPS), "prompt": SECRET, "seed": "1"},
        headers={"traceparent": f"00-{trace_id}-{parent_id}-01", "X-Request-Id": "traced-1"},
    )
    assert answer.status_code == 200
    for name in ("POST /v1/generate", "decode_audio"):
        collector.wait_for(trace_id, name)
    spans = collector.of(trace_id)
    named = {span.name: span for _, span in spans}
    root = named["POST /v1/generate"]
    assert root.parent_span_id.hex() == parent_id
    assert attributes(root)["http.response.status_code"] == 200

    def children(of: Span) -> list[tuple[str, str]]:
        found = [(p, span) for p, span in spans if span.parent_span_id == of.span_id]
        found.sort(key=lambda pair: pair[1].start_time_unix_nano)
        return [(process, span.name) for process, span in found]

    assert children(root) == [("FoleyApi", name) for name in ("upload", "generate", "mux")]
    assert children(named["generate"]) == [
        ("FoleyApi", "decode_video"),
        *(("GpuRunner", name) for name in ("queue", "encode", "sample", "decode_audio")),
    ]
    assert children(named["sample"]) == [("GpuRunner", "step")] * NUM_STEPS
    steps = [span for _, span in spans if span.name == "step"]
    assert sorted(attributes(span)["foley.step"] for span in steps) == [1, 2, 3]
    for _, span in spans:
        assert span.start_time_unix_nano <= span.end_time_unix_nano
    assert SECRET.encode() not in collector.received
    assert traced.wait_for_log("traced-1")["trace_id"] == trace_id


def test_a_failure_is_marked_with_its_code(traced: Server, collector: Collector) -> None:
    trace_id = "1" * 32
    headers = {"traceparent": f"00-{trace_id}-{'2' * 16}-01"}
    answer = traced.client.post("/v1/generate", files={"clip": b"no clip"}, headers=headers)
    assert answer.status_code == 422
    collector.wait_for(trace_id, "POST /v1/generate")
    named = {span.name: span for _, span in collector.of(trace_id)}
    assert attributes(named["POST /v1/generate"])["error.type"] == "video_unreadable"
    assert attributes(named["decode_video"])["error.type"] == "video_unreadable"


def test_a_grpc_call_is_part_of_the_trace_of_its_caller(
    traced: Server, collector: Collector
) -> None:
    trace_id = "3" * 32
    with grpc.insecure_channel(traced.grpc_address) as channel:
        metadata = (("traceparent", f"00-{trace_id}-{'4' * 16}-01"),)
        FoleyServiceStub(channel).GetModel(GetModelRequest(), metadata=metadata, timeout=scale(30))
    collector.wait_for(trace_id, "foley.v1.FoleyService/GetModel")
    ((process, span),) = collector.of(trace_id)
    assert process == "FoleyApi"
    assert span.parent_span_id.hex() == "4" * 16
    assert attributes(span)["foley.status"] == "OK"
    assert (
        "Failed to detach" not in traced.log.read_text()
    )  # spans that end in the wrong order log this


def test_a_collector_that_is_gone_delays_neither_requests_nor_shutdown(
    traced: Server, collector: Collector, short_clip: bytes
) -> None:
    collector.server.shutdown()
    collector.server.server_close()
    assert traced.generate(short_clip, num_inference_steps=1).status_code == 200
    started = time.monotonic()
    assert traced.stop() == 0
    assert is_within(time.monotonic() - started, 15)

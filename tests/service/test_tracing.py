"""Traces from a request to its steps, across the real processes, sent to a test collector."""

import grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from foley.v1.foley_pb2 import GetModelRequest
from foley.v1.foley_pb2_grpc import FoleyServiceStub
from tests.collector import Collector
from tests.keyed import FIRST_KEY
from tests.patience import scale
from tests.server import Server

NUM_STEPS = 3
CALLER = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
SECRET = "a walrus in a lighthouse"


def attributes(span: Span) -> dict[str, str | int]:
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


def test_a_request_is_one_trace_down_to_its_steps(
    keyed_server: Server, collector: Collector, short_clip: bytes
) -> None:
    trace_id, parent_id = CALLER
    answer = keyed_server.client.post(
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
    assert keyed_server.wait_for_log("traced-1")["trace_id"] == trace_id


def test_a_failure_is_marked_with_its_code(keyed_server: Server, collector: Collector) -> None:
    trace_id = "1" * 32
    headers = {"traceparent": f"00-{trace_id}-{'2' * 16}-01"}
    answer = keyed_server.client.post("/v1/generate", files={"clip": b"no clip"}, headers=headers)
    assert answer.status_code == 422
    collector.wait_for(trace_id, "POST /v1/generate")
    named = {span.name: span for _, span in collector.of(trace_id)}
    assert attributes(named["POST /v1/generate"])["error.type"] == "video_unreadable"
    assert attributes(named["decode_video"])["error.type"] == "video_unreadable"


def test_a_grpc_call_is_part_of_the_trace_of_its_caller(
    keyed_server: Server, collector: Collector
) -> None:
    trace_id = "3" * 32
    with grpc.insecure_channel(keyed_server.grpc_address) as channel:
        metadata = (("traceparent", f"00-{trace_id}-{'4' * 16}-01"), ("x-api-key", FIRST_KEY))
        FoleyServiceStub(channel).GetModel(GetModelRequest(), metadata=metadata, timeout=scale(30))
    collector.wait_for(trace_id, "foley.v1.FoleyService/GetModel")
    ((process, span),) = collector.of(trace_id)
    assert process == "FoleyApi"
    assert span.parent_span_id.hex() == "4" * 16
    assert attributes(span)["foley.status"] == "OK"
    assert (
        "Failed to detach" not in keyed_server.log.read_text()
    )  # spans that end in the wrong order log this


def test_a_collector_that_is_gone_does_not_delay_requests(
    keyed_server: Server, collector: Collector, short_clip: bytes
) -> None:
    """The fixture checks that it does not delay the shutdown either."""
    collector.close()
    assert keyed_server.generate(short_clip, num_inference_steps=1).status_code == 200

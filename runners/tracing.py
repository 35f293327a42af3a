"""OpenTelemetry traces, from a request to each of its solver steps.

They are exported if a collector is configured by the standard names, such as
OTEL_EXPORTER_OTLP_ENDPOINT. The API sends its span to the runner with the request. BentoML's own
tracing stays off. No span contains a prompt.

    POST /v1/generate                          FoleyApi
        upload | generate | mux                FoleyApi
            decode_video                       FoleyApi
            queue | encode | decode_audio      GpuRunner
            sample                             GpuRunner
                step, step, ...                GpuRunner
"""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future

from opentelemetry import context, propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer

from foley.errors import CancelledRequestError, FoleyError
from foley.types import Stage
from runners.messages import ProgressUpdate, RunnerRequest, RunnerResult
from runners.settings import is_tracing_configured

END_SECONDS = 2.0
_NO_TRACES: Tracer = trace.NoOpTracer()


class _Process:
    """The tracer of this process, and what sends its spans."""

    tracer = _NO_TRACES
    provider: TracerProvider | None = None
    exporter: OTLPSpanExporter | None = None


def configure_tracing(process: str) -> None:
    """Send the spans of this process to the collector, if one is configured.

    Args:
        process: name of the BentoML service that runs in it; the attribute `foley.process`.
    """
    if not is_tracing_configured():
        return
    named = Resource.create({"service.name": "foley", "foley.process": process})
    provider = TracerProvider(resource=named.merge(OTELResourceDetector().detect()))
    _Process.exporter = OTLPSpanExporter()
    provider.add_span_processor(BatchSpanProcessor(_Process.exporter))
    _Process.provider, _Process.tracer = provider, provider.get_tracer("foley")


def end_tracing() -> None:
    """Send the spans that are not sent yet. Gives up after two seconds."""
    if _Process.provider is not None and _Process.exporter is not None:
        giving_up = threading.Timer(END_SECONDS, _Process.exporter.shutdown)  # ends its retries
        giving_up.start()
        _Process.provider.shutdown()
        giving_up.cancel()
        _Process.provider, _Process.tracer = None, _NO_TRACES


@contextlib.contextmanager
def start_request_span(name: str, headers: Mapping[str, str]) -> Iterator[Span]:
    """Start the span of a request, in the caller's trace if the headers name one.

    Args:
        name: of the span.
        headers: HTTP headers or gRPC metadata, with lower-case names.
    """
    # A new context: the caller's trace is that of the headers, and none without them.
    caller = propagate.extract(headers, context.Context())
    with _Process.tracer.start_as_current_span(
        name, caller, kind=SpanKind.SERVER, record_exception=False, set_status_on_exception=False
    ) as span:
        yield span


def describe_request(span: Span, method: str, route: str, status: int, code: str) -> None:
    """Set the attributes of a finished HTTP request.

    Args:
        span: of the request.
        method: of HTTP.
        route: the path's pattern, not the path itself.
        status: of the response.
        code: of the error; empty without one.
    """
    span.set_attributes(
        {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
        }
    )
    if code:
        span.set_attribute("error.type", code)
    if status >= 500:
        span.set_status(StatusCode.ERROR)


def describe_call(span: Span, method: str, status: str, code: str) -> None:
    """Set the attributes of a finished gRPC call.

    Args:
        span: of the call.
        method: of the gRPC service.
        status: name of the gRPC status.
        code: of the error; empty without one.
    """
    span.set_attributes({"rpc.system": "grpc", "rpc.method": method, "foley.status": status})
    if code:
        span.set_attribute("error.type", code)
        span.set_status(StatusCode.ERROR)


def make_log_fields(span: Span) -> dict[str, str]:
    """Return the log fields that name the trace of a span; none for a span without a trace."""
    found = span.get_span_context()
    return {"trace_id": trace.format_trace_id(found.trace_id)} if found.is_valid else {}


@contextlib.contextmanager
def start_span(name: str, kind: SpanKind = SpanKind.INTERNAL) -> Iterator[None]:
    """Start a span inside the current one, and mark it as failed if an exception leaves it.

    Args:
        name: of the span.
        kind: CLIENT for a call to another process.
    """
    with _Process.tracer.start_as_current_span(name, kind=kind, record_exception=False) as started:
        try:
            yield
        except BaseException as error:
            _mark_failed(started, error)
            raise


def inject_span() -> dict[str, str]:
    """Return the current span's context for another process; empty without tracing."""
    carried: dict[str, str] = {}
    if _Process.provider is not None:
        propagate.inject(carried)
    return carried


class JobTrace:
    """The spans of the stages and steps of one request in the runner.

    Args:
        request: has the parent span.
    """

    def __init__(self, request: RunnerRequest) -> None:
        self._parent = propagate.extract(request.trace, context.Context())
        self._stage: Stage | None = None
        self._span: Span = trace.INVALID_SPAN
        self._step: int | None = None
        self._since = 0

    def update(self, update: ProgressUpdate) -> None:
        """End the spans before this update, and start those after it."""
        now = time.time_ns()
        if update.stage != self._stage:
            self._span.end(now)
            self._span = _Process.tracer.start_span(update.stage, self._parent, start_time=now)
            self._stage, self._step = update.stage, None
        if update.step is not None and update.step != self._step:
            if self._step is not None:
                self._add_step(update.step, now)
            self._step, self._since = update.step, now

    def end(self, outcome: Future[RunnerResult]) -> None:
        """End the last span.

        Args:
            outcome: of the request; cancelled or not done if the request left early.
        """
        gone = outcome.cancelled() or not outcome.done()
        error = CancelledRequestError() if gone else outcome.exception()
        if error is not None:
            _mark_failed(self._span, error)
        self._span.end()

    def _add_step(self, step: int, now: int) -> None:
        _Process.tracer.start_span(
            "step",
            trace.set_span_in_context(self._span, self._parent),
            attributes={"foley.step": step},
            start_time=self._since,
        ).end(now)


def _mark_failed(failed: Span, error: BaseException) -> None:
    kind = error.code if isinstance(error, FoleyError) else type(error).__name__
    failed.set_attribute("error.type", kind)
    failed.set_status(StatusCode.ERROR)

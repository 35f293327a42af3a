"""The outermost boundary of gRPC: request ids, API keys, errors with codes, logs and metrics."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import unquote

import grpc
import structlog
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from foley.errors import CancelledRequestError, FoleyError, RequestTimeoutError
from runners import metrics, tracing
from runners.auth import ApiKeys, caller_of, request_id_of
from runners.grpc import SERVICE
from runners.status import PublicError, public_error, status_of

log = structlog.get_logger(__name__)

# Trailing metadata may take 8 KiB. The message is in it twice, and a character outside ASCII takes
# up to nine bytes there.
MAX_MESSAGE_CHARACTERS = 800
TRANSIT_SECONDS = 0.2  # a caller whose deadline passes ends the call before ours has passed


@dataclass(frozen=True)
class CallIdentity:
    """Who makes a call.

    Attributes:
        request_id: the caller's own, or a new one.
        owner: see `runners.auth.ApiKeys.owner_of`.
        caller: see `runners.auth.caller_of`.
    """

    request_id: str
    owner: str
    caller: str


@contextlib.asynccontextmanager
async def guard_call(
    context: grpc.aio.ServicerContext, method: str, keys: ApiKeys, *, service: str = SERVICE
) -> AsyncIterator[CallIdentity]:
    """Check the key of a call, and end the call with a status if the block raises.

    An exception becomes the status that `runners.status` defines for it. Each call is logged,
    counted and traced.

    Args:
        context: of the call.
        method: name of its method.
        keys: one of them must come with the call.
        service: that has the method.
    """
    metadata = {
        name: value for name, value in context.invocation_metadata() or () if type(value) is str
    }
    request_id = request_id_of(metadata)
    traced = contextlib.ExitStack()
    route = f"/{service}/{method}"
    span = traced.enter_context(tracing.start_request_span(f"{service}/{method}", metadata))
    structlog.contextvars.bind_contextvars(request_id=request_id, **tracing.make_log_fields(span))
    started = time.monotonic()
    code, status = "", grpc.StatusCode.OK
    try:
        await context.send_initial_metadata((("x-request-id", request_id),))
        owner = keys.owner_of(metadata)
        yield CallIdentity(request_id, owner, caller_of(owner, address_of(context.peer())))
    except asyncio.CancelledError:
        kind = _cancellation_kind(context)
        code, status = kind.code, grpc.StatusCode[status_of(kind).grpc]
        raise
    except Exception as error:
        public = public_error(error)
        code, status = public.code, grpc.StatusCode[public.status.grpc]
        if public.redacted:
            log.error("request_failed", code=code, exc_info=error)
        await _abort(context, request_id, public)
    finally:
        seconds = time.monotonic() - started
        if code:
            metrics.ERRORS.labels(code).inc()
        tracing.describe_call(span, method, status.name, code)
        traced.close()
        log.info(
            "request",
            method="gRPC",
            path=route,
            status=status.name,
            code=code,
            seconds=round(seconds, 3),
        )
        metrics.REQUESTS.labels(route, status.name).inc()
        metrics.REQUEST_SECONDS.labels(route).observe(seconds)


def address_of(peer: str) -> str:
    """Return the IP address of a peer; empty if it has none.

    Args:
        peer: gRPC's name of it, such as ipv6:%5B::1%5D:50000.
    """
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


def _cancellation_kind(context: grpc.aio.ServicerContext) -> type[FoleyError]:
    """Return the error of a call that its caller ended: a passed deadline, or a cancellation."""
    remaining_seconds = context.time_remaining()  # None where the caller set no deadline
    is_late = remaining_seconds is not None and remaining_seconds < TRANSIT_SECONDS
    return RequestTimeoutError if is_late else CancelledRequestError


async def _abort(context: grpc.aio.ServicerContext, request_id: str, error: PublicError) -> None:
    """End a call with an error: in plain metadata, and in the details that libraries know.

    Source: google/rpc/error_details.proto.
    """
    status, message = grpc.StatusCode[error.status.grpc], error.message
    if len(message) > MAX_MESSAGE_CHARACTERS:
        message = message[: MAX_MESSAGE_CHARACTERS - 3] + "..."
    reason = error_details_pb2.ErrorInfo(
        reason=error.code, domain=SERVICE, metadata={"request_id": request_id}
    )
    details = [reason]
    trailing: list[tuple[str, str | bytes]] = [("foley-error-code", error.code)]
    if error.retry_after_seconds is not None:
        trailing.append(("retry-after", str(error.retry_after_seconds)))
        delay = duration_pb2.Duration(seconds=error.retry_after_seconds)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    rich = status_pb2.Status(code=status.value[0], message=message, details=packed)
    trailing.append(("grpc-status-details-bin", rich.SerializeToString()))
    await context.abort(status, message, tuple(trailing))

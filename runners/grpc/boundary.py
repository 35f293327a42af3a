"""The outermost boundary of gRPC: request ids, keys, errors with codes, one log line a call."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import structlog
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from foley.errors import CancelledRequestError, FoleyError, RequestTimeoutError
from runners import metrics, tracing
from runners.auth import ApiKeys
from runners.grpc import SERVICE
from runners.http.middleware import request_id_of
from runners.status import INTERNAL_CODE, INTERNAL_MESSAGE, public_message, retry_after, status_of

log = structlog.get_logger(__name__)

# Trailing metadata may take 8 KiB. The message is in it twice, and a letter beyond ASCII takes up
# to nine bytes there.
MAX_MESSAGE = 800
TRANSIT_SECONDS = 0.2  # a caller whose deadline passes hangs up before ours has passed


@dataclass(frozen=True)
class Call:
    """One call: its id, and whose it is."""

    request_id: str
    owner: str


@contextlib.asynccontextmanager
async def boundary(
    context: grpc.aio.ServicerContext, method: str, keys: ApiKeys
) -> AsyncIterator[Call]:
    """Let a call in; whatever goes wrong inside is told as the status table says.

    Args:
        context: of the call.
        method: its name.
        keys: one of which the call must bring.
    """
    metadata = {
        name: value for name, value in context.invocation_metadata() or () if type(value) is str
    }
    request_id = request_id_of(metadata)
    traced = contextlib.ExitStack()
    span = traced.enter_context(tracing.request_span(f"{SERVICE}/{method}", metadata))
    structlog.contextvars.bind_contextvars(request_id=request_id, **tracing.log_fields(span))
    started = time.monotonic()
    code, status = "", grpc.StatusCode.OK
    try:
        await context.send_initial_metadata((("x-request-id", request_id),))
        yield Call(request_id, keys.owner_of(metadata))
    except asyncio.CancelledError:
        left_seconds = context.time_remaining()  # None where no deadline was set
        late = left_seconds is not None and left_seconds < TRANSIT_SECONDS
        kind = RequestTimeoutError if late else CancelledRequestError
        code, status = kind.code, _status_of(kind)
        raise
    except FoleyError as error:
        code, status = error.code, _status_of(type(error))
        message = public_message(error)
        if message != str(error):
            log.warning("request_failed", code=code, exc_info=error)
        await _refuse(context, request_id, status, code, message, retry_after(error))
    except Exception:
        log.exception("request_failed")
        code, status = INTERNAL_CODE, grpc.StatusCode.INTERNAL
        await _refuse(context, request_id, status, code, INTERNAL_MESSAGE, None)
    finally:
        if code:
            metrics.ERRORS.labels(code).inc()
        tracing.describe_call(span, method, status.name, code)
        traced.close()
        log.info(
            "request",
            method="gRPC",
            path=f"/{SERVICE}/{method}",
            status=status.name,
            code=code,
            seconds=round(time.monotonic() - started, 3),
        )
        route = f"/{SERVICE}/{method}"
        metrics.REQUESTS.labels(route, status.name).inc()
        metrics.REQUEST_SECONDS.labels(route).observe(time.monotonic() - started)


def _status_of(kind: type[FoleyError]) -> grpc.StatusCode:
    return grpc.StatusCode[status_of(kind).grpc]


async def _refuse(
    context: grpc.aio.ServicerContext,
    request_id: str,
    status: grpc.StatusCode,
    code: str,
    message: str,
    retry_after_seconds: int | None,
) -> None:
    """End the call with an error, in plain metadata and in the details that libraries know.

    Source: google/rpc/error_details.proto.
    """
    message = message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 3] + "..."
    reason = error_details_pb2.ErrorInfo(
        reason=code, domain=SERVICE, metadata={"request_id": request_id}
    )
    details = [reason]
    trailing: list[tuple[str, str | bytes]] = [("foley-error-code", code)]
    if retry_after_seconds is not None:
        trailing.append(("retry-after", str(retry_after_seconds)))
        delay = duration_pb2.Duration(seconds=retry_after_seconds)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    rich = status_pb2.Status(code=status.value[0], message=message, details=packed)
    trailing.append(("grpc-status-details-bin", rich.SerializeToString()))
    await context.abort(status, message, tuple(trailing))

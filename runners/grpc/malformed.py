"""Messages that cannot be parsed: their callers are told so, as of every other mistake.

The library parses messages outside the methods. It would call a failure there the service's own,
with the name of an exception, and log its traceback.
"""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from foley.errors import RequestError
from runners.auth import ApiKeys
from runners.grpc import JOB_SERVICE, SERVICE
from runners.grpc.boundary import guard_call

Method = Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]

_MALFORMED = object()  # stands for a message that cannot be parsed
# By whether the caller and the service send a stream.
_MAKE_HANDLER = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class MessageCheck(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # it has no types
    """Ends a call with INVALID_ARGUMENT where a message of its caller cannot be parsed.

    Args:
        keys: one of them must come with a call of ours, also with a malformed one.
    """

    def __init__(self, keys: ApiKeys) -> None:
        self._keys = keys

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the handler of a call, with a check around its method."""
        handler = await continuation(handler_call_details)
        if handler is None:  # no such method
            return None
        kind = (handler.request_streaming, handler.response_streaming)
        method = (
            handler.unary_unary
            or handler.unary_stream
            or handler.stream_unary
            or handler.stream_stream
        )
        if not inspect.iscoroutinefunction(method):  # reflection, which is the library's generator
            return handler
        service, _, name = handler_call_details.method.strip("/").rpartition("/")
        keys = self._keys if service in (SERVICE, JOB_SERVICE) else ApiKeys([])
        if handler.request_streaming:
            checked = _check_each(method, name)
        else:
            checked = _check_one(method, name, service, keys)
        return _MAKE_HANDLER[kind](
            checked, _parse_or_mark(handler.request_deserializer), handler.response_serializer
        )


def _parse_or_mark(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def parse_or_mark(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return _MALFORMED

    return parse_or_mark


def _check_one(method: Method, name: str, service: str, keys: ApiKeys) -> Method:
    """Return a method that takes one message, and answers a malformed one with an error."""

    async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
        if request is not _MALFORMED:
            return await method(request, context)
        async with guard_call(context, name, keys, service=service):
            raise _make_error(name)

    return answer


def _check_each(method: Method, name: str) -> Method:
    """Return a method that takes a stream. A malformed message is raised where it is read."""

    async def read(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            if request is _MALFORMED:
                raise _make_error(name)
            yield request

    async def answer(requests: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> Any:
        return await method(read(requests), context)

    return answer


def _make_error(name: str) -> RequestError:
    return RequestError(
        f"a message to {name} cannot be parsed as protobuf; write it with stubs that were "
        "generated from proto/foley/v1/foley.proto, and texts in UTF-8"
    )

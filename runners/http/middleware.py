"""The outermost boundary of HTTP: request ids, errors as JSON, one log line for each request."""

import re
import time
import uuid
from collections.abc import Mapping
from http import HTTPStatus

import structlog
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foley.errors import FoleyError, UnauthorizedError
from runners import metrics, tracing
from runners.auth import ApiKeys
from runners.status import (
    INTERNAL_CODE,
    INTERNAL_MESSAGE,
    code_of_http_status,
    public_message,
    retry_after,
    status_of,
)

log = structlog.get_logger(__name__)

REQUEST_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", re.ASCII)  # `..` would leave its path
# Open without a key: probes, the description, and the page, which asks for a key and sends it with
# what it asks of the rest.
OPEN_PATHS = ("/livez", "/healthz", "/readyz", "/docs.json", "/ui")
# They come every few seconds, and would hide the requests in log and counts.
PROBES = ("/livez", "/healthz", "/readyz", "/metrics")
# What counts and traces call a path: few names, whatever paths are tried.
ROUTES = {
    "/v1/generate": "/v1/generate",
    "/v1/results": "/v1/results/{request_id}/{file}",
    "/v1/requests": "/v1/requests/{request_id}/cancel",
    "/v1/models": "/v1/models",
    "/docs.json": "/docs.json",
    "/ui": "/ui",
}


class ErrorMiddleware:
    """ASGI middleware: whatever goes wrong inside, the caller gets one form of answer.

    Errors raised inside are told by the status table. Error answers that others worded (routing,
    the server underneath) are dropped and told again in our form. Anything unforeseen is
    `internal`; its traceback goes to the log only.

    What is inside finds in the scope "foley.request_id" and "foley.owner": whose the request is.

    Args:
        app: what is inside.
        keys: that let a request in, before its body is read.
        health_path: that the load balancer asks, without a key.
    """

    def __init__(self, app: ASGIApp, keys: ApiKeys, health_path: str = "/ping") -> None:
        self.app = app
        self._keys = keys
        self._open_paths = (*OPEN_PATHS, health_path)
        self._quiet_paths = (*PROBES, health_path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # A visit to the page is dozens of files, and a connection for as long as its tab is open.
        if scope["path"] in self._quiet_paths or scope["path"].startswith("/ui/"):
            await self._serve(scope, receive, _Exchange(request_id_of(_headers(scope)), send))
            return
        route, started = _route(scope["path"]), time.monotonic()
        exchange = _Exchange(request_id_of(_headers(scope)), send)
        with tracing.request_span(f"{scope['method']} {route}", _headers(scope)) as span:
            structlog.contextvars.bind_contextvars(
                request_id=exchange.request_id, **tracing.log_fields(span)
            )
            try:
                await self._serve(scope, receive, exchange)
            finally:
                seconds = time.monotonic() - started
                code = scope.get("foley.code", exchange.code)
                metrics.REQUESTS.labels(route, exchange.status).inc()
                metrics.REQUEST_SECONDS.labels(route).observe(seconds)
                tracing.describe_request(span, scope["method"], route, exchange.status, code)
                log.info(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=exchange.status,
                    code=code,
                    seconds=round(seconds, 3),
                )
                structlog.contextvars.clear_contextvars()

    async def _serve(self, scope: Scope, receive: Receive, exchange: "_Exchange") -> None:
        scope["foley.request_id"] = exchange.request_id
        try:
            scope["foley.owner"] = self._owner(scope)
            await self.app(scope, receive, exchange.send)
            if exchange.foreign is not None:
                await exchange.refuse_foreign(scope, receive)
        except Exception as error:
            if exchange.status:  # half an answer is out: only a broken connection tells the truth
                raise
            if isinstance(error, FoleyError):
                await exchange.refuse(scope, receive, error)
                return
            log.exception("request_failed")
            await exchange.answer(scope, receive, 500, INTERNAL_CODE, INTERNAL_MESSAGE)

    def _owner(self, scope: Scope) -> str:
        path = scope["path"]
        is_open = path in self._open_paths or path.startswith("/ui/")
        is_open = is_open or scope["method"] == "OPTIONS"
        return "" if is_open else self._keys.owner_of(_headers(scope))


def _route(path: str) -> str:
    first = path.split("/", 3)[1:3]
    name = "/" + "/".join(first if first[0] == "v1" else first[:1])
    return ROUTES.get(name, "other")


class _Exchange:
    """The answer to one request, as it goes out."""

    def __init__(self, request_id: str, send: Send) -> None:
        self.request_id = request_id
        self.status = 0  # of the answer that went out
        self.code = ""
        self.foreign: Message | None = None  # the head of an error answer that others worded
        self._send = send

    async def send(self, message: Message) -> None:
        """Pass on what the application says, except errors that are not in our form."""
        if message["type"] == "http.response.start":
            if message["status"] >= 400:
                self.foreign = message
            else:
                self.status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", self.request_id.encode()),
                ]
        if self.foreign is None:
            await self._send(message)

    async def refuse(self, scope: Scope, receive: Receive, error: FoleyError) -> None:
        """Tell an error that was raised; a caller who left is answered too.

        BentoML waits for the head of every answer: without one the process could not end before
        BentoML's own timeout.
        """
        message = public_message(error)
        if message != str(error):
            log.warning("request_failed", code=error.code, exc_info=error)
        headers = {}
        if isinstance(error, UnauthorizedError):
            headers["WWW-Authenticate"] = "Bearer"
        if (seconds := retry_after(error)) is not None:
            headers["Retry-After"] = str(seconds)
        status = status_of(type(error)).http
        await self.answer(scope, receive, status, error.code, message, headers)

    async def refuse_foreign(self, scope: Scope, receive: Receive) -> None:
        """Tell an error answer of others in our form."""
        assert self.foreign is not None
        status = self.foreign["status"]
        kept = {
            name.decode(): value.decode("latin-1")
            for name, value in self.foreign.get("headers", ())
            if name.lower() in (b"allow", b"retry-after", b"content-range")
        }
        try:
            message = HTTPStatus(status).phrase.lower()
        except ValueError:
            message = "refused"
        await self.answer(scope, receive, status, code_of_http_status(status), message, kept)

    async def answer(
        self,
        scope: Scope,
        receive: Receive,
        status: int,
        code: str,
        message: str,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Send an error in the one form that all of them have."""
        self.status, self.code = status, code
        if scope["path"] not in PROBES:
            metrics.ERRORS.labels(code).inc()
        error = {"code": code, "message": message, "request_id": self.request_id}
        response = JSONResponse(
            {"error": error},
            status_code=status,
            headers={"X-Request-Id": self.request_id, **(headers or {})},
        )
        await response(scope, receive, self._send)


def request_id_of(headers: Mapping[str, str]) -> str:
    """The caller's own id when it is a plain one, else a new one."""
    given = headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}

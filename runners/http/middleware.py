"""The outermost boundary of HTTP: request ids, API keys, errors as JSON, logs and metrics."""

import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import structlog
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foley.errors import NotFoundError, UnauthorizedError
from runners import metrics, tracing
from runners.auth import ApiKeys, caller_of, request_id_of
from runners.http.origins import OriginCheck
from runners.http.responses import error_body
from runners.http.uploads import VERSION
from runners.status import PublicError, code_of_http_status, public_error

log = structlog.get_logger(__name__)

# Open without a key: probes, the description of the API, and the page, which asks its visitor for a
# key and sends it with its own requests.
OPEN_PATHS = ("/livez", "/healthz", "/readyz", "/", "/docs", "/docs.json", "/ui", "/editor")
# Probes come every few seconds, and would hide the requests in logs and metrics.
PROBE_PATHS = ("/livez", "/healthz", "/readyz", "/metrics")
UPLOADS = "/v1/uploads"
# The name of a path in metrics and traces: few names, whichever paths callers try.
ROUTE_NAMES = {
    "/v1/generate": "/v1/generate",
    "/v1/mix": "/v1/mix",
    "/v1/results": "/v1/results/{request_id}/{file}",
    "/v1/requests": "/v1/requests/{request_id}/cancel",
    "/v1/jobs": "/v1/jobs",
    "/v1/webhooks": "/v1/webhooks",
    UPLOADS: UPLOADS,
    "/v1/models": "/v1/models",
    "/": "/",
    "/docs": "/docs",
    "/docs.json": "/docs.json",
    "/ui": "/ui",
    "/editor": "/editor",
}
PAGES = ("/ui/", "/editor/")
OTHER = "other"
# What statuses of the router and of protocols mean here; others have HTTP's own phrase.
MESSAGES = {
    400: "the request is malformed; a Range, if it has one, is written bytes=0-99",
    412: f"Tus-Resumable: uploads speak version {VERSION} alone; send it in this header",
    416: "Range: it begins at or after the file's end; Content-Range has the file's size",
}
KEPT_HEADERS = (b"allow", b"retry-after", b"content-range", b"tus-version")


class ErrorMiddleware:
    """ASGI middleware that gives every error one form.

    An exception becomes the response that `runners.status` defines for it. An error response of the
    router or of BentoML is replaced by one in our form. An unforeseen exception becomes `internal`,
    and only the log has its traceback.

    The application inside finds "foley.request_id", "foley.owner", "foley.caller" and
    "foley.is_executor" in the scope. It may put "foley.code", the code of an error that its
    response tells after status 200.

    Args:
        app: the application inside.
        keys: one of them must come with a request, or it is refused before its body is read.
        health_path: path for load balancers, open without a key.
        hosts: names of this service; see `OriginCheck`.
        origins: pages of other sites that may send requests.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: ApiKeys,
        health_path: str = "/ping",
        hosts: Iterable[str] = (),
        origins: Iterable[str] = (),
    ) -> None:
        self.app = app
        self._origins = OriginCheck(hosts, origins, ("/livez", "/healthz", "/readyz", health_path))
        self._keys = keys
        self._open_paths = (*OPEN_PATHS, health_path)
        self._quiet_paths = (*PROBE_PATHS, health_path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, headers = scope["path"], _decode_headers(scope)
        response = _ErrorResponder(
            request_id_of(headers), send, counts_errors=path not in self._quiet_paths
        )
        # A visit to the page is dozens of files, and a connection for as long as its tab is open.
        # What changes something there is counted and logged as elsewhere.
        is_reading = path.startswith(PAGES) and scope["method"] in ("GET", "HEAD")
        if path in self._quiet_paths or is_reading:
            await self._serve(scope, receive, response, headers)
            return
        route, started = _route_name(path), time.monotonic()
        with tracing.start_request_span(f"{scope['method']} {route}", headers) as span:
            structlog.contextvars.bind_contextvars(
                request_id=response.request_id, **tracing.make_log_fields(span)
            )
            try:
                await self._serve(scope, receive, response, headers)
            finally:
                seconds = time.monotonic() - started
                code = scope.get("foley.code", response.code)
                metrics.REQUESTS.labels(route, response.status).inc()
                metrics.REQUEST_SECONDS.labels(route).observe(seconds)
                tracing.describe_request(span, scope["method"], route, response.status, code)
                log.info(
                    "request",
                    method=scope["method"],
                    path=path,
                    status=response.status,
                    code=code,
                    seconds=round(seconds, 3),
                )
                structlog.contextvars.clear_contextvars()

    async def _serve(
        self, scope: Scope, receive: Receive, response: "_ErrorResponder", headers: dict[str, str]
    ) -> None:
        scope["foley.request_id"] = response.request_id
        try:
            path = scope["path"]
            address, _ = scope.get("server") or (None, None)
            self._origins.check(scope["method"], path, headers, address)
            scope["foley.owner"] = self._owner_of(scope, headers)
            address, _ = scope.get("client") or ("", None)
            scope["foley.caller"] = caller_of(scope["foley.owner"], address)
            scope["foley.is_executor"] = self._keys.is_executor(headers)
            # BentoML has routes of its own, such as a start page that loads foreign scripts.
            if _route_name(path) == OTHER and path not in self._quiet_paths:
                raise NotFoundError("there is nothing at this path")
            await self.app(scope, receive, response.send)
            if response.replaced is not None:
                await response.send_replacement(scope, receive)
        except Exception as error:
            if response.status:  # the head was sent: only breaking the connection shows an error
                raise
            public = public_error(error)
            if public.redacted:
                log.error("request_failed", code=public.code, exc_info=error)
            await response.send_error(scope, receive, public)

    def _owner_of(self, scope: Scope, headers: dict[str, str]) -> str:
        path = scope["path"]
        is_open = path in self._open_paths or path.startswith(PAGES)
        is_open = is_open or scope["method"] == "OPTIONS"
        return "" if is_open else self._keys.owner_of(headers)


class _ErrorResponder:
    """The response to one request: passes successes on, and writes errors in our form.

    Attributes:
        request_id: sent as X-Request-Id.
        status: HTTP status of the response; 0 until its head was sent.
        code: of the error that was sent, or "".
        replaced: head of an error response of the application, which is not passed on.
    """

    def __init__(self, request_id: str, send: Send, *, counts_errors: bool) -> None:
        self.request_id = request_id
        self.status = 0
        self.code = ""
        self.replaced: Message | None = None
        self._send = send
        self._counts_errors = counts_errors

    async def send(self, message: Message) -> None:
        """Pass a message of the application on, unless it belongs to an error response."""
        if message["type"] == "http.response.start":
            if message["status"] >= 400:
                self.replaced = message
            else:
                self.status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", self.request_id.encode()),
                ]
        if self.replaced is None:
            await self._send(message)

    async def send_error(self, scope: Scope, receive: Receive, error: PublicError) -> None:
        """Send an error, also to a caller who has disconnected.

        BentoML waits for the head of every response: without one, the process could not end before
        BentoML's own timeout.
        """
        headers = {}
        if error.code == UnauthorizedError.code:
            headers["WWW-Authenticate"] = "Bearer"
        if error.retry_after_seconds is not None:
            headers["Retry-After"] = str(error.retry_after_seconds)
        self.code = error.code
        body = error_body(error.code, error.message, self.request_id, error.retry_after_seconds)
        await self._send_json(scope, receive, error.status.http, body, headers)

    async def send_replacement(self, scope: Scope, receive: Receive) -> None:
        """Send an error response of the application in our form."""
        assert self.replaced is not None
        status = self.replaced["status"]
        headers = {
            name.decode(): value.decode("latin-1")
            for name, value in self.replaced.get("headers", ())
            if name.lower() in KEPT_HEADERS
        }
        try:
            message = MESSAGES.get(status) or HTTPStatus(status).phrase.lower()
        except ValueError:
            message = "refused"
        self.code = code_of_http_status(status)
        body = error_body(self.code, message, self.request_id)
        await self._send_json(scope, receive, status, body, headers)

    async def _send_json(
        self,
        scope: Scope,
        receive: Receive,
        status: int,
        body: dict[str, Any],
        headers: dict[str, str],
    ) -> None:
        self.status = status
        if self._counts_errors:
            metrics.ERRORS.labels(self.code).inc()
        headers["X-Request-Id"] = self.request_id
        if _route_name(scope["path"]) == UPLOADS:
            headers["Tus-Resumable"] = VERSION  # the protocol has it in every response
        response = JSONResponse(body, status_code=status, headers=headers)
        await response(scope, receive, self._send)


def _route_name(path: str) -> str:
    first = path.split("/", 3)[1:3]
    if not first or (first[0] == "" and path != "/"):  # such as `OPTIONS *`
        return OTHER
    name = "/" + "/".join(first if first[0] == "v1" else first[:1])
    return ROUTE_NAMES.get(name, OTHER)


def _decode_headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}

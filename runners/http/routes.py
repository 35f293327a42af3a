"""The HTTP routes of an API process.

BentoML takes the routes with the service's class, before it makes an instance in each process. So
they look the instance up at each request.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from runners.http.generate import GenerateEndpoint
from runners.http.handlers import Handlers
from runners.http.health import HealthCheck
from runners.http.mix import MIX_PATH
from runners.http.negotiation import EVENTS_PATH
from runners.http.openapi import HEADERS

# What pages of the sites in FOLEY_CORS_ORIGINS may send and read.
CORS: dict[str, Any] = {
    "allow_methods": ["GET", "POST", "PATCH", "DELETE", "HEAD"],
    "allow_headers": [
        *("Authorization", "X-Api-Key", "X-Request-Id"),
        *("Idempotency-Key", "Last-Event-ID"),
        *("Tus-Resumable", "Upload-Length", "Upload-Offset", "Upload-Metadata"),
        "X-HTTP-Method-Override",
    ],
    "expose_headers": [
        *HEADERS,
        *("Retry-After", "Location", "Tus-Resumable", "Tus-Version", "Tus-Max-Size"),
        *("Tus-Extension", "Upload-Length", "Upload-Offset", "Upload-Expires", "Upload-Metadata"),
    ],
}


class Api(Protocol):
    """The instance that answers in a process.

    Attributes:
        generate: POST /v1/generate.
        mix: POST /v1/mix.
        handlers: the other routes.
        health: the load balancer's route.
        page: /ui.
        editor: /editor.
    """

    generate: GenerateEndpoint
    mix: GenerateEndpoint
    handlers: Handlers
    health: HealthCheck
    page: ASGIApp
    editor: ASGIApp


def build_routes(
    find_api: Callable[[], Api], health_path: str, job_routes: Sequence[BaseRoute] = ()
) -> Starlette:
    """Return the application with all routes.

    Args:
        find_api: returns the instance of this process.
        health_path: path for load balancers.
        job_routes: of `runners.http.jobs`, where the service takes jobs.
    """

    def bind(
        method: Callable[[Handlers, Request], Awaitable[Response]],
    ) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            return await method(find_api().handlers, request)

        return handle

    async def lead_to_page(_request: Request) -> Response:
        # Relative, so that it also leads there below the path of a proxy.
        return RedirectResponse("ui/")

    async def lead_to_editor(_request: Request) -> Response:
        return RedirectResponse("editor/")

    async def check_health(_request: Request) -> Response:
        return await find_api().health.respond()

    return Starlette(
        routes=[
            Route("/v1/generate", _Deferred(lambda: find_api().generate), methods=["POST"]),
            Route(EVENTS_PATH, _Deferred(lambda: find_api().generate), methods=["POST"]),
            Route(MIX_PATH, _Deferred(lambda: find_api().mix), methods=["POST"]),
            Route("/v1/results/{request_id}/{file}", bind(Handlers.get_result)),
            Route(
                "/v1/requests/{request_id}/cancel",
                bind(Handlers.cancel_request),
                methods=["POST"],
            ),
            *job_routes,
            Route("/v1/models", bind(Handlers.list_models)),
            Route(health_path, check_health),
            Route("/metrics", bind(Handlers.get_metrics)),  # in place of BentoML's
            Route("/docs.json", bind(Handlers.get_openapi)),
            Route("/docs", bind(Handlers.get_docs)),
            Route("/", lead_to_page),  # in place of BentoML's page, which loads a tracker
            Route("/ui", lead_to_page),  # Starlette's own redirect would name host and path
            Mount("/ui", _Deferred(lambda: find_api().page)),
            Route("/editor", lead_to_editor),
            Mount("/editor", _Deferred(lambda: find_api().editor)),
        ]
    )


class _Deferred:
    """An ASGI application that is looked up at each request."""

    def __init__(self, find: Callable[[], ASGIApp]) -> None:
        self._find = find

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._find()(scope, receive, send)

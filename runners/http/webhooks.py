"""The routes of webhooks that could not be delivered: /v1/webhooks."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from runners.durable.description import describe_webhook
from runners.http.parameters import find_root, read_page

if TYPE_CHECKING:  # the queue's library takes a second to import
    from runners.durable.webhooks import WebhookStore


class WebhookHandlers:
    """Answers requests about webhooks.

    `ErrorMiddleware` around them has put "foley.owner" into the scope.

    Args:
        webhooks: of the jobs of this service.
    """

    def __init__(self, webhooks: "WebhookStore") -> None:
        self._webhooks = webhooks

    async def list_failed(self, request: Request) -> Response:
        """GET /v1/webhooks/failed: what was given up, the latest first.

        Raises:
            ParameterError: a parameter is out of bounds.
        """
        limit, offset = read_page(request)
        found = await asyncio.to_thread(
            self._webhooks.list_failed,
            request.scope["foley.owner"],
            limit=limit + 1,
            offset=offset,
        )
        described = [describe_webhook(webhook, find_root(request)) for webhook in found[:limit]]
        more = {"next_offset": offset + limit} if len(found) > limit else {}
        return JSONResponse({"webhooks": described, **more})

    async def resend(self, request: Request) -> Response:
        """POST /v1/webhooks/{job_id}/resend: send a webhook again, at once.

        Raises:
            NotFoundError: there is none, or its job belongs to another key.
            ConflictError: its job has not ended.
        """
        webhook = await asyncio.to_thread(
            self._webhooks.resend, request.scope["foley.owner"], request.path_params["job_id"]
        )
        return JSONResponse(describe_webhook(webhook, find_root(request)))


class _Api(Protocol):
    webhook_handlers: WebhookHandlers | None


def build_webhook_routes(find_api: Callable[[], _Api]) -> list[Route]:
    """Return the routes of a service that takes jobs.

    Args:
        find_api: returns the instance of this process.
    """

    def bind(
        method: Callable[[WebhookHandlers, Request], Awaitable[Response]],
    ) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            handlers = find_api().webhook_handlers
            assert handlers is not None
            return await method(handlers, request)

        return handle

    return [
        Route("/v1/webhooks/failed", bind(WebhookHandlers.list_failed), methods=["GET"]),
        Route("/v1/webhooks/{job_id}/resend", bind(WebhookHandlers.resend), methods=["POST"]),
    ]

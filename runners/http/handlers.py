"""The handlers of all HTTP routes but POST /v1/generate."""

import asyncio
from collections.abc import Callable, Mapping

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from foley.errors import NotFoundError
from runners import metrics
from runners.http import openapi
from runners.http.docs_page import render_docs
from runners.http.responses import KeptFile
from runners.jobs.cancellation import CancellationRegistry
from runners.jobs.results import ResultStore
from runners.jobs.run import GenerationService
from runners.settings import Settings


class Handlers:
    """Answers requests that need no work of the model.

    `ErrorMiddleware` around them has put "foley.request_id" and "foley.owner" into the scope.

    Args:
        settings: described by the OpenAPI document.
        service: knows the model.
        registry: of the requests that can be cancelled.
        results: that can be fetched.
        count_jobs: returns the durable jobs that have not ended, by their state, or None where that
            cannot be found out; None without durable jobs.
    """

    def __init__(
        self,
        settings: Settings,
        service: GenerationService,
        registry: CancellationRegistry,
        results: ResultStore,
        count_jobs: Callable[[], Mapping[str, int] | None] | None = None,
    ) -> None:
        self._settings = settings
        self._service = service
        self._registry = registry
        self._results = results
        self._count_jobs = count_jobs

    async def get_result(self, request: Request) -> Response:
        """GET /v1/results/{request_id}/{file}: one file, or a range of it.

        Raises:
            NotFoundError: it does not exist, has expired, or belongs to another key.
        """
        path = await asyncio.to_thread(
            self._results.find,
            request.scope["foley.owner"],
            request.path_params["request_id"],
            request.path_params["file"],
        )
        return KeptFile(path)

    async def cancel_request(self, request: Request) -> Response:
        """POST /v1/requests/{request_id}/cancel.

        Raises:
            NotFoundError: no such request is active, or it belongs to another key.
        """
        owner, request_id = request.scope["foley.owner"], request.path_params["request_id"]
        if not self._registry.cancel(owner, request_id):
            raise NotFoundError("no request of this id is being worked on")
        return JSONResponse({"cancelled": True})

    async def list_models(self, _request: Request) -> Response:
        """GET /v1/models: the model that is served, and its licence.

        Raises:
            NotReadyError: it is loading.
            ModelFailedError: it could not be loaded.
        """
        model = await self._service.ask_model()
        return JSONResponse({"models": [model.to_public()]})

    async def get_metrics(self, _request: Request) -> Response:
        """GET /metrics: the counts of all processes."""
        counts = await asyncio.to_thread(self._count_jobs) if self._count_jobs else None
        for state, count in (counts or {}).items():
            metrics.JOBS.labels(state).set(count)
        text = await asyncio.to_thread(metrics.render_metrics)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    async def get_openapi(self, _request: Request) -> Response:
        """GET /docs.json, in place of BentoML's, which describes neither forms nor errors."""
        return JSONResponse(openapi.build_document(self._settings))

    async def get_docs(self, _request: Request) -> Response:
        """GET /docs: the same document for people."""
        return HTMLResponse(render_docs(openapi.build_document(self._settings)))

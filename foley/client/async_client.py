"""The client for asyncio. `foley.client.sync_client` documents the methods."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

import httpx

from foley.atomic import atomic_path
from foley.client.async_jobs import AsyncJobs
from foley.client.request import Clip, OnSound, OnUpdate, PreparedRequest, RequestOptions
from foley.client.response import (
    ResponseReader,
    check_size,
    parse_error_response,
    parse_models,
)
from foley.client.results import RemoteFile, RemoteGeneration, RemoteModel, RemotePiece
from foley.client.transport import (
    RETRYABLE_ERRORS,
    RetryPolicy,
    get_cancel_path,
    get_result_path,
    make_client_settings,
    map_connection_errors,
    map_write_errors,
)
from foley.errors import ConnectionFailedError, NotFoundError, NotReadyError


class AsyncFoleyClient:
    """A client of one service with the methods of `FoleyClient` as coroutines.

    The tasks of one event loop may share it.

    Args:
        base_url: as for `FoleyClient`.
        api_key: as for `FoleyClient`.
        timeout_seconds: as for `FoleyClient`.
        transport: sends the requests; None for that of httpx.

    Attributes:
        jobs: the durable jobs of the service.

    Raises:
        ParameterError: the address or the key is malformed.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout_seconds: float | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        settings = make_client_settings(base_url, api_key, timeout_seconds)
        self._http = httpx.AsyncClient(**settings, transport=transport)
        self._timeout_seconds = timeout_seconds
        self.jobs = AsyncJobs(self._request, self.download)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def generate(
        self,
        clip: Clip | None,
        *,
        destination: Path | str | None = None,
        output: Path | str | None = None,
        request_id: str | None = None,
        on_update: OnUpdate | None = None,
        on_sound: OnSound | None = None,
        max_wait_seconds: float = 0.0,
        **options: Unpack[RequestOptions],
    ) -> RemoteGeneration:
        """See `FoleyClient.generate`. Cancelling the task cancels the request."""
        if on_sound is not None:
            options["pieces"] = True
        request = PreparedRequest(
            clip, options, request_id=request_id, destination=destination, output=output
        )
        retries = RetryPolicy(max_wait_seconds)
        while True:
            try:
                result = await self._generate(request, on_update, on_sound)
                break
            except RETRYABLE_ERRORS as error:
                await asyncio.sleep(retries.compute_delay(error))
        pairs = request.pair_result_paths(result)
        saved = tuple([await self.download(file, path) for file, path in pairs])
        return result.model_copy(update={"saved": saved})

    async def download(self, file: RemoteFile | RemotePiece, path: Path | str) -> Path:
        """See `FoleyClient.download`."""
        path = Path(path)
        num_bytes = 0
        with map_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as partial, partial.open("wb") as output:
                async with self._request("GET", get_result_path(file)) as response:
                    async for chunk in response.aiter_bytes():
                        num_bytes += output.write(chunk)
                check_size(file, num_bytes)
        return path

    async def read(self, file: RemoteFile | RemotePiece) -> bytes:
        """See `FoleyClient.read`."""
        async with self._request("GET", get_result_path(file)) as response:
            content = await response.aread()
        check_size(file, len(content))
        return content

    async def cancel(self, request_id: str) -> bool:
        """See `FoleyClient.cancel`."""
        try:
            async with self._request("POST", get_cancel_path(request_id)) as response:
                await response.aread()
        except NotFoundError:
            return False
        return True

    async def list_models(self) -> list[RemoteModel]:
        """See `FoleyClient.list_models`."""
        async with self._request("GET", "/v1/models") as response:
            return parse_models(await response.aread())

    async def is_ready(self) -> bool:
        """See `FoleyClient.is_ready`."""
        try:
            async with self._request("GET", "/readyz") as response:
                await response.aread()
        except NotReadyError:
            return False
        return True

    async def _generate(
        self, request: PreparedRequest, on_update: OnUpdate | None, on_sound: OnSound | None
    ) -> RemoteGeneration:
        reader = ResponseReader(on_update, self._timeout_seconds, on_sound)
        with request.open_form() as form:
            async with self._request("POST", "/v1/generate", **form) as response:
                async for chunk in response.aiter_bytes():
                    if (result := reader.feed(chunk)) is not None:
                        return result
        raise ConnectionFailedError(f"{self._http.base_url} broke off before the result; try again")

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, **content: object
    ) -> AsyncIterator[httpx.Response]:
        with map_connection_errors(self._http.base_url):
            async with self._http.stream(method, path, **content) as response:  # type: ignore[arg-type]
                if not response.is_success:
                    body = await response.aread()
                    raise parse_error_response(response.status_code, response.headers, body)
                yield response

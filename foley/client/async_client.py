"""The client for asyncio; `foley.client.sync_client` has the words about it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

import httpx

from foley.atomic import complete_or_absent
from foley.client import transport
from foley.client.results import RemoteFile, RemoteGeneration, RemoteModel
from foley.client.transport import Call, Clip, OnUpdate, Options
from foley.errors import ConnectionFailedError, NotFoundError, NotReadyError


class AsyncFoleyClient:
    """As `FoleyClient`, to be awaited; one event loop's tasks may share one."""

    def __init__(
        self, base_url: str, *, api_key: str | None = None, timeout_seconds: float | None = None
    ) -> None:
        self._http = httpx.AsyncClient(**transport.connection(base_url, api_key, timeout_seconds))
        self._timeout_seconds = timeout_seconds

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
        """Give the connections up."""
        await self._http.aclose()

    async def generate(
        self,
        clip: Clip,
        *,
        destination: Path | str | None = None,
        request_id: str | None = None,
        on_update: OnUpdate | None = None,
        max_wait_seconds: float = 0.0,
        **options: Unpack[Options],
    ) -> RemoteGeneration:
        """As `FoleyClient.generate`. Cancelling the task cancels the request."""
        call = Call(clip, options, request_id=request_id, on_update=on_update)
        patience = transport.Patience(max_wait_seconds)
        while True:
            try:
                made = await self._generate(call)
                break
            except transport.PASSING as error:
                await asyncio.sleep(patience.wait_after(error))
        if destination is None:
            return made
        saved = [
            await self.download(file, path)
            for file, path in call.destinations(made, Path(destination))
        ]
        return made.model_copy(update={"saved": tuple(saved)})

    async def download(self, file: RemoteFile, path: Path | str) -> Path:
        """As `FoleyClient.download`."""
        path = Path(path)
        num_bytes = 0
        with transport.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with complete_or_absent(path) as partial, partial.open("wb") as output:
                async with self._answer("GET", transport.result_path(file)) as response:
                    async for chunk in response.aiter_bytes():
                        num_bytes += output.write(chunk)
                transport.check_size(file, num_bytes)
        return path

    async def read(self, file: RemoteFile) -> bytes:
        """As `FoleyClient.read`."""
        async with self._answer("GET", transport.result_path(file)) as response:
            content = await response.aread()
        transport.check_size(file, len(content))
        return content

    async def cancel(self, request_id: str) -> bool:
        """As `FoleyClient.cancel`."""
        try:
            async with self._answer("POST", transport.cancel_path(request_id)) as response:
                await response.aread()
        except NotFoundError:
            return False
        return True

    async def models(self) -> list[RemoteModel]:
        """As `FoleyClient.models`."""
        async with self._answer("GET", "/v1/models") as response:
            return transport.models_in(await response.aread())

    async def ready(self) -> bool:
        """As `FoleyClient.ready`."""
        try:
            async with self._answer("GET", "/readyz") as response:
                await response.aread()
        except NotReadyError:
            return False
        return True

    async def _generate(self, call: Call) -> RemoteGeneration:
        stream = transport.Stream(call, self._timeout_seconds)
        with call.form() as form:
            async with self._answer("POST", "/v1/generate", **form) as response:
                async for chunk in response.aiter_bytes():
                    if (made := stream.feed(chunk)) is not None:
                        return made
        raise ConnectionFailedError(f"{self._http.base_url} broke off before the result; try again")

    @asynccontextmanager
    async def _answer(
        self, method: str, path: str, **content: object
    ) -> AsyncIterator[httpx.Response]:
        with transport.connection_errors(self._http.base_url):
            async with self._http.stream(method, path, **content) as response:  # type: ignore[arg-type]
                if response.status_code != 200:
                    body = await response.aread()
                    raise transport.refusal(response.status_code, response.headers, body)
                yield response

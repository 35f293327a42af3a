"""The one call that a request makes to the GPU runner: it holds the request's place there."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from types import TracebackType
from typing import Protocol, Self

import aiohttp
from bentoml.exceptions import BentoMLException

from foley.errors import RunnerLostError
from runners.messages import (
    ModelStatus,
    OnPiece,
    OnProgressUpdate,
    RunnerEvent,
    RunnerRequest,
    RunnerResult,
)

RUNNER_SECONDS = 1.0  # how long the runner may take to answer a short call


class Runner(Protocol):
    """The service `GpuRunner`, as the API's processes call it."""

    def generate(self, *, request: RunnerRequest) -> AsyncIterator[str]:
        """Yield the events of a request.

        Args:
            request: asks for a place.

        Yields:
            parts of lines of JSON, one line for each `RunnerEvent`.
        """

    async def cancel(self, *, request_id: str) -> bool:
        """End a request; returns whether there was one."""

    async def status(self) -> ModelStatus:
        """Return the state of the model."""


class RunnerCall:
    """A context in which a request holds a place in the runner.

    After SIGTERM, a second call of a request fails (`service.py`, note 3). So this call is opened
    before the clip is decoded, and stays open until the outcome. However the block ends, the place
    is free afterwards.

    Args:
        runner: the service.
        request: asks for the place. The caller announces its frames inside the block.

    Raises:
        BusyError: all places are taken; raised on entering.
        NotReadyError: the model is not ready; raised on entering.
        RunnerLostError: the runner's process ended, or could not be reached.
    """

    def __init__(self, runner: Runner, request: RunnerRequest) -> None:
        self._runner = runner
        self._request = request
        self._events = read_events(runner.generate(request=request))
        self._ended = False  # whether the runner has ended the request

    async def __aenter__(self) -> Self:
        try:
            event = await self._read_event()
        except BaseException:
            await self._close()
            raise
        assert event.admitted
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._close()

    async def wait_for_result(
        self, on_update: OnProgressUpdate, on_piece: OnPiece = lambda piece: None
    ) -> RunnerResult:
        """Return the result, once the waveforms are in the request's folder.

        Args:
            on_update: called with the progress.
            on_piece: called with each piece of a long sound that is final.

        Raises:
            FoleyError: the request failed.
            RunnerLostError: the runner's process ended.
        """
        while True:
            event = await self._read_event()
            if event.result is not None:
                self._ended = True
                return event.result
            if event.piece is not None:
                on_piece(event.piece)
                continue
            assert event.progress is not None
            on_update(event.progress)

    async def _read_event(self) -> RunnerEvent:
        try:
            event = await anext(self._events)
        except (StopAsyncIteration, aiohttp.ClientError) as error:
            self._ended = True
            raise RunnerLostError("the model's process was lost; try again later") from error
        if event.error is not None:
            self._ended = True
            raise event.to_error()
        return event

    async def _close(self) -> None:
        if not self._ended:
            # BentoML's client keeps the connection open when its stream is closed. If this call
            # fails too, as after SIGTERM, the runner notices that the request's folder is removed.
            with contextlib.suppress(TimeoutError, aiohttp.ClientError, BentoMLException):
                async with asyncio.timeout(RUNNER_SECONDS):
                    await self._runner.cancel(request_id=self._request.id)
        await self._events.aclose()


async def read_events(chunks: AsyncIterator[str]) -> AsyncGenerator[RunnerEvent, None]:
    """Yield the events in a stream of lines that BentoML cuts at arbitrary places.

    Args:
        chunks: parts of lines of JSON.
    """
    rest = ""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split("\n")
        for line in lines:
            yield RunnerEvent.model_validate_json(line)

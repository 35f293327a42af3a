"""The call that holds a request's place in the runner, against a scripted runner."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import aiohttp
import pytest

from foley.errors import BusyError, ModelError, RunnerLostError, VideoDecodeError
from foley.request import GenerationRequest
from foley.types import Stage
from runners.jobs.runner_call import RunnerCall, read_events
from runners.messages import (
    ModelStatus,
    ProgressUpdate,
    RunnerEvent,
    RunnerRequest,
    RunnerResult,
)

REQUEST = RunnerRequest(
    id="one", folder="/nowhere", options=GenerationRequest(), timeout_seconds=60
)
ADMITTED = RunnerEvent(admitted=True)
QUEUED = RunnerEvent(progress=ProgressUpdate(stage=Stage.QUEUE, queue_position=0))
RESULT = RunnerEvent(
    result=RunnerResult(
        seeds=(1,), sample_rate=48_000, duration_seconds=1.0, timings={}, notices=()
    )
)


class ScriptedRunner:
    """Gives the events of a script; after the last one it fails, ends, or stays silent.

    Attributes:
        cancelled: ids of the requests that were cancelled.
    """

    def __init__(self, script: Sequence[RunnerEvent | Exception], *, silent: bool = False) -> None:
        self.cancelled: list[str] = []
        self._script = script
        self._silent = silent

    async def generate(self, *, request: RunnerRequest) -> AsyncIterator[str]:
        assert request is REQUEST
        for item in self._script:
            if isinstance(item, Exception):
                raise item
            yield item.to_line()
        if self._silent:
            await asyncio.Event().wait()

    async def cancel(self, *, request_id: str) -> bool:
        self.cancelled.append(request_id)
        return True

    async def status(self) -> ModelStatus:
        pytest.fail("a call asked for the status of the model")


def test_a_call_gives_progress_and_the_result_and_cancels_nothing() -> None:
    async def run() -> None:
        runner = ScriptedRunner([ADMITTED, QUEUED, RESULT])
        updates: list[ProgressUpdate] = []
        async with RunnerCall(runner, REQUEST) as call:
            assert updates == []
            assert await call.wait_for_result(updates.append) == RESULT.result
        assert updates == [QUEUED.progress]
        assert runner.cancelled == []

    asyncio.run(run())


def test_a_refusal_is_raised_on_entering_with_the_time_to_try_again() -> None:
    busy = BusyError("full")
    busy.retry_after_seconds = 7.5

    async def run() -> None:
        runner = ScriptedRunner([RunnerEvent.from_error(busy)])
        with pytest.raises(BusyError, match="full") as caught:
            async with RunnerCall(runner, REQUEST):
                raise AssertionError("it was admitted")
        assert caught.value.retry_after_seconds == 7.5
        assert runner.cancelled == []

    asyncio.run(run())


def test_an_error_inside_the_block_frees_the_place() -> None:
    async def run() -> None:
        runner = ScriptedRunner([ADMITTED], silent=True)
        with pytest.raises(VideoDecodeError):
            async with RunnerCall(runner, REQUEST):
                raise VideoDecodeError("not a video")
        assert runner.cancelled == ["one"]

    asyncio.run(run())


@pytest.mark.parametrize("script", [[], [ADMITTED], [ADMITTED, QUEUED]])
def test_cancelling_frees_the_place_before_and_after_the_admission(
    script: list[RunnerEvent],
) -> None:
    async def call_runner(runner: ScriptedRunner) -> None:
        async with RunnerCall(runner, REQUEST) as call:
            await call.wait_for_result(lambda update: None)

    async def run() -> None:
        runner = ScriptedRunner(script, silent=True)
        working = asyncio.create_task(call_runner(runner))
        await asyncio.sleep(0.05)
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        assert runner.cancelled == ["one"]

    asyncio.run(run())


def test_an_error_of_the_runner_is_raised_as_its_class() -> None:
    async def run() -> None:
        failed = RunnerEvent.from_error(ModelError("not finite"))
        runner = ScriptedRunner([ADMITTED, QUEUED, failed])
        with pytest.raises(ModelError, match="not finite"):
            async with RunnerCall(runner, REQUEST) as call:
                await call.wait_for_result(lambda update: None)
        assert runner.cancelled == []

    asyncio.run(run())


@pytest.mark.parametrize(
    "script",
    [[], [ADMITTED], [aiohttp.ClientError()], [ADMITTED, QUEUED, aiohttp.ClientPayloadError()]],
)
def test_a_runner_that_ends_is_lost(script: list[RunnerEvent | Exception]) -> None:
    async def run() -> None:
        runner = ScriptedRunner(script)
        with pytest.raises(RunnerLostError):
            async with RunnerCall(runner, REQUEST) as call:
                await call.wait_for_result(lambda update: None)
        assert runner.cancelled == []

    asyncio.run(run())


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_events_are_read_from_chunks_that_are_cut_anywhere(size: int) -> None:
    events = [ADMITTED, QUEUED, RESULT]
    text = "".join(event.to_line() for event in events)

    async def cut() -> AsyncIterator[str]:
        for start in range(0, len(text), size):
            yield text[start : start + size]

    async def run() -> list[RunnerEvent]:
        return [event async for event in read_events(cut())]

    assert asyncio.run(run()) == events

"""What an API process knows of the GPU process."""

import asyncio
import time
from typing import Any

import pytest

from foley.errors import NotReadyError
from runners.jobs import run
from runners.jobs.run import GenerationService
from runners.messages import ModelStatus
from runners.settings import Settings


class Runner:
    """A GPU process that answers, or hangs."""

    hangs = False

    async def status(self) -> ModelStatus:
        if self.hangs:
            await asyncio.sleep(3600)
        return ModelStatus(state="loading")


def test_a_runner_that_answered_and_then_hangs_is_told_after_three_watchdogs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "RUNNER_SECONDS", 0.01)
    runner: Any = Runner()

    async def ask(service: GenerationService) -> bool:
        with pytest.raises(NotReadyError):
            await service.ask_model()
        return service.is_runner_silent()

    async def run_all() -> None:
        service = GenerationService(
            Settings(watchdog_seconds=0.1), runner, sandbox=None, marks=None
        )  # type: ignore[arg-type]
        runner.hangs = True
        started = time.monotonic()
        while time.monotonic() - started < 0.4:  # it may take its time to start
            assert not await ask(service)
        runner.hangs = False
        assert not await ask(service)
        runner.hangs = True
        while not await ask(service):
            pass  # the test's own time limit is what ends a wrong program
        runner.hangs = False
        assert not await ask(service)
        unwatched = GenerationService(
            Settings(watchdog_seconds=0), runner, sandbox=None, marks=None
        )  # type: ignore[arg-type]
        assert not await ask(unwatched)

    asyncio.run(run_all())

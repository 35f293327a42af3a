"""What an API process knows of the GPU process."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from foley.errors import NotReadyError
from runners.handoff import MAX_FRAMES_BYTES
from runners.jobs import run
from runners.jobs.job import GenerationJob, GenerationOptions
from runners.jobs.run import GenerationService
from runners.jobs.scratch import Scratch
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
            Settings(watchdog_seconds=0.1), runner, scratch=None, sandbox=None, marks=None
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
            Settings(watchdog_seconds=0), runner, scratch=None, sandbox=None, marks=None
        )  # type: ignore[arg-type]
        assert not await ask(unwatched)

    asyncio.run(run_all())


def test_a_child_that_was_taken_over_gets_no_more_room_than_a_clip_may_need(
    tmp_path: Path,
) -> None:
    scratch = Scratch(tmp_path)
    settings = Settings(max_clip_seconds=15)
    service = GenerationService(
        settings,
        runner=None,  # type: ignore[arg-type]
        scratch=scratch,
        sandbox=None,  # type: ignore[arg-type]
        marks=None,
    )
    with scratch.workspace() as folder:
        job = GenerationJob(
            owner="",
            caller="me",
            request_id="",
            folder=folder,
            options=GenerationOptions(),
            format="wav",
        )
        nonsense = [None, [], {}, {"room": "x", "seconds": 1}, {"room": 1, "seconds": []}]
        for question in nonsense:
            assert "error" in service._answer_with_room(job, question)
        assert not scratch._claims
        assert service._answer_with_room(job, {"room": 2**62, "seconds": 1e300}) == {}
        (claim,) = scratch._claims.values()
        assert claim.num_bytes == MAX_FRAMES_BYTES + job.measure_result(15)
    scratch.close()

"""The end of a process: what it still takes, and when it cuts work off."""

import asyncio

import pytest

from foley.errors import EndingError
from runners.jobs.deadline import run_until_cancelled
from runners.jobs.ending import Ending
from tests.patience import scale


def test_accepted_work_is_waited_for_and_new_work_is_refused() -> None:
    async def run() -> None:
        ending = Ending(scale(60))
        ending.check()
        with ending.accept_work("work"):
            draining = asyncio.create_task(ending.drain())
            await asyncio.sleep(0)
            with pytest.raises(EndingError):
                ending.check()
            with pytest.raises(EndingError), ending.accept_work("work"):
                raise AssertionError("new work was taken")
            finished, _ = await asyncio.wait({draining}, timeout=0.2)
            assert not finished
        assert await asyncio.wait_for(draining, scale(20)) > 0

    asyncio.run(run())


def test_work_that_goes_on_is_cut_off_within_the_grace_period() -> None:
    async def work(ending: Ending) -> None:
        with ending.accept_work("work"):
            await run_until_cancelled(asyncio.sleep(3600), ending.wait_for_cut_off())

    async def run() -> None:
        ending = Ending(0.5)
        working = asyncio.create_task(work(ending))
        await asyncio.sleep(0)
        await ending.drain()
        with pytest.raises(EndingError, match="was not done in time"):
            await asyncio.wait_for(working, scale(20))

    asyncio.run(run())


def test_a_process_without_work_ends_at_once() -> None:
    assert asyncio.run(Ending(3600).drain()) > 3590

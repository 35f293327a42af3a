"""Turns between callers at the media tasks."""

import asyncio

import pytest

from runners.sandbox.turns import Turns


class Tasks:
    """Tasks that hold a turn until they are told to end; `running` has them in their order."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.running: list[str] = []

    async def start(self, *names: str) -> None:
        for name in names:
            self._ends[name] = asyncio.Event()
            self._tasks[name] = asyncio.create_task(self._hold(name))
            await asyncio.sleep(0)

    async def end(self, *names: str) -> None:
        for name in names:
            self._ends[name].set()
            await self._tasks[name]
            await asyncio.sleep(0)

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        await asyncio.gather(self._tasks[name], return_exceptions=True)

    async def _hold(self, name: str) -> None:
        async with self._turns.take(name[0]):
            self.running.append(name)
            await self._ends[name].wait()


def test_an_owner_who_holds_all_turns_leaves_one_for_the_others() -> None:
    async def run() -> None:
        tasks = Tasks(Turns(2))
        await tasks.start("a1", "a2", "a3", "a4", "b1", "c1", "b2")
        assert tasks.running == ["a1", "a2", "b1"]
        await tasks.end("b1", "a1", "c1", "a2", "b2", "a3", "a4")
        assert tasks.running == ["a1", "a2", "b1", "c1", "b2", "a3", "a4"]

    asyncio.run(run())


def test_owners_who_come_again_and_again_do_not_pass_one_who_waits() -> None:
    async def run() -> None:
        tasks = Tasks(Turns(1))
        await tasks.start("a1", "a2", "b1", "b2", "c1")
        await tasks.end("b1")
        await tasks.start("b3")
        assert tasks.running == ["a1", "b1", "c1"]
        await tasks.end("a1", "c1")
        assert tasks.running == ["a1", "b1", "c1", "a2", "b2"]
        await tasks.end("a2", "b2", "b3")

    asyncio.run(run())


def test_a_share_keeps_turns_free_for_other_keys() -> None:
    async def run() -> None:
        tasks = Tasks(Turns(2, key_share=0.5))
        await tasks.start("a1", "a2", "b1")
        assert tasks.running == ["a1", "b1"]
        await tasks.end("b1")
        assert tasks.running == ["a1", "b1"]
        await tasks.end("a1", "a2")

    asyncio.run(run())


@pytest.mark.parametrize("name", ["a1", "a2"])
def test_a_task_that_is_cancelled_while_it_waits_or_runs_gives_its_turn_on(name: str) -> None:
    async def run() -> None:
        tasks = Tasks(Turns(1))
        await tasks.start("z1", "a1", "a2", "b1")
        await tasks.cancel(name)
        if name == "a2":
            await tasks.end("a1")
        await asyncio.sleep(0)
        assert tasks.running == ["z1", "a1", "b1"]
        await tasks.end("z1", "b1")

    asyncio.run(run())


def test_a_task_that_is_cancelled_as_its_turn_comes_gives_it_on() -> None:
    async def run() -> None:
        tasks = Tasks(Turns(1))
        await tasks.start("z1", "a1", "a2")
        tasks._ends["a1"].set()
        await asyncio.sleep(0)  # a1 ends, and a2 has its turn but has not run yet
        await tasks.cancel("a2")
        await tasks.start("b1")
        assert tasks.running == ["z1", "a1", "b1"]
        await tasks.end("z1", "b1")

    asyncio.run(run())

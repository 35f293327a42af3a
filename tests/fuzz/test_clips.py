"""Mutated clips take the same path as an uploaded one: a sandbox decodes them and writes a result.

Each ends in a file or in an error that the caller can fix; none in a bug, a hang or a leak.
"""

import asyncio
import collections
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from structlog.testing import capture_logs

from foley.errors import RequestError
from runners.handoff import save_waveforms
from runners.sandbox.fork_server import SandboxLimits
from runners.sandbox.pool import Sandbox
from runners.settings import Settings, child_environment
from runners.status import status_of
from tests.fuzz.mutations import SEEDS, mutate, seeds
from tests.patience import Deadline, is_within

SEED = 20240817
NUM_SOAK_CLIPS = int(os.environ.get("SOAK_CLIPS", "2000"))  # a multiple of `BATCH`
BATCH = 2000
CPU_SECONDS = 4
# A child is killed after its CPU seconds, of which two run beside one another.
HANG_SECONDS = 30.0
LIMITS = SandboxLimits(memory_bytes=1024 * 2**20, cpu_seconds=CPU_SECONDS, file_bytes=64 * 2**20)
ACCEPTED = {
    "max_seconds": 2.0,
    "max_pixels": 1280 * 720,
    "max_bytes": 10_000_000,
    "codecs": Settings().video_codecs.split(","),
}


def test_mutated_clips_end_in_a_file_or_in_an_error_that_the_caller_can_fix(
    tmp_path: Path,
) -> None:
    check(range(200), tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(1800 + NUM_SOAK_CLIPS)
def test_many_mutated_clips_end_in_the_same_way(tmp_path: Path) -> None:
    started = time.monotonic()
    for first in range(0, NUM_SOAK_CLIPS, BATCH):  # each batch looks for leaks
        folder = tmp_path / str(first)
        folder.mkdir()
        check(range(first, min(first + BATCH, NUM_SOAK_CLIPS)), folder)
        shutil.rmtree(folder)
    print(f"{NUM_SOAK_CLIPS / (time.monotonic() - started):.1f} clips a second")


def check(numbers: range, folder: Path) -> None:
    """Feed the clips of these numbers to a new sandbox, and check what became of them."""
    clips = seeds(folder)
    sandbox = Sandbox(LIMITS, child_environment())
    with capture_logs() as logs:
        outcomes = asyncio.run(feed(sandbox, clips, numbers, folder))
    counts = collections.Counter(outcomes)
    print(counts)
    assert len(outcomes) == len(numbers)
    bugs = [entry for entry in logs if entry["event"] == "media_failed"]
    assert not bugs, bugs[0]
    assert not [entry for entry in logs if "died" in entry], logs
    # Some mutations do no harm, and most do. Both kinds have to occur.
    assert counts["written"] > len(numbers) // 10
    assert counts["video_unreadable"] > len(numbers) // 4
    assert set(outcomes) <= {kind.code for kind in _family(RequestError)} | {"written"}


async def feed(
    sandbox: Sandbox, clips: dict[str, bytes], clip_numbers: range, folder: Path
) -> list[str]:
    """Send the clips through the sandbox, two at a time, and return what became of each."""
    others = set(psutil.Process().children())  # servers of other tests
    await sandbox.start()
    (fork_server,) = set(psutil.Process().children()) - others

    def num_files() -> tuple[int, int]:
        return fork_server.num_fds(), psutil.Process().num_fds()

    await until(lambda: not fork_server.children())
    await asyncio.sleep(0.2)  # sockets of the first task are closed after its answer
    files = num_files()
    memory_bytes = fork_server.memory_info().rss
    outcomes: list[str] = []
    numbers = iter(clip_numbers)

    async def feed_some(place: Path) -> None:
        place.mkdir()
        save_waveforms(torch.zeros(1, 1, 9600), place)
        for number in numbers:
            chance = random.Random(SEED + number)
            clip = mutate(clips[list(SEEDS)[number % len(SEEDS)]], chance)
            (place / "clip").write_bytes(clip)
            started = time.monotonic()
            outcomes.append(
                await decode_and_write(sandbox, place, mixed=number // len(SEEDS) % 2 == 1)
            )
            assert is_within(time.monotonic() - started, HANG_SECONDS), number

    await asyncio.gather(*(feed_some(folder / str(index)) for index in range(2)))
    await sandbox.run("nothing", folder)
    assert fork_server.is_running()
    await until(lambda: not fork_server.children())
    await until(lambda: num_files() == files)
    assert fork_server.memory_info().rss - memory_bytes < 20 * 2**20  # measured: under 1 MB
    sandbox.close()
    return outcomes


async def until(condition: Callable[[], bool]) -> None:
    """Return when the condition holds, and fail if it does not soon."""
    deadline = Deadline(5)
    while not condition():
        assert not deadline.is_over()
        await asyncio.sleep(0.02)


async def decode_and_write(sandbox: Sandbox, folder: Path, *, mixed: bool) -> str:
    """Return "written", or the code of the error; the clip's own sound is mixed in or left out."""
    mix = {"original_sound": "duck", "stems": True} if mixed else {}
    try:
        read = await sandbox.run(
            "decode",
            folder,
            preset="tiny",
            container="mp4",
            trim=True,
            limits=ACCEPTED,
            with_sound=mixed,
        )
        stop_seconds = 0.2 if read["trimmed"] else None
        await sandbox.run(
            "write",
            folder,
            formats=["mp4"],
            sample_rate=48_000,
            stop_seconds=stop_seconds,
            limits=ACCEPTED,
            mix=mix,
        )
    except RequestError as error:
        refusal = error
    else:
        return "written"
    assert status_of(type(refusal)).http in (413, 422)
    assert str(folder) not in str(refusal)
    return refusal.code


def _family(kind: type[RequestError]) -> list[type[RequestError]]:
    return [kind, *(member for child in kind.__subclasses__() for member in _family(child))]

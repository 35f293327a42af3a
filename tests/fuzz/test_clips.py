"""Mutated clips through the real way of a clip: decoded, then written with a sound, in a sandbox.

Each ends in a file or in an error that is the caller's; none in a bug, a hang, a leak.
"""

import asyncio
import collections
import random
import time
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
from tests.fuzz.mutations import SEEDS, mutated, seeds

SEED = 20240817
CPU_SECONDS = 4
# A piece of work that is killed for its processor time, on a machine that does other work too.
HANG_SECONDS = 30.0
LIMITS = SandboxLimits(memory_bytes=1024 * 2**20, cpu_seconds=CPU_SECONDS, file_bytes=64 * 2**20)
ACCEPTED = {
    "max_seconds": 2.0,
    "max_pixels": 1280 * 720,
    "max_bytes": 10_000_000,
    "codecs": Settings().video_codecs.split(","),
}


@pytest.mark.parametrize(
    "num_clips", [200, pytest.param(2000, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])]
)
def test_mutated_clips_end_in_a_file_or_in_the_callers_error(
    num_clips: int, tmp_path: Path
) -> None:
    clips = seeds(tmp_path)
    sandbox = Sandbox(LIMITS, child_environment())
    with capture_logs() as logs:
        outcomes = asyncio.run(feed(sandbox, clips, num_clips, tmp_path))
    counts = collections.Counter(outcomes)
    print(counts)
    bugs = [entry for entry in logs if entry["event"] == "media_failed"]
    assert not bugs, bugs[0]
    assert not [entry for entry in logs if entry["event"] == "media_process_died"], logs
    # Some mutations do no harm, most do; both kinds were seen.
    assert counts["written"] > num_clips // 10
    assert counts["video_unreadable"] > num_clips // 4
    assert set(outcomes) <= {kind.code for kind in _family(RequestError)} | {"written"}


async def feed(
    sandbox: Sandbox, clips: dict[str, bytes], num_clips: int, folder: Path
) -> list[str]:
    """What became of each clip."""
    await sandbox.start()
    await asyncio.sleep(0.2)  # until what that left behind is gone
    (forking,) = psutil.Process().children()
    files = forking.num_fds(), psutil.Process().num_fds()
    memory_bytes = forking.memory_info().rss
    outcomes: list[str] = []
    numbers = iter(range(num_clips))

    async def feed_some(place: Path) -> None:
        place.mkdir()
        save_waveforms(torch.zeros(1, 1, 9600), place)
        for number in numbers:
            chance = random.Random(SEED + number)
            clip = mutated(clips[list(SEEDS)[number % len(SEEDS)]], chance)
            (place / "clip").write_bytes(clip)
            started = time.monotonic()
            outcomes.append(await fate(sandbox, place))
            assert time.monotonic() - started < HANG_SECONDS, number

    await asyncio.gather(*(feed_some(folder / str(index)) for index in range(2)))
    await sandbox.run("nothing", folder)
    await asyncio.sleep(0.2)
    assert forking.is_running()
    assert not forking.children()
    assert (forking.num_fds(), psutil.Process().num_fds()) == files
    assert forking.memory_info().rss - memory_bytes < 20 * 2**20  # measured: under 1 MB
    sandbox.close()
    return outcomes


async def fate(sandbox: Sandbox, folder: Path) -> str:
    """`written`, or the code of the error."""
    try:
        read = await sandbox.run(
            "decode", folder, preset="tiny", container="mp4", trim=True, limits=ACCEPTED
        )
        stop_seconds = 0.2 if read["trimmed"] else None
        await sandbox.run(
            "write",
            folder,
            formats=["mp4"],
            sample_rate=48_000,
            stop_seconds=stop_seconds,
            limits=ACCEPTED,
        )
    except RequestError as error:
        told = error
    else:
        return "written"
    assert status_of(type(told)).http in (413, 422)
    assert str(folder) not in str(told)
    return told.code


def _family(kind: type[RequestError]) -> list[type[RequestError]]:
    return [kind, *(member for child in kind.__subclasses__() for member in _family(child))]

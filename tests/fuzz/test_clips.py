"""Mutated clips take the same path as an uploaded one: a sandbox decodes them and writes a result.

Each ends in a file or in an error that the caller can fix; none in a bug, a hang or a leak.
"""

import asyncio
import collections
import os
import random
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from structlog.testing import capture_logs

from foley.errors import FoleyError, RequestError
from runners.handoff import CLIP, save_waveforms
from runners.sandbox.fork_server import SandboxLimits
from runners.sandbox.pool import Sandbox
from runners.settings import Settings, child_environment
from runners.status import status_of
from tests.fuzz.batches import MIX
from tests.fuzz.mutations import find_boxes, mutate
from tests.fuzz.seeds import SEEDS, write_seeds
from tests.patience import Deadline, is_within, scale

SEED = 20240817
NUM_SOAK_CLIPS = int(os.environ.get("SOAK_CLIPS", "4000"))  # a multiple of `ROUND`
ROUND = 4000  # clips between two looks for leaks
BATCH = 100  # clips of one child
CPU_SECONDS = 4
# A child is killed after its CPU seconds, of which two run beside one another.
HANG_SECONDS = 30.0
BATCH_HANG_SECONDS = 120.0
LIMITS = SandboxLimits(memory_bytes=1024 * 2**20, cpu_seconds=CPU_SECONDS, file_bytes=64 * 2**20)
BATCH_LIMITS = SandboxLimits(memory_bytes=1024 * 2**20, cpu_seconds=60, file_bytes=64 * 2**20)
ACCEPTED = {
    "max_seconds": 2.0,
    "max_pixels": 1280 * 720,
    "max_bytes": 10_000_000,
    "codecs": Settings().video_codecs.split(","),
}
DECODING = {"preset": "tiny", "container": "mp4", "trim": True, "limits": ACCEPTED}
WRITING = {"formats": ["mp4"], "sample_rate": 48_000, "limits": ACCEPTED}

Feeder = Callable[[Sandbox, dict[str, bytes], list[int], Path], Awaitable[dict[int, str]]]


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return write_seeds(tmp_path_factory.mktemp("seeds"))


@pytest.mark.soak
def test_mutated_clips_end_in_a_file_or_in_an_error_that_the_caller_can_fix(
    seeds: dict[str, bytes], tmp_path: Path
) -> None:
    with capture_logs() as logs:
        outcomes = feed(try_one_by_one, LIMITS, seeds, range(2 * len(SEEDS)), tmp_path)
    check(outcomes, logs)


@pytest.mark.long
def test_many_clips_of_one_child_end_in_the_same_way(
    seeds: dict[str, bytes], tmp_path: Path
) -> None:
    counts = feed_in_batches(seeds, range(1000, 1040), tmp_path)
    assert counts.total() == 40
    outcomes = feed(try_one_by_one, LIMITS, seeds, range(1000, 1010), tmp_path)
    assert outcomes == feed(try_in_batch, BATCH_LIMITS, seeds, range(1000, 1010), tmp_path)


def test_mutations_find_the_boxes_of_a_file(seeds: dict[str, bytes]) -> None:
    names = [box.name for box in find_boxes(bytearray(seeds["h264.mp4"]))]
    assert names.count(b"trak") == 2
    assert {b"stsz", b"avcC", b"stts"} <= set(names)
    assert list(find_boxes(bytearray(seeds["vp9.webm"]))) == []


@pytest.mark.soak
@pytest.mark.timeout(1800 + NUM_SOAK_CLIPS // 10)
def test_very_many_clips_end_in_the_same_way(seeds: dict[str, bytes], tmp_path: Path) -> None:
    started = time.monotonic()
    total: collections.Counter[str] = collections.Counter()
    for first in range(0, NUM_SOAK_CLIPS, ROUND):
        total += feed_in_batches(seeds, range(first, min(first + ROUND, NUM_SOAK_CLIPS)), tmp_path)
        rate = total.total() / (time.monotonic() - started)
        print(f"{total.total()} clips, {rate:.1f} a second: {dict(total)}", flush=True)


def feed_in_batches(
    seeds: dict[str, bytes], numbers: range, folder: Path
) -> collections.Counter[str]:
    """Feed the clips to children that try many; where such a child fails, feed each to its own."""
    with capture_logs() as logs:
        outcomes = feed(try_in_batch, BATCH_LIMITS, seeds, numbers, folder)
    left = [number for number in numbers if number not in outcomes]
    with capture_logs() as later:
        if left:
            print(f"tried one by one: {len(left)} clips, because of {logs}", flush=True)
            outcomes |= feed(try_one_by_one, LIMITS, seeds, left, folder)
    # A batch that dies does so for the sake of one of its clips, which is looked for here.
    assert not [entry for entry in logs if "bug" in entry], logs
    return check(outcomes, later)


def check(outcomes: dict[int, str], logs: Sequence[Mapping[str, Any]]) -> collections.Counter[str]:
    """Check what became of clips, and return how often it did."""
    counts = collections.Counter(outcomes.values())
    bugs = [entry for entry in logs if entry["event"] == "media_failed"]
    assert not bugs, bugs[0]
    assert not [entry for entry in logs if "died" in entry], logs
    # Some mutations do no harm, and most do. Both kinds have to occur.
    assert counts["written"] > counts.total() // 10, counts
    assert counts["video_unreadable"] > counts.total() // 10, counts
    assert set(counts) <= {kind.code for kind in _family(RequestError)} | {"written"}
    return counts


def feed(
    feeder: Feeder,
    limits: SandboxLimits,
    seeds: dict[str, bytes],
    numbers: Sequence[int],
    folder: Path,
) -> dict[int, str]:
    """Send the clips through a sandbox, and return what became of each, by its number.

    No process, file, descriptor or memory is left afterwards.
    """
    place = folder / "place"
    place.mkdir()
    try:
        return asyncio.run(_feed(feeder, limits, seeds, numbers, place))
    finally:
        shutil.rmtree(place)


async def _feed(
    feeder: Feeder,
    limits: SandboxLimits,
    seeds: dict[str, bytes],
    numbers: Sequence[int],
    folder: Path,
) -> dict[int, str]:
    others = set(psutil.Process().children())  # servers of other tests
    sandbox = Sandbox(limits, child_environment(), module="tests.fuzz.batches")
    await sandbox.start()
    (fork_server,) = set(psutil.Process().children()) - others

    def num_files() -> tuple[int, int]:
        return fork_server.num_fds(), psutil.Process().num_fds()

    await until(lambda: not fork_server.children())
    await asyncio.sleep(0.2)  # sockets of the first task are closed after its answer
    files = num_files()
    memory_bytes = fork_server.memory_info().rss
    outcomes: dict[int, str] = {}
    batches = iter([numbers[start : start + BATCH] for start in range(0, len(numbers), BATCH)])

    async def feed_some(place: Path) -> None:
        place.mkdir()
        save_waveforms(torch.zeros(1, 1, 9600), place)
        for batch in batches:
            outcomes.update(await feeder(sandbox, seeds, list(batch), place))

    try:
        await asyncio.gather(*(feed_some(folder / str(index)) for index in range(2)))
        await sandbox.run("nothing", folder)
        assert fork_server.is_running()
        await until(lambda: not fork_server.children())
        await until(lambda: num_files() == files)
        assert fork_server.memory_info().rss - memory_bytes < 20 * 2**20  # measured: under 1 MB
    finally:
        sandbox.close()
    return outcomes


async def until(condition: Callable[[], bool]) -> None:
    """Return when the condition holds, and fail if it does not soon."""
    deadline = Deadline(5)
    while not condition():
        assert not deadline.is_over()
        await asyncio.sleep(0.02)


def make_clip(seeds: dict[str, bytes], number: int) -> bytes:
    """Return the mutated clip of this number."""
    others = list(seeds.values())
    return mutate(others[number % len(others)], random.Random(SEED + number), others)


def is_mixed(number: int) -> bool:
    """Whether the clip's own sound is mixed in, or left out."""
    return number // len(SEEDS) % 2 == 1


async def try_in_batch(
    sandbox: Sandbox, seeds: dict[str, bytes], numbers: list[int], folder: Path
) -> dict[int, str]:
    """Return what became of clips that one child tries; of none if that child fails."""
    for place, number in enumerate(numbers):
        (folder / str(place)).write_bytes(make_clip(seeds, number))
    try:
        async with asyncio.timeout(scale(BATCH_HANG_SECONDS)):
            ends = await sandbox.run(
                "try_clips",
                folder,
                mixed=[is_mixed(number) for number in numbers],
                decoding=DECODING,
                writing=WRITING,
            )
    except FoleyError:
        return {}
    for number, (_, seconds) in zip(numbers, ends, strict=True):
        assert seconds < CPU_SECONDS, number
    return {number: code for number, (code, _) in zip(numbers, ends, strict=True)}


async def try_one_by_one(
    sandbox: Sandbox, seeds: dict[str, bytes], numbers: list[int], folder: Path
) -> dict[int, str]:
    """Return what became of clips that each have children of their own."""
    outcomes = {}
    for number in numbers:
        (folder / CLIP).write_bytes(make_clip(seeds, number))
        started = time.monotonic()
        outcomes[number] = await decode_and_write(sandbox, folder, mixed=is_mixed(number))
        assert is_within(time.monotonic() - started, HANG_SECONDS), number
    return outcomes


async def decode_and_write(sandbox: Sandbox, folder: Path, *, mixed: bool) -> str:
    """Return "written", or the code of the error; the clip's own sound is mixed in or left out."""
    try:
        read = await sandbox.run("decode", folder, **DECODING, with_sound=mixed)
        await sandbox.run(
            "write",
            folder,
            **WRITING,
            stop_seconds=0.2 if read["trimmed"] else None,
            mix=MIX if mixed else {},
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

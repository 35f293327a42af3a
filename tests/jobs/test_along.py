"""The files of a sound, for which what can be done is done while it is made."""

import asyncio
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from foley.errors import VideoDecodeError
from foley.sound_file import append_samples
from foley.types import Stage
from runners.handoff import CLIP, EXPECTED, name_growing, save_waveforms
from runners.jobs.along import EarlyWriter, Written, begin_writing
from runners.jobs.job import GenerationJob, GenerationOptions
from runners.messages import FinishedPiece, ProgressUpdate
from runners.sandbox.fork_server import SandboxLimits
from runners.sandbox.pool import Sandbox
from runners.settings import Settings, child_environment
from tests.media.clips import write_clip
from tests.patience import scale

pytestmark = pytest.mark.slow

RATE = 48_000
SECONDS = 10
LIMITS = {
    "max_seconds": 60.0,
    "max_pixels": 4096 * 2304,
    "max_bytes": None,
    "codecs": Settings().video_codecs.split(","),
}
ARGUMENTS = {
    "formats": ["mp4", "flac"],
    "sample_rate": RATE,
    "stop_seconds": None,
    "limits": LIMITS,
}
PIECE = FinishedPiece(
    variation=1, number=1, seed=1, start_seconds=0, duration_seconds=1, sample_rate=RATE
)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return write_clip(path, times_ms=range(0, 1000 * SECONDS, 500)).read_bytes()


@pytest.fixture(scope="module")
def sounds() -> np.ndarray:
    """Two variations [2, S]."""
    torch.manual_seed(0)
    return (0.2 * torch.randn(2, RATE * SECONDS)).numpy()


@pytest.fixture
def folder(tmp_path: Path, clip: bytes) -> Path:
    """Return the folder of a request."""
    made = tmp_path / "request"
    made.mkdir()
    (made / CLIP).write_bytes(clip)
    return made


def make_job(folder: Path, **options: Any) -> GenerationJob:
    return GenerationJob(
        owner="",
        caller="me",
        request_id="",
        folder=folder,
        options=GenerationOptions(**{"num_variations": 2, "also": ("flac",), **options}),
        format="mp4",
    )


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    limits = SandboxLimits(memory_bytes=2**31, cpu_seconds=60, file_bytes=2**30)
    sandbox = Sandbox(limits, child_environment())
    asyncio.run(sandbox.start())
    yield sandbox
    sandbox.close()


@pytest.fixture(scope="module")
def usual(
    sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory, clip: bytes, sounds: np.ndarray
) -> tuple[Written, list[tuple[str, bytes]]]:
    """Return what is written at the end: the descriptions, and the files."""
    folder = tmp_path_factory.mktemp("usual")
    (folder / CLIP).write_bytes(clip)
    save_waveforms(torch.from_numpy(sounds)[:, None], folder)
    return asyncio.run(sandbox.run("write", folder, **ARGUMENTS)), list_files(folder)


def grow(folder: Path, sounds: np.ndarray, start: int, stop: int) -> None:
    for variation, sound in enumerate(sounds, start=1):
        append_samples(name_growing(folder, variation), sound[start:stop], is_first=not start)


def find_children() -> list[psutil.Process]:
    """Return the children of the fork servers of this process."""
    servers = psutil.Process().children()
    return [child for server in servers for child in server.children()]


async def wait_until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(scale(30)):
        while not is_so():
            await asyncio.sleep(0.02)


async def start(writer: EarlyWriter) -> psutil.Process:
    """Begin to write, and return the child that does."""
    before = set(find_children())
    writer.start(PIECE)
    await wait_until(lambda: bool(set(find_children()) - before))
    (child,) = set(find_children()) - before
    return child


def list_files(folder: Path) -> list[tuple[str, bytes]]:
    return [(path.name, path.read_bytes()) for path in sorted(folder.glob("foley-*"))]


@pytest.mark.parametrize("is_killed", [False, True])
def test_files_that_are_encoded_along_are_those_that_are_written_at_the_end(
    sandbox: Sandbox,
    folder: Path,
    sounds: np.ndarray,
    usual: tuple[Written, list[tuple[str, bytes]]],
    is_killed: bool,
) -> None:
    async def write() -> Written:
        async with begin_writing(sandbox, None, make_job(folder), LIMITS) as writer:
            child = await start(writer)
            most = RATE * SECONDS - 77
            grow(folder, sounds, 0, most)
            # It encodes what there is while the rest is being made.
            idle_seconds = sum(child.cpu_times()[:2])
            await wait_until(lambda: sum(child.cpu_times()[:2]) > idle_seconds + 0.1)
            writer.start(PIECE)  # of a later piece: nothing more begins
            if is_killed:
                child.kill()
            grow(folder, sounds, most, RATE * SECONDS)
            return await writer.write(**ARGUMENTS)

    assert (asyncio.run(write()), list_files(folder)) == usual
    assert len(list_files(folder)) == 4


def test_a_job_that_ends_early_leaves_no_child_and_no_file(
    sandbox: Sandbox, folder: Path, sounds: np.ndarray
) -> None:
    async def give_up(children: list[psutil.Process]) -> None:
        async with begin_writing(sandbox, None, make_job(folder), LIMITS) as writer:
            children.append(await start(writer))
            grow(folder, sounds, 0, 1000)
            raise ZeroDivisionError

    children: list[psutil.Process] = []
    with pytest.raises(ZeroDivisionError):
        asyncio.run(give_up(children))
    assert not set(children) & set(find_children())
    assert {path.name for path in folder.iterdir()} == {CLIP, "waveform-1.f32", "waveform-2.f32"}


@pytest.mark.parametrize(
    "options", [{"loudness_lufs": -20.0}, {"original_sound": "mix"}, {"format": "wav", "also": ()}]
)
def test_sounds_that_are_changed_at_the_end_or_not_encoded_are_not_begun(
    folder: Path, options: dict[str, Any]
) -> None:
    job = make_job(folder, **options)
    job = GenerationJob(**{**vars(job), "format": job.options.format or "mp4"})
    writer = EarlyWriter(None, None, job, LIMITS)  # type: ignore[arg-type]
    writer.start(PIECE)  # would fail for want of a sandbox


HALF = ProgressUpdate(stage=Stage.SAMPLE, step=8, num_steps=16)


async def get_ready(writer: EarlyWriter) -> psutil.Process:
    """Start the child of a short sound, and return it once it waits for the sound."""
    before = set(find_children())
    writer.note(HALF)
    await asyncio.wait_for(writer._wait_for_pause(), scale(30))
    (child,) = set(find_children()) - before
    return child


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_child_that_waits_for_a_short_sound_writes_what_one_does_that_is_started_then(
    sandbox: Sandbox,
    folder: Path,
    sounds: np.ndarray,
    usual: tuple[Written, list[tuple[str, bytes]]],
    is_killed: bool,
) -> None:
    async def write() -> Written:
        async with begin_writing(sandbox, None, make_job(folder), LIMITS) as writer:
            for step in range(8):
                writer.note(ProgressUpdate(stage=Stage.SAMPLE, step=step, num_steps=16))
            assert writer._task is None
            child = await get_ready(writer)
            if is_killed:
                child.kill()
                await wait_until(lambda: child not in find_children())
            writer.note(HALF)  # nothing more begins
            save_waveforms(torch.from_numpy(sounds)[:, None], folder)
            return await writer.write(**ARGUMENTS)

    assert (asyncio.run(write()), list_files(folder)) == usual


def test_a_sound_that_comes_before_the_child_is_ready_is_written(
    sandbox: Sandbox,
    folder: Path,
    sounds: np.ndarray,
    usual: tuple[Written, list[tuple[str, bytes]]],
) -> None:
    async def write() -> Written:
        async with begin_writing(sandbox, None, make_job(folder), LIMITS) as writer:
            save_waveforms(torch.from_numpy(sounds)[:, None], folder)
            writer.note(HALF)
            return await writer.write(**ARGUMENTS)

    assert (asyncio.run(write()), list_files(folder)) == usual


def test_children_that_wait_hold_no_turns_and_all_of_them_write(
    sandbox: Sandbox, folder: Path, sounds: np.ndarray
) -> None:
    """There are more jobs than turns, and some have their sound before a child is ready."""
    num_jobs = 3 * (os.cpu_count() or 1)
    folders = [folder.with_name(f"request-{number}") for number in range(num_jobs)]
    for made in folders:
        shutil.copytree(folder, made)
        save_waveforms(torch.from_numpy(sounds)[:1, None, :RATE], made)

    async def write(made: Path, waits: bool, all_wait: asyncio.Barrier) -> int:
        job = make_job(made, num_variations=1)
        async with begin_writing(sandbox, None, job, LIMITS) as writer:
            writer.note(HALF)
            if waits:
                await asyncio.wait_for(writer._wait_for_pause(), scale(60))
            await all_wait.wait()
            (files,) = await writer.write(**ARGUMENTS)
            return len(files)

    async def write_all() -> list[int]:
        barrier = asyncio.Barrier(num_jobs)
        ways = [write(made, number % 3 > 0, barrier) for number, made in enumerate(folders)]
        return await asyncio.gather(*ways)

    assert asyncio.run(write_all()) == [2] * num_jobs


def test_a_job_that_is_cancelled_leaves_no_child_that_waits(sandbox: Sandbox, folder: Path) -> None:
    async def give_up(children: list[psutil.Process]) -> None:
        async with begin_writing(sandbox, None, make_job(folder), LIMITS) as writer:
            children.append(await get_ready(writer))
            raise ZeroDivisionError

    children: list[psutil.Process] = []
    with pytest.raises(ZeroDivisionError):
        asyncio.run(give_up(children))
    assert not set(children) & set(find_children())
    assert {path.name for path in folder.iterdir()} == {CLIP}


def test_a_clip_that_cannot_be_opened_ahead_is_refused_at_the_end(
    sandbox: Sandbox, folder: Path, sounds: np.ndarray
) -> None:
    (folder / CLIP).write_bytes(b"no clip")

    async def write() -> None:
        async with begin_writing(sandbox, None, make_job(folder), LIMITS) as writer:
            writer.note(HALF)
            save_waveforms(torch.from_numpy(sounds)[:, None], folder)
            assert writer._task is not None
            await asyncio.wait([writer._task])
            await writer.write(**ARGUMENTS)

    with pytest.raises(VideoDecodeError):
        asyncio.run(write())


def test_a_long_sound_is_not_waited_for(folder: Path) -> None:
    (folder / EXPECTED).write_text(json.dumps({"seconds": 60.0}))
    writer = EarlyWriter(None, None, make_job(folder), LIMITS)  # type: ignore[arg-type]
    writer.note(HALF)  # would fail for want of a sandbox

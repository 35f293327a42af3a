"""Clips are read in a process of its own, and whatever happens there stays there."""

import asyncio
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from foley.errors import (
    FoleyError,
    OutputError,
    ServerError,
    VideoDecodeError,
    VideoTooCostlyError,
    VideoTooLargeError,
)
from foley.media.decode import decode_frames
from runners.handoff import load_frames, save_waveforms
from runners.sandbox.fork_server import SandboxLimits
from runners.sandbox.pool import Sandbox
from runners.settings import Settings, child_environment
from runners.status import status_of
from tests.media.clips import write_clip
from tests.server import ROOT, draw_clip

MIB = 2**20
LIMITS = SandboxLimits(memory_bytes=512 * MIB, cpu_seconds=1, file_bytes=32 * MIB)
ACCEPTED = {
    "max_seconds": 15.0,
    "max_pixels": 4096 * 2304,
    "max_bytes": None,
    "codecs": Settings().video_codecs.split(","),
}

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def hostile() -> Iterator[Sandbox]:
    """A sandbox whose tasks misbehave."""
    sandbox = Sandbox(LIMITS, child_environment(), module="tests.sandbox.hostile")
    asyncio.run(sandbox.start())
    yield sandbox
    sandbox.close()


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    limits = SandboxLimits(memory_bytes=2048 * MIB, cpu_seconds=60, file_bytes=1024 * MIB)
    sandbox = Sandbox(limits, child_environment())
    asyncio.run(sandbox.start())
    yield sandbox
    sandbox.close()


def decode(sandbox: Sandbox, folder: Path, **limits: Any) -> Any:
    options = {"preset": "tiny", "container": "mp4", "trim": False}
    return asyncio.run(sandbox.run("decode", folder, **options, limits={**ACCEPTED, **limits}))


def write(sandbox: Sandbox, folder: Path, waveforms: torch.Tensor, **limits: Any) -> Any:
    save_waveforms(waveforms, folder)
    options = {"formats": ["mp4", "wav"], "sample_rate": 48_000, "stop_seconds": None}
    return asyncio.run(sandbox.run("write", folder, **options, limits={**ACCEPTED, **limits}))


def test_frames_are_those_that_this_process_would_decode(sandbox: Sandbox, tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples" / "bigbuckbunny.mp4", tmp_path / "clip")
    assert decode(sandbox, tmp_path) == {"trimmed": False}
    frames = load_frames(tmp_path)
    size = frames.visual.shape[1], frames.sync.shape[1]
    here = decode_frames(
        tmp_path / "clip",
        visual_size=size[0],
        sync_size=size[1],
        exact_clock=True,
        whole_segments=True,
    )
    assert torch.equal(frames.visual, here.visual)
    assert torch.equal(frames.sync, here.sync)


def test_sounds_are_written_in_each_format(sandbox: Sandbox, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4").rename(tmp_path / "clip")
    first, second = write(sandbox, tmp_path, torch.zeros(2, 1, 48_000))
    assert [file["name"] for file in first] == ["foley-1.mp4", "foley-1.wav"]
    assert [file["container"] for file in second] == ["mp4", "wav"]
    assert all((tmp_path / file["name"]).stat().st_size for file in [*first, *second])


def test_what_is_not_finite_in_a_sound_is_not_the_callers_fault(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    write_clip(tmp_path / "clip.mp4").rename(tmp_path / "clip")
    with pytest.raises(FoleyError) as caught:
        write(sandbox, tmp_path, torch.full((1, 1, 48_000), float("nan")))
    assert status_of(caught.type).http == 500


def test_sounds_are_written_within_the_limits_of_the_settings(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    clip = write_clip(tmp_path / "clip.h264", container="h264")  # decoded for its timestamps
    clip.rename(tmp_path / "clip")
    write(sandbox, tmp_path, torch.zeros(1, 1, 48_000), max_pixels=6400)
    with pytest.raises(VideoTooLargeError):
        write(sandbox, tmp_path, torch.zeros(1, 1, 48_000), max_pixels=6399)


def test_a_codec_that_is_not_accepted_is_refused_by_its_name(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    draw_clip(tmp_path / "clip.mp4")
    (tmp_path / "clip.mp4").rename(tmp_path / "clip")
    assert decode(sandbox, tmp_path, codecs=["mpeg4"]) == {"trimmed": False}
    with pytest.raises(VideoDecodeError, match=r"coded as mpeg4, .* send one of h264, vp9"):
        decode(sandbox, tmp_path, codecs=["vp9", "h264"])


def test_a_real_clip_over_the_limits_is_refused(tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples" / "bigbuckbunny.mp4", tmp_path / "clip")
    small = SandboxLimits(memory_bytes=64 * MIB, cpu_seconds=60, file_bytes=1024 * MIB)
    sandbox = Sandbox(small, child_environment())
    with pytest.raises(VideoTooCostlyError, match="memory"):
        decode(sandbox, tmp_path)
    sandbox.close()


@pytest.mark.parametrize(
    ("task", "arguments", "error", "words"),
    [
        ("crash", {}, VideoDecodeError, "broke the decoder"),
        ("take_memory", {"of": "torch"}, VideoTooCostlyError, "more memory"),
        ("take_memory", {"of": "python"}, VideoTooCostlyError, "more memory"),
        ("spin", {}, VideoTooCostlyError, "more time"),
        ("fill_disk", {}, VideoTooCostlyError, "more room"),
        ("fail", {}, ServerError, "could not be written"),
        ("refuse", {}, OutputError, "^foley-1.mp4 cannot be written$"),
    ],
)
def test_a_task_that_misbehaves_ends_in_an_error_and_the_next_one_works(
    hostile: Sandbox,
    tmp_path: Path,
    task: str,
    arguments: dict[str, str],
    error: type[FoleyError],
    words: str,
) -> None:
    started = time.monotonic()
    with pytest.raises(error, match=words) as caught:
        asyncio.run(hostile.run(task, tmp_path, **arguments))
    assert time.monotonic() - started < 5
    assert str(tmp_path) not in str(caught.value)
    assert asyncio.run(hostile.run("nothing", tmp_path)) is None


def test_open_files_are_limited(hostile: Sandbox, tmp_path: Path) -> None:
    assert 10 < asyncio.run(hostile.run("open_files", tmp_path)) < 64


def test_secrets_are_not_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, hostile: Sandbox, tmp_path: Path
) -> None:
    monkeypatch.setenv("FOLEY_API_KEYS", "secret")
    assert "FOLEY_API_KEYS" not in child_environment()
    names = asyncio.run(hostile.run("look_around", tmp_path))
    assert not [name for name in names if name.startswith(("FOLEY", "AWS", "BENTO"))]


@pytest.mark.parametrize("task", ["wait", "write_on_and_on"])
def test_cancelling_kills_the_process_before_its_folder_is_removed(
    hostile: Sandbox, tmp_path: Path, task: str
) -> None:
    folder = tmp_path / "request"
    folder.mkdir()
    before = children()

    async def leave() -> float:
        working = asyncio.create_task(hostile.run(task, folder))
        while not (folder / "begun").exists():
            await asyncio.sleep(0.01)
        assert len(children() - before) == 1
        started = time.monotonic()
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        return time.monotonic() - started

    assert asyncio.run(leave()) < 1
    shutil.rmtree(folder)
    assert not children() - before


def test_tasks_side_by_side_do_not_disturb_one_another(hostile: Sandbox, tmp_path: Path) -> None:
    async def run() -> list[object]:
        tasks = ["nothing", "crash", "nothing", "spin", "nothing", "refuse", "nothing"]
        running = [hostile.run(task, tmp_path) for task in tasks]
        return await asyncio.gather(*running, return_exceptions=True)

    outcomes = asyncio.run(run())
    assert outcomes[::2] == [None] * 4
    assert [type(outcome) for outcome in outcomes[1::2]] == [
        VideoDecodeError,
        VideoTooCostlyError,
        OutputError,
    ]


def test_a_forking_process_that_dies_is_replaced(hostile: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(ServerError):  # it is tried twice, and kills the second one too
        asyncio.run(hostile.run("kill_parent", tmp_path))
    assert asyncio.run(hostile.run("nothing", tmp_path)) is None


def test_closing_leaves_no_process(tmp_path: Path) -> None:
    before = children()
    sandbox = Sandbox(LIMITS, child_environment(), module="tests.sandbox.hostile")

    async def run() -> None:
        working = asyncio.create_task(sandbox.run("wait", tmp_path))
        while not (tmp_path / "begun").exists():
            await asyncio.sleep(0.01)
        assert len(children() - before) == 2
        sandbox.close()
        with pytest.raises(ServerError):
            await working

    asyncio.run(run())
    sandbox.close()
    assert not children() - before


def children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))

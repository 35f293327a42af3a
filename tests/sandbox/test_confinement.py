"""A media child that is taken over reaches no other file, no other process and no network."""

import asyncio
import errno
import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runners.handoff import save_waveforms
from runners.sandbox import confinement
from runners.sandbox.fork_server import SandboxLimits
from runners.sandbox.pool import Sandbox
from runners.settings import Settings, child_environment
from tests.media.clips import add_sound, write_clip
from tests.sandbox.hostile import ATTACKS
from tests.server import ROOT

MIB = 2**20
LIMITS = SandboxLimits(memory_bytes=2048 * MIB, cpu_seconds=60, file_bytes=1024 * MIB)
PID = 4711
MODULE = "tests.sandbox.hostile"
ACCEPTED = {
    "max_seconds": 15.0,
    "max_pixels": 4096 * 2304,
    "max_bytes": None,
    "codecs": Settings().video_codecs.split(","),
}
# The child would be replaced, or needs a right that not every user has.
NOT_TRIED_UNCONFINED = {"execute_a_program", "trace_the_parent", "read_environment_of_parent"}

pytestmark = pytest.mark.skipif(
    bool(confinement.find_missing_parts()), reason="this kernel lacks Landlock or seccomp"
)


@pytest.fixture(scope="module")
def confined() -> Iterator[Sandbox]:
    sandbox = Sandbox(LIMITS, child_environment(), module=MODULE)
    yield sandbox
    sandbox.close()


@pytest.fixture(scope="module")
def unconfined() -> Iterator[Sandbox]:
    sandbox = Sandbox(replace(LIMITS, is_confined=False), child_environment(), module=MODULE)
    yield sandbox
    sandbox.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a request, beside a file of another one."""
    (tmp_path / "precious").touch()
    (tmp_path / "request").mkdir()
    return tmp_path / "request"


@pytest.mark.parametrize("how", ATTACKS)
def test_an_attack_from_a_child_fails(confined: Sandbox, folder: Path, how: str) -> None:
    assert asyncio.run(confined.run("attack", folder, how=how)) in ("EPERM", "EACCES")
    assert sorted(path.name for path in folder.parent.iterdir()) == ["precious", "request"]
    assert asyncio.run(confined.run("nothing", folder)) is None


@pytest.mark.parametrize("how", sorted(ATTACKS.keys() - NOT_TRIED_UNCONFINED))
def test_the_attack_succeeds_without_the_confinement(
    unconfined: Sandbox, folder: Path, how: str
) -> None:
    assert asyncio.run(unconfined.run("attack", folder, how=how)) == "succeeded"


def test_a_confined_child_starts_threads(confined: Sandbox, folder: Path) -> None:
    assert asyncio.run(confined.run("start_threads", folder)) == 8


@pytest.mark.long
def test_a_clip_is_decoded_and_written_in_every_format(tmp_path: Path) -> None:
    sound = np.full((2, 48_000), 0.1, np.float32)
    sandbox = Sandbox(LIMITS, child_environment())

    async def run(folder: Path, formats: list[str]) -> Any:
        options: dict[str, Any] = {"preset": "tiny", "container": formats[0], "trim": False}
        await sandbox.run("decode", folder, **options, limits=ACCEPTED)
        save_waveforms(torch.zeros(1, 1, 48_000), folder)
        options = {"sample_rate": 48_000, "stop_seconds": None, "limits": ACCEPTED}
        plain = await sandbox.run("write", folder, formats=formats, **options)
        mix = {"original_sound": "duck", "stems": True, "loudness_lufs": -30.0, "limiter": True}
        options |= {"mix": mix, "formats": formats}
        return plain, await sandbox.run("write", folder, **options)

    async def run_all() -> None:
        for name, (codec, sound_codec, container), formats in (
            ("h264", ("libx264", "aac", "mov"), ["mp4", "mov", "mkv", "wav", "flac"]),
            ("webm", ("libvpx", "libopus", "mkv"), ["webm"]),
        ):
            folder = tmp_path / name
            folder.mkdir()
            clip = write_clip(folder / f"picture.{formats[0]}", codec=codec)
            voiced = add_sound(clip, folder / f"clip.{container}", sound, codec=sound_codec)
            voiced.rename(folder / "clip")
            (files,), (mixed,) = await run(folder, formats)
            assert [file["container"] for file in mixed] == formats
            assert all(file["loudness"] for file in mixed)
            assert [file["container"] for file in files] == formats
            assert all((folder / file["name"]).stat().st_size for file in files)

    try:
        asyncio.run(run_all())
    finally:
        sandbox.close()


@pytest.mark.long
def test_a_kernel_without_landlock_is_logged_once_and_refused_where_it_is_required() -> None:
    command = [sys.executable, "-m", "tests.sandbox.without_landlock"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = json.loads(output.splitlines()[-1])
    assert found["attacks"] == {"connect_by_tcp": "EPERM", "read_passwords": "succeeded"}
    event = {"event": "sandbox_incomplete", "log_level": "warning", "missing": ["Landlock"]}
    assert found["logs"] == [event]
    assert "lacks Landlock" in found["refusal"]
    assert found["refusal"].startswith("3 foley: ")
    assert "\n" not in found["refusal"]


def test_no_folder_of_the_import_path_is_readable_as_such(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    paths = confinement.list_readable_paths()
    assert not [path for path in paths if tmp_path.is_relative_to(path)]
    assert not [path for path in paths if ROOT.is_relative_to(path)]
    assert any((ROOT / "runners").is_relative_to(path) for path in paths)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_decides_by_call_and_arguments(machine: str) -> None:
    numbers = confinement._CALLS[machine] | confinement._CHECKED_CALLS[machine]

    def ask(name: str, *arguments: int) -> int | str:
        call = struct.pack(
            "<iIQ6Q", numbers[name], audit, 0, *arguments, *[0] * (6 - len(arguments))
        )
        return run_filter(machine, call)

    audit = confinement._AUDIT_ARCHITECTURE[machine]
    thread = 0x3D0F00  # what the C library's pthread_create asks for
    assert {ask(name) for name in confinement._CALLS[machine]} == {"allow"}
    assert (ask("clone", thread), ask("clone", 17)) == ("allow", errno.EPERM)
    assert ask("clone3") == errno.ENOSYS
    assert (ask("kill", PID, 9), ask("kill", PID + 1, 9), ask("tgkill", 1)) == ("allow", 1, 1)
    assert (ask("prlimit64", 0, 7, 0), ask("prlimit64", 0, 7, 8)) == ("allow", errno.EPERM)
    assert ask("prlimit64", 0, 7, 8 << 32) == errno.EPERM
    assert [ask("fcntl", 3, command) for command in (1, 7, 8, 10, 1030, 1031)] == [
        *("allow", "allow", errno.EPERM, errno.EPERM, "allow", errno.EPERM)
    ]
    assert (ask("prctl", 15), ask("prctl", 4)) == ("allow", errno.EPERM)
    assert ask("ioctl", 0, 0x5412) == errno.ENOTTY
    numbers["unknown"] = 460
    assert ask("unknown") == errno.EPERM
    audit = 0x40000003  # i386
    assert ask("read") == "kill"


def run_filter(machine: str, call: bytes) -> int | str:
    """Return what the filter answers to a `struct seccomp_data`: an error number, or a word."""
    value, index = 0, 0
    fixed = confinement._build_fixed_filter(machine)
    program = [*fixed, *confinement._build_checks(machine, PID)]
    while True:
        code, if_true, if_false, operand = program[index]
        match code:
            case confinement._LOAD:
                (value,) = struct.unpack_from("<I", call, operand)
                if_true = if_false = 0
            case confinement._RETURN:
                words: dict[int, int | str] = {0x7FFF0000: "allow", 0x80000000: "kill"}
                return words.get(operand, operand - 0x50000)
        holds = {
            confinement._IS_EQUAL: value == operand,
            confinement._IS_GREATER: value > operand,
            confinement._IS_AT_LEAST: value >= operand,
            confinement._HAS_BITS: bool(value & operand),
        }
        index += 1 + (if_true if holds.get(code) else if_false)

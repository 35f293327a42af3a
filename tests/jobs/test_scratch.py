"""The folders of requests, and those that processes share."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from foley.errors import BusyError, ConfigError, NoFramesError, StorageFullError
from runners.jobs import scratch as scratch_module
from runners.jobs.scratch import Scratch, SharedScratch, is_abandoned, remove_leftovers
from tests.patience import scale
from tests.server import ROOT


def test_a_folder_goes_with_its_request_and_the_rest_with_the_process(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    with scratch.workspace() as folder:
        (folder / "clip").write_bytes(b"bytes")
    assert list(scratch.folder.iterdir()) == []
    scratch.close()
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_taken_while_there_is_no_room_and_the_log_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = Scratch(tmp_path)
    least_bytes = scratch_module.MIN_ROOM_BYTES
    with structlog.testing.capture_logs() as logs:
        monkeypatch.setattr(scratch_module, "MIN_ROOM_BYTES", 2**62)  # more than any disk has
        for _ in range(3):
            with pytest.raises(StorageFullError):
                scratch.check_room()
            with pytest.raises(StorageFullError), scratch.workspace():
                pass
        assert list(scratch.folder.iterdir()) == []
        monkeypatch.setattr(scratch_module, "MIN_ROOM_BYTES", least_bytes)
        with scratch.workspace():
            scratch.check_room()
    assert [entry["event"] for entry in logs] == ["storage_full", "storage_free"]
    assert logs[0]["least_bytes"] == 2**62
    scratch.close()


def test_files_that_will_not_fit_are_refused_before_the_work(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    half = measure_room(tmp_path) // 2  # others may write meanwhile, but not so much
    with scratch.workspace() as one, scratch.workspace() as two:
        scratch.reserve(one, "one", half)
        scratch.reserve(two, "two", half // 4)
        with pytest.raises(StorageFullError):
            scratch.reserve(two, "two", half + half // 2)
        with pytest.raises(StorageFullError):
            scratch.check_upload(half + half // 2)
        with scratch.workspace() as three:
            scratch.reserve(three, "three", 0)  # what was promised to others does not shut it out
    scratch.check_upload(half + half // 2)
    with scratch.workspace() as folder:
        scratch.reserve(folder, "two", half + half // 2)
    scratch.close()


def test_what_is_written_of_the_room_set_aside_counts_once(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    with scratch.workspace() as folder:
        (folder / "clip").write_bytes(bytes(1000))
        scratch.reserve(folder, "one", 5_000_000)
        before = scratch._measure_unclaimed()
        (folder / "frames").write_bytes(bytes(4_000_000))
        # The disk's own entries, and what others write at the same time.
        assert abs(scratch._measure_unclaimed() - before) < 3_000_000
        scratch.reserve(folder, "one", 1_000_000)  # less than what is left of the first
        assert scratch._claims[folder].num_bytes == 5_001_000
        scratch.reserve(folder, "one", 2_000_000)
        assert scratch._claims[folder].num_bytes == 6_001_000
    assert not scratch._claims
    scratch.close()


def test_what_one_process_has_set_aside_counts_in_the_others(tmp_path: Path) -> None:
    first, second = (Scratch(tmp_path, key_share=0.7) for _ in range(2))
    half = measure_room(tmp_path) // 2
    with first.workspace() as one, second.workspace() as two:
        first.reserve(one, "one", half + half // 4)
        with pytest.raises(StorageFullError):
            second.reserve(two, "two", half)
        with pytest.raises(StorageFullError):
            second.check_upload(half)
        second.reserve(two, "two", half // 8)
        with pytest.raises(BusyError, match="more than its share"):
            second.reserve(two, "one", half // 4)
        assert len(first._claims) == 2
    assert not first._claims
    with second.workspace() as two:
        second.reserve(two, "one", half)
    first.close()
    second.close()


def test_the_files_of_one_key_take_its_share_of_the_room(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path, key_share=0.25)
    fifth = measure_room(tmp_path) // 5
    with scratch.workspace() as one, scratch.workspace() as two:
        scratch.reserve(one, "one", fifth)
        with pytest.raises(BusyError, match="more than its share"):
            scratch.reserve(two, "one", fifth)
        scratch.reserve(two, "two", fifth)
    with scratch.workspace() as folder:
        scratch.reserve(folder, "one", 2 * fifth)  # each key may have one request
    scratch.close()


def measure_room(folder: Path) -> int:
    stats = os.statvfs(folder)
    return stats.f_bavail * stats.f_frsize


def test_a_failing_request_leaves_no_folder(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)

    def fail() -> None:
        with scratch.workspace() as folder:
            (folder / "clip").write_bytes(b"bytes")
            raise NoFramesError("none")

    with pytest.raises(NoFramesError):
        fail()
    assert list(scratch.folder.iterdir()) == []
    scratch.close()


def test_a_folder_is_abandoned_when_it_is_gone_or_its_process_has_ended(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    with scratch.workspace() as folder:
        assert not is_abandoned(folder)
        kept = scratch.folder / "kept"
        kept.mkdir()
    assert is_abandoned(folder)
    assert not is_abandoned(kept)
    os.close(scratch._descriptor)  # as at the end of a process, which leaves its folder
    assert is_abandoned(kept)


def test_leftovers_of_a_killed_process_are_removed_and_those_of_a_living_one_are_not(
    tmp_path: Path,
) -> None:
    program = (
        "import pathlib, sys, time; from runners.jobs.scratch import Scratch\n"
        "scratch = Scratch(pathlib.Path(sys.argv[1]))\n"
        "(scratch.folder / 'clip').write_bytes(b'x'); print('made', flush=True); time.sleep(3600)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert remove_leftovers(tmp_path) == []
        (clip,) = tmp_path.glob("foley-*/clip")
        process.send_signal(signal.SIGKILL)
        process.wait(scale(10))
    assert remove_leftovers(tmp_path) == [clip.parent]
    assert list(tmp_path.iterdir()) == []


def test_the_last_process_removes_the_shared_folder(tmp_path: Path) -> None:
    one, two = SharedScratch(tmp_path), SharedScratch(tmp_path)
    assert one.folder == two.folder
    (one.results / "kept").write_bytes(b"x")
    Scratch(tmp_path).close()  # takes leftovers away, and these are none
    one.close()
    assert (two.results / "kept").is_file()
    two.close()
    assert list(tmp_path.iterdir()) == []


def test_a_shared_folder_of_another_user_is_not_used(tmp_path: Path) -> None:
    common = SharedScratch(tmp_path / "root")
    assert common.folder.stat().st_mode & 0o077 == 0
    common.close()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    common.folder.symlink_to(elsewhere)
    with pytest.raises(ConfigError, match="FOLEY_SCRATCH_DIR"):
        SharedScratch(tmp_path / "root")
    assert list(elsewhere.iterdir()) == []

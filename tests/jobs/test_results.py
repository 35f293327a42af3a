"""The files of finished requests, kept for a while."""

import os
import time
from pathlib import Path

import pytest

from foley.errors import NotFoundError, OutputError
from runners.jobs.results import ResultStore


def make_file(folder: Path, num_bytes: int, name: str = "foley-1.wav") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(bytes(num_bytes))
    return path


@pytest.fixture
def results(tmp_path: Path) -> ResultStore:
    folder = tmp_path / "results"
    folder.mkdir()
    return ResultStore(folder, keep_seconds=600, keep_bytes=100)


def sizes(tmp_path: Path) -> list[int]:
    files = (tmp_path / "results").glob("*/*")
    return sorted(file.stat().st_size for file in files)


def test_the_oldest_results_make_room(results: ResultStore, tmp_path: Path) -> None:
    for number, num_bytes in enumerate((40, 41, 19, 50)):
        results.store("", f"request-{number}", [make_file(tmp_path, num_bytes)])
        time.sleep(0.02)  # the age of a folder is known to some milliseconds
    assert sizes(tmp_path) == [19, 50]
    with pytest.raises(NotFoundError):
        results.find("", "request-1", "foley-1.wav")
    assert results.find("", "request-2", "foley-1.wav").stat().st_size == 19


def test_a_result_over_all_that_is_kept_pushes_nothing_out(
    results: ResultStore, tmp_path: Path
) -> None:
    results.store("", "small", [make_file(tmp_path, 60)])
    with pytest.raises(OutputError, match="101 bytes, this service keeps 100"):
        results.store("", "large", [make_file(tmp_path, 101)])
    assert sizes(tmp_path) == [60]


def test_an_id_that_is_used_again_names_its_latest_result(
    results: ResultStore, tmp_path: Path
) -> None:
    results.store("", "same", [make_file(tmp_path, 10), make_file(tmp_path, 10, "foley-2.wav")])
    time.sleep(0.02)
    results.store("", "same", [make_file(tmp_path, 20)])
    assert results.find("", "same", "foley-1.wav").stat().st_size == 20
    with pytest.raises(NotFoundError):
        results.find("", "same", "foley-2.wav")


def test_the_same_id_of_two_owners_names_two_results(results: ResultStore, tmp_path: Path) -> None:
    results.store("one", "same", [make_file(tmp_path, 10)])
    results.store("two", "same", [make_file(tmp_path, 20)])
    assert results.find("one", "same", "foley-1.wav").stat().st_size == 10
    with pytest.raises(NotFoundError):
        results.find("", "same", "foley-1.wav")


def test_results_go_when_their_time_is_over(results: ResultStore, tmp_path: Path) -> None:
    for name in ("old", "new"):
        results.store("", name, [make_file(tmp_path, 10)])
        if name == "old":
            (folder,) = (tmp_path / "results").iterdir()
            long_ago = time.time() - 601
            os.utime(folder, (long_ago, long_ago))
            with pytest.raises(NotFoundError):  # not yet swept
                results.find("", "old", "foley-1.wav")
    results.sweep()
    assert not folder.exists()
    assert results.find("", "new", "foley-1.wav").is_file()


def test_what_a_process_left_that_was_killed_while_it_stored_a_result_is_swept(
    results: ResultStore, tmp_path: Path
) -> None:
    left, being_filled = (tmp_path / "results" / name for name in (".left", ".being_filled"))
    for folder in (left, being_filled):
        make_file(folder, 10)
    os.utime(left, (time.time() - 601,) * 2)
    results.sweep()
    assert list((tmp_path / "results").iterdir()) == [being_filled]

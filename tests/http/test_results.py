"""What the API's processes share: kept results, and the wish to cancel."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from foley.errors import ConfigError, NotFoundError, OutputError
from runners.jobs.cancellation import CancellationRegistry
from runners.jobs.progress import Pace
from runners.jobs.results import Results
from runners.jobs.scratch import Common, Scratch, remove_leftovers
from runners.messages import ProgressUpdate
from tests.server import ROOT


def made(folder: Path, num_bytes: int, name: str = "foley-1.wav") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(bytes(num_bytes))
    return path


@pytest.fixture
def results(tmp_path: Path) -> Results:
    folder = tmp_path / "results"
    folder.mkdir()
    return Results(folder, keep_seconds=600, keep_bytes=100)


def sizes(tmp_path: Path) -> list[int]:
    files = (tmp_path / "results").glob("*/*")
    return sorted(file.stat().st_size for file in files)


def test_the_oldest_results_make_room(results: Results, tmp_path: Path) -> None:
    for number, num_bytes in enumerate((40, 41, 19, 50)):
        results.keep("", f"request-{number}", [made(tmp_path, num_bytes)])
        time.sleep(0.02)  # the age of a folder is known to some milliseconds
    assert sizes(tmp_path) == [19, 50]
    with pytest.raises(NotFoundError):
        results.find("", "request-1", "foley-1.wav")
    assert results.find("", "request-2", "foley-1.wav").stat().st_size == 19


def test_a_result_over_all_that_is_kept_pushes_nothing_out(
    results: Results, tmp_path: Path
) -> None:
    results.keep("", "small", [made(tmp_path, 60)])
    with pytest.raises(OutputError, match="101 bytes, this service keeps 100"):
        results.keep("", "large", [made(tmp_path, 101)])
    assert sizes(tmp_path) == [60]


def test_an_id_that_is_used_again_names_its_latest_result(results: Results, tmp_path: Path) -> None:
    results.keep("", "same", [made(tmp_path, 10), made(tmp_path, 10, "foley-2.wav")])
    time.sleep(0.02)
    results.keep("", "same", [made(tmp_path, 20)])
    assert results.find("", "same", "foley-1.wav").stat().st_size == 20
    with pytest.raises(NotFoundError):
        results.find("", "same", "foley-2.wav")


def test_the_same_id_of_two_owners_names_two_results(results: Results, tmp_path: Path) -> None:
    results.keep("one", "same", [made(tmp_path, 10)])
    results.keep("two", "same", [made(tmp_path, 20)])
    assert results.find("one", "same", "foley-1.wav").stat().st_size == 10
    with pytest.raises(NotFoundError):
        results.find("", "same", "foley-1.wav")


def test_results_go_when_their_time_is_over(results: Results, tmp_path: Path) -> None:
    for name in ("old", "new"):
        results.keep("", name, [made(tmp_path, 10)])
        if name == "old":
            (folder,) = (tmp_path / "results").iterdir()
            long_ago = time.time() - 601
            os.utime(folder, (long_ago, long_ago))
            with pytest.raises(NotFoundError):  # not yet swept
                results.find("", "old", "foley-1.wav")
    results.sweep()
    assert not folder.exists()
    assert results.find("", "new", "foley-1.wav").is_file()


WORKER = """
import asyncio, pathlib, sys
from runners.handoff import Common
from runners.jobs.cancellation import CancellationRegistry

async def work():
    common = Common(pathlib.Path(sys.argv[1]))
    with CancellationRegistry(common.requests).enter("me", "request-1") as flight:
        print("working", flush=True)
        print(await flight.cancelled(), flush=True)
    common.close()

asyncio.run(work())
"""


def start_worker(root: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WORKER, str(root)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"working\n"
    return process


def test_a_request_is_cancelled_by_another_process_of_the_same_server(tmp_path: Path) -> None:
    process = start_worker(tmp_path)
    (requests,) = tmp_path.glob("foley-common-*/requests")  # of a server that this process started
    in_flight = CancellationRegistry(requests)
    assert not in_flight.cancel("another", "request-1")
    assert not in_flight.cancel("me", "request-2")
    assert in_flight.cancel("me", "request-1")
    assert process.stdout is not None
    with process:
        assert process.stdout.read() == b"the request was cancelled\n"
    assert not in_flight.cancel("me", "request-1")
    assert list(tmp_path.iterdir()) == []


def test_a_request_of_a_dead_process_is_not_there(tmp_path: Path) -> None:
    process = start_worker(tmp_path)
    (requests,) = tmp_path.glob("foley-common-*/requests")
    process.kill()
    with process:
        pass
    assert len(list(requests.iterdir())) == 1
    assert not CancellationRegistry(requests).cancel("me", "request-1")
    assert list(requests.iterdir()) == []
    assert len(remove_leftovers(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == []


def test_two_requests_of_one_id_are_cancelled_together(tmp_path: Path) -> None:
    in_flight = CancellationRegistry(tmp_path)

    async def work() -> list[str]:
        with in_flight.enter("", "same") as one, in_flight.enter("", "same") as two:
            assert in_flight.cancel("", "same")
            async with asyncio.timeout(5):
                return list(await asyncio.gather(one.cancelled(), two.cancelled()))

    assert len(asyncio.run(work())) == 2
    assert list(tmp_path.iterdir()) == []


def test_the_last_process_removes_what_all_have_in_common(tmp_path: Path) -> None:
    one, two = Common(tmp_path), Common(tmp_path)
    assert one.folder == two.folder
    made(one.results, 1)
    Scratch(tmp_path).close()  # takes leftovers away, and these are none
    one.close()
    assert made(two.results, 1).is_file()
    two.close()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_somebody_else_put_there_is_not_used(tmp_path: Path) -> None:
    common = Common(tmp_path / "root")
    assert common.folder.stat().st_mode & 0o077 == 0
    common.close()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    common.folder.symlink_to(elsewhere)
    with pytest.raises(ConfigError, match="FOLEY_SCRATCH_DIR"):
        Common(tmp_path / "root")
    assert list(elsewhere.iterdir()) == []


def test_the_pace_of_the_steps_tells_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pace = Pace()
    assert pace.described(ProgressUpdate(stage="queue", queue_position=3)) == {
        "stage": "queue",
        "queue_position": 3,
    }
    left = []
    for step in (1, 2, 3, 5):
        left.append(pace.described(ProgressUpdate(stage="sample", step=step, num_steps=5)))
        now += 2.0
    assert [update.get("seconds_left") for update in left] == [None, 6.0, 4.0, 0.0]

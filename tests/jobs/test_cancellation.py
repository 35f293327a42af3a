"""Cancelling a request, whichever process works on it."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from runners.jobs.cancellation import CancellationRegistry
from runners.jobs.scratch import remove_leftovers
from tests.patience import scale
from tests.server import ROOT

WORKER = """
import asyncio, pathlib, sys
from runners.jobs.scratch import SharedScratch
from runners.jobs.cancellation import CancellationRegistry

async def work():
    common = SharedScratch(pathlib.Path(sys.argv[1]))
    with CancellationRegistry(common.requests).enter("me", "request-1") as cancellation:
        print("working", flush=True)
        print(await cancellation.wait(), flush=True)
    common.close()

asyncio.run(work())
"""


def start_worker(root: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WORKER, str(root)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"working\n"
    return process


@pytest.mark.slow
def test_a_request_is_cancelled_by_another_process_of_the_same_server(tmp_path: Path) -> None:
    process = start_worker(tmp_path)
    (requests,) = tmp_path.glob("foley-common-*/requests")  # of a server that this process started
    registry = CancellationRegistry(requests)
    assert not registry.cancel("another", "request-1")
    assert not registry.cancel("me", "request-2")
    assert registry.cancel("me", "request-1")
    assert process.stdout is not None
    with process:
        assert process.stdout.read() == b"the request was cancelled\n"
    assert not registry.cancel("me", "request-1")
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
    registry = CancellationRegistry(tmp_path)

    async def work() -> list[str]:
        with registry.enter("", "same") as one, registry.enter("", "same") as two:
            assert registry.cancel("", "same")
            async with asyncio.timeout(scale(5)):
                return list(await asyncio.gather(one.wait(), two.wait()))

    assert len(asyncio.run(work())) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_new_process_removes_the_requests_of_dead_ones_and_of_no_other(tmp_path: Path) -> None:
    dead, living = start_worker(tmp_path), start_worker(tmp_path)
    (requests,) = tmp_path.glob("foley-common-*/requests")
    dead.kill()
    with dead:
        pass
    assert len(list(requests.iterdir())) == 2
    registry = CancellationRegistry(requests)
    assert len(list(requests.iterdir())) == 1
    assert registry.cancel("me", "request-1")
    assert living.stdout is not None
    with living:
        assert living.stdout.read() == b"the request was cancelled\n"
    assert list(tmp_path.iterdir()) == []

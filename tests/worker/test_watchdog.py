"""A process that hangs ends, and one that works does not."""

import subprocess
import sys

import pytest

from tests.patience import scale
from tests.server import ROOT

PROGRAM = """
import asyncio, sys, time
from types import SimpleNamespace
from runners.worker.watchdog import watch

async def run(hang, state, silent, seconds):
    hangs = time.monotonic() + 1
    worker = SimpleNamespace(status=SimpleNamespace(state=state))
    worker.measure_longest_action = lambda now: now - hangs + 100 if hang == "engine" else 0.0
    worker.show_threads = lambda: print("shown", file=sys.stderr)
    watching = asyncio.create_task(watch(worker, silent_seconds=silent, action_seconds=100))
    await asyncio.sleep(silent / 10)  # it has begun
    if hang == "loop":
        time.sleep(seconds)
    else:
        await asyncio.sleep(seconds)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    time.sleep(1.5 * silent)  # a process that is ending is left alone
    print("lived")

asyncio.run(run(*sys.argv[1:3], *map(float, sys.argv[3:])))
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("hang", "state", "lives"),
    [
        ("loop", "ready", False),
        ("engine", "ready", False),
        ("loop", "loading", True),
        ("nothing", "ready", True),
    ],
)
def test_a_process_that_hangs_after_loading_ends_and_says_where(
    hang: str, state: str, lives: bool
) -> None:
    silent = scale(1)  # a busy machine stops a process that does not hang for as long
    seconds = 1.5 * silent if lives else 60 * silent
    command = [sys.executable, "-c", PROGRAM, hang, state, str(silent), str(seconds)]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=scale(60), check=False
    )
    if lives:
        assert (ended.returncode, ended.stdout) == (0, "lived\n"), ended.stderr
    else:
        assert ended.returncode == 1
        assert "Timeout (" in ended.stderr
        assert "most recent call first" in ended.stderr
        assert "lived" not in ended.stdout
        assert ("engine_hangs" in ended.stdout + ended.stderr) == (hang == "engine")
        assert ("shown" in ended.stderr) == (hang == "engine")

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runners.process import find_free_port
from tests.patience import scale, wait_for_exit

# A process that hangs at its end, with a short grace period.
HANGING = """
import asyncio, os, signal
from runners import process

process.find_grace_seconds = lambda: 0.1
process.LAST_RESORT_SECONDS = 0.1

async def hang_for_ever():
    await asyncio.Event().wait()

async def main():
    process.delay_stop_signal(hang_for_ever)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.Event().wait()

asyncio.run(main())
"""

# A launcher that is told to end at a moment when it starts processes.
BUSY_LAUNCHER = """
import os, signal, sys
from bentoml._internal.utils.circus import create_standalone_arbiter
from circus.watcher import Watcher
from runners.stop_signals import patch_launcher

patch_launcher()
arbiter = create_standalone_arbiter([Watcher("a", sys.executable, args=["-c", "input()"])])

def be_busy(_):
    arbiter._exclusive_running_command = "manage_watchers"
    os.kill(os.getpid(), signal.SIGTERM)
    arbiter.loop.call_later(0.1, setattr, arbiter, "_exclusive_running_command", None)

arbiter.start(be_busy)
"""

# A launcher one of whose processes cannot start.
FAILING_PROCESS = """
import click
from runners.process import end_service_on_failure

with click.Context(click.Command("serve")) as context, end_service_on_failure():
    context.params["fd"] = 0  # as BentoML gives it to what its launcher starts
    raise OSError("no room")
"""
FAILING_LAUNCHER = f"""
import sys
from bentoml._internal.utils.circus import create_standalone_arbiter
from circus.watcher import Watcher
from runners.stop_signals import patch_launcher

patch_launcher()
program = {FAILING_PROCESS!r}
arbiter = create_standalone_arbiter([Watcher("a", sys.executable, args=["-c", program])])
arbiter.start(cb=lambda _: None)
"""

# A process whose launcher is killed. It tells of the signal, and ends then or goes on.
LEFT_PROCESS = """
import signal, sys, time
import click
from runners import process

def tell(*_):
    print("SIGTERM", flush=True)
    END

process.find_grace_seconds = lambda: 0.1
process.LAST_RESORT_SECONDS = 0.1
signal.signal(signal.SIGTERM, tell)
with click.Context(click.Command("serve")) as context:
    context.params["fd"] = 0  # as BentoML gives it to what its launcher starts
    process.end_with_launcher()
print("started", flush=True)
while True:
    time.sleep(1)
"""
LEFT_LAUNCHER = """
import subprocess, sys

subprocess.run([sys.executable, "-c", sys.argv[1]])
"""


def test_a_free_port_is_none_that_connections_get() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(find_free_port(host) < first for host in ("127.0.0.1", "::1") for _ in range(20))


def test_a_process_that_hangs_at_its_end_says_where_and_ends() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=scale(60)
    )
    assert ended.returncode == 1
    assert "end_forced" in ended.stdout
    assert "hang_for_ever" in ended.stdout
    assert "most recent call first" in ended.stderr


@pytest.mark.slow
def test_a_launcher_that_is_busy_when_it_is_told_to_end_ends_afterwards() -> None:
    launcher = subprocess.Popen([sys.executable, "-c", BUSY_LAUNCHER], stdin=subprocess.PIPE)
    assert launcher.stdin is not None
    with launcher, launcher.stdin:
        try:
            assert wait_for_exit(launcher, 20) == 0
        finally:
            launcher.kill()


@pytest.mark.slow
def test_a_launcher_whose_process_cannot_start_ends_with_the_status_of_a_failed_start() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FAILING_LAUNCHER],
        capture_output=True,
        text=True,
        timeout=scale(60),
    )
    assert ended.returncode == 3, ended.stderr
    (told,) = [line for line in ended.stdout.splitlines() if "start_failed" in line]
    assert "no room" in told


@pytest.mark.parametrize("end", ["sys.exit()", "pass"])
def test_a_process_whose_launcher_is_killed_is_told_to_end_and_then_ended(end: str) -> None:
    launcher = subprocess.Popen(
        [sys.executable, "-c", LEFT_LAUNCHER, LEFT_PROCESS.replace("END", end)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with launcher:
        assert launcher.stdout is not None
        try:
            assert launcher.stdout.readline() == "started\n"
            launcher.kill()
            # It is read until the process that was left has ended too.
            assert launcher.communicate(timeout=scale(20))[0] == "SIGTERM\n"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(launcher.pid, signal.SIGKILL)

"""Signals that stop the command, in each stage of it."""

import signal
import subprocess
import sys

import pytest

from tests.patience import scale

# A program in which a signal comes when the commands are imported, or while one runs.
IMPORTS = """
import importlib.abc, signal, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "foley.cli.commands":
            try:
                signal.raise_signal({number})
            except BaseException:
                print("an exception in the middle of imports")

sys.meta_path.insert(0, Finder())
from foley.cli.app import main
main()
"""
RUNS = """
import signal, sys, types

class Cached:
    def __set_name__(self, owner, name):
        signal.raise_signal({number})

def app(arguments):
    try:
        class Owner:  # Python 3.11 makes a RuntimeError of what is raised here
            cached = Cached()
    finally:
        print("cleaned")

sys.modules["foley.cli.commands"] = types.SimpleNamespace(app=app)
from foley.cli.app import main
main()
"""
NUMBERS = [
    (signal.SIGINT, 130, "interrupted"),
    (signal.SIGTERM, 143, "stopped by SIGTERM"),
    (signal.SIGHUP, 129, "stopped by SIGHUP"),
]


def run(program: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=scale(20)
    )


@pytest.mark.parametrize(("number", "code", "word"), NUMBERS)
def test_a_signal_during_imports_ends_with_one_line(number: int, code: int, word: str) -> None:
    ended = run(IMPORTS.format(number=int(number)))
    assert (ended.returncode, ended.stdout) == (code, "")
    assert ended.stderr == f"foley: {word}; no partial file was left\n"


@pytest.mark.parametrize(("number", "code", "word"), NUMBERS)
def test_a_signal_while_a_command_runs_lets_it_clean_up(number: int, code: int, word: str) -> None:
    ended = run(RUNS.format(number=int(number)))
    assert (ended.returncode, ended.stdout) == (code, "cleaned\n")
    assert ended.stderr == f"foley: {word}; no partial file was left\n"


def test_sigterm_stops_a_command_that_ignores_ctrl_c() -> None:
    # A shell without job control starts what is in its background so.
    ignoring = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    ended = run(ignoring + RUNS.format(number=int(signal.SIGTERM)))
    assert (ended.returncode, ended.stdout) == (143, "cleaned\n")
    ended = run(ignoring + RUNS.format(number=int(signal.SIGINT)))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "cleaned\n", "")


def test_a_command_under_nohup_goes_on_without_its_terminal() -> None:
    ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    ended = run(ignoring + RUNS.format(number=int(signal.SIGHUP)))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "cleaned\n", "")

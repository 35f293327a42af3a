"""The forking process with tasks that do what a hostile clip might make a decoder do."""

import ctypes
import os
import signal
import time
from pathlib import Path

import torch

from foley.errors import OutputError
from runners.sandbox import fork_server, tasks


def crash(_folder: Path) -> None:
    ctypes.string_at(0)


def take_memory(_folder: Path, *, of: str) -> None:
    if of == "torch":
        torch.zeros(2**30, dtype=torch.uint8)
    else:
        bytearray(2**30)


def spin(_folder: Path) -> None:
    while True:
        pass


def fill_disk(folder: Path) -> None:
    with (folder / "large").open("wb") as file:
        for _ in range(64):
            file.write(bytes(2**20))


def open_files(folder: Path) -> int:
    files = []
    try:
        while True:
            files.append((folder / f"file-{len(files)}").open("wb"))
    except OSError:
        return len(files)


def write_on_and_on(folder: Path) -> None:
    (folder / "begun").touch()
    for number in range(10**9):
        (folder / f"file-{number % 100}").write_bytes(bytes(1000))


def wait(folder: Path) -> None:
    (folder / "begun").touch()
    time.sleep(60)


def fail(folder: Path) -> None:
    raise KeyError(str(folder))


def refuse(folder: Path) -> None:
    raise OutputError(f"{folder / 'foley-1.mp4'} cannot be written")


def look_around(_folder: Path) -> list[str]:
    return sorted(os.environ)


def kill_parent(_folder: Path) -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


HOSTILE = (
    crash, take_memory, spin, fill_disk, open_files, write_on_and_on, wait, fail, refuse,
    look_around, kill_parent,
)  # fmt: skip

if __name__ == "__main__":
    tasks.TASKS.update({task.__name__: task for task in HOSTILE})
    fork_server.main()

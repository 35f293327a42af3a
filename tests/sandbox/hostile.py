"""A fork server whose tasks do what a hostile clip, or a bug of ours, might make a task do.

The tasks `decode` and `write` misbehave in the way that they are asked for, so that the outcome can
depend on the task, as it does in the service.
"""

import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import torch

from foley.errors import OutputError
from runners.sandbox import fork_server, tasks


def crash(_folder: Path) -> None:
    ctypes.string_at(0)


def take_memory_in_torch(_folder: Path) -> None:
    torch.zeros(2**30, dtype=torch.uint8)


def take_memory_in_python(_folder: Path) -> None:
    bytearray(2**30)


def spin(_folder: Path) -> None:
    while True:
        pass


def write_large_file(folder: Path) -> None:
    with (folder / "large").open("wb") as file:
        for _ in range(64):
            file.write(bytes(2**20))


def raise_key_error(folder: Path) -> None:
    raise KeyError(str(folder))


def raise_type_error(_folder: Path) -> None:
    len(3)  # type: ignore[arg-type]


def raise_assertion_error(_folder: Path) -> None:
    raise AssertionError


def raise_foreign_ffmpeg_error(_folder: Path) -> None:
    raise av.FFmpegError(1, "one that no code of ours has turned into a VideoError")


def be_killed(_folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def exit_early(_folder: Path) -> None:
    os._exit(3)


def refuse(folder: Path) -> None:
    raise OutputError(f"{folder / 'foley-1.mp4'} cannot be written")


def refuse_for_the_folder(folder: Path) -> None:
    try:
        (folder / "absent" / "foley-1.mp4").touch()
    except OSError as error:
        raise OutputError("foley-1.mp4 cannot be written") from error


WAYS: dict[str, Callable[[Path], None]] = {
    way.__name__: way
    for way in (
        crash, take_memory_in_torch, take_memory_in_python, spin, write_large_file,
        raise_key_error, raise_type_error, raise_assertion_error, raise_foreign_ffmpeg_error,
        be_killed, exit_early, refuse, refuse_for_the_folder,
    )
}  # fmt: skip


def misbehave(folder: Path, *, how: str) -> None:
    WAYS[how](folder)


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
    time.sleep(3600)


def look_around(_folder: Path) -> list[str]:
    return sorted(os.environ)


def kill_fork_server(_folder: Path) -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(3600)


TASKS: dict[str, Callable[..., Any]] = {
    "decode": misbehave,
    "write": misbehave,
    **{
        task.__name__: task
        for task in (open_files, write_on_and_on, wait, look_around, kill_fork_server)
    },
}

if __name__ == "__main__":
    tasks.TASKS.update(TASKS)
    fork_server.main()

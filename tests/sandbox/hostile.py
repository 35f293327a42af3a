"""A fork server whose tasks do what a hostile clip, or a bug of ours, might make a task do.

The tasks `decode` and `write` misbehave in the way that they are asked for, so that the outcome can
depend on the task, as it does in the service.
"""

import ctypes
import errno
import fcntl
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import torch
from safetensors import SafetensorError

from foley.errors import OutputError
from runners.sandbox import fork_server, tasks
from runners.sandbox.questions import ask


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


def be_killed_once(folder: Path) -> None:
    _do_once(folder, be_killed)


def crash_once(folder: Path) -> None:
    _do_once(folder, crash)


def _do_once(folder: Path, way: Callable[[Path], None]) -> None:
    done = folder / "done"
    if not done.exists():
        done.touch()
        way(folder)


def fill_the_disk(_folder: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def fill_the_disk_by_safetensors(_folder: Path) -> None:
    # Its errors have no number. This is what it says on a full tmpfs.
    raise SafetensorError(
        "Error while serializing: I/O error: No space left on device (os error 28)"
    )


def exit_early(_folder: Path) -> None:
    os._exit(3)


def refuse(folder: Path) -> None:
    raise OutputError(f"{folder / 'foley-1.mp4'} cannot be written")


def refuse_for_the_folder(folder: Path) -> None:
    try:
        (folder / "absent" / "foley-1.mp4").touch()
    except OSError as error:
        raise OutputError("foley-1.mp4 cannot be written") from error


def ask_on_and_on(_folder: Path) -> None:
    while True:
        ask({"sign": "AAAA"})


WAYS: dict[str, Callable[[Path], None]] = {
    way.__name__: way
    for way in (
        crash, take_memory_in_torch, take_memory_in_python, spin, write_large_file,
        raise_key_error, raise_type_error, raise_assertion_error, raise_foreign_ffmpeg_error,
        be_killed, be_killed_once, crash_once, exit_early, fill_the_disk,
        fill_the_disk_by_safetensors, refuse, refuse_for_the_folder, ask_on_and_on,
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


def read_environment_of_parent(_folder: Path) -> None:
    Path(f"/proc/{os.getppid()}/environ").read_bytes()


def read_passwords(_folder: Path) -> None:
    Path("/etc/passwd").read_text()


def list_root(_folder: Path) -> None:
    os.listdir("/")


def write_beside_the_folder(folder: Path) -> None:
    (folder.parent / "taken").write_text("by the child")


def remove_beside_the_folder(folder: Path) -> None:
    (folder.parent / "precious").unlink()


def link_to_passwords(folder: Path) -> None:
    (folder / "link").symlink_to("/etc/passwd")
    (folder / "link").read_text()


def connect_by_tcp(_folder: Path) -> None:
    socket.socket(socket.AF_INET)


def connect_by_unix_socket(_folder: Path) -> None:
    socket.socket(socket.AF_UNIX)


def make_socket_pair(_folder: Path) -> None:
    socket.socketpair()


def execute_a_program(_folder: Path) -> None:
    os.execv("/bin/true", ["true"])


def fork_a_process(_folder: Path) -> None:
    if os.fork() == 0:
        os._exit(0)


def spawn_a_program(_folder: Path) -> None:
    os.posix_spawn("/bin/true", ["true"], {})


def trace_the_parent(_folder: Path) -> None:
    _call("ptrace", 16, os.getppid(), None, None)  # PTRACE_ATTACH
    _call("ptrace", 17, os.getppid(), None, None)  # PTRACE_DETACH


def kill_the_parent(_folder: Path) -> None:
    os.kill(os.getppid(), signal.SIGTERM)  # which the fork server ignores


def signal_the_parent_by_a_file(folder: Path) -> None:
    with (folder / "file").open("wb") as file:
        fcntl.fcntl(file, fcntl.F_SETOWN, os.getppid())


def raise_a_limit(_folder: Path) -> None:
    _call("setrlimit", 7, (ctypes.c_uint64 * 2)(32, 32))  # RLIMIT_NOFILE


def make_memory_file(_folder: Path) -> None:
    os.memfd_create("code")


def change_mode(folder: Path) -> None:
    (folder / "program").write_text("#!/bin/sh")
    (folder / "program").chmod(0o4755)


def _call(name: str, *arguments: Any) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        raise OSError(ctypes.get_errno(), name)


ATTACKS: dict[str, Callable[[Path], None]] = {
    attack.__name__: attack
    for attack in (
        read_environment_of_parent, read_passwords, list_root, write_beside_the_folder,
        remove_beside_the_folder, link_to_passwords, connect_by_tcp, connect_by_unix_socket,
        make_socket_pair, execute_a_program, fork_a_process, spawn_a_program, trace_the_parent,
        kill_the_parent, signal_the_parent_by_a_file, raise_a_limit, make_memory_file, change_mode,
    )
}  # fmt: skip


def attack(folder: Path, *, how: str) -> str:
    """Return the name of the error with which an attack fails, "succeeded" if it does not."""
    try:
        ATTACKS[how](folder)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "succeeded"


def start_threads(_folder: Path) -> int:
    """Return how many of 8 threads have run."""
    done: list[int] = []
    threads = [threading.Thread(target=done.append, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(done)


TASKS: dict[str, Callable[..., Any]] = {
    "decode": misbehave,
    "write": misbehave,
    **{
        task.__name__: task
        for task in (open_files, write_on_and_on, wait, look_around, attack, start_threads)
    },
}

if __name__ == "__main__":
    tasks.prepare()
    fork_server.main(TASKS)

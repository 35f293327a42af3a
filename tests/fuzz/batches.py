"""A fork server that tries many clips in one child, confined and limited as the service's are.

A fork takes longer than to decode and write a clip of a few frames. What a clip does to the child,
its memory, its files and its time, is the same with others before it.
"""

import os
import resource
from pathlib import Path
from typing import Any

import torch

from foley.errors import RequestError
from runners.handoff import CLIP
from runners.sandbox import fork_server, tasks
from runners.sandbox.fork_server import MAX_OPEN_FILES

MIX = {"original_sound": "duck", "stems": True}


def try_clips(
    folder: Path, *, mixed: list[bool], decoding: dict[str, Any], writing: dict[str, Any]
) -> list[tuple[str, float]]:
    """Decode each clip of a folder, and write a result of what can be decoded.

    Args:
        folder: with the waveforms, and with clips of the names 0, 1, ...
        mixed: for each clip, whether its own sound is mixed in.
        decoding: arguments of the task `decode`.
        writing: arguments of the task `write`.

    Returns:
        For each clip "written" or the code of the error, and its seconds of CPU time.
    """
    outcomes: list[tuple[str, float]] = []
    num_open = count_open_files()
    for number, mixes in enumerate(mixed):
        started = _cpu_seconds()
        (folder / str(number)).rename(folder / CLIP)
        code = "written"
        try:
            read = tasks.decode(folder, **decoding, with_sound=mixes)
            tasks.write(
                folder,
                **writing,
                stop_seconds=0.2 if read["trimmed"] else None,
                mix=MIX if mixes else {},
            )
        except RequestError as error:
            code = error.code
        for file in folder.glob("foley-*"):
            file.unlink()
        outcomes.append((code, round(_cpu_seconds() - started, 3)))
        assert count_open_files() == num_open, f"clip {number} of the batch left a file open"
    return outcomes


def count_open_files() -> int:
    """Return how many files this process has open; it cannot list /proc."""
    return sum(_is_open(descriptor) for descriptor in range(MAX_OPEN_FILES))


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    torch.set_num_threads(1)  # as many children as cores
    tasks.prepare()
    fork_server.main({**tasks.TASKS, "try_clips": try_clips})

"""The worker's memory is used again, not returned to the kernel and cleared anew."""

import platform
import subprocess
import sys

import pytest

from runners.worker.memory import hold_freed_memory

NUM_ROUNDS, NUM_BYTES = 4, 24 << 20
PAGE_BYTES = 4096
# What the engine's thread does: results of operations come and go, three at a time.
PROGRAM = f"""
import ctypes, resource, sys, threading
from runners.worker.memory import hold_freed_memory

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
count_faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    for _ in range({NUM_ROUNDS}):
        before = count_faults()
        taken = [ctypes.c_void_p(library.malloc({NUM_BYTES})) for _ in range(3)]
        for place in taken:
            ctypes.memset(place, 1, {NUM_BYTES})
        for place in taken:
            library.free(place)
        print(count_faults() - before)

hold_freed_memory(sys.argv[1])
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def count_faults(device: str) -> list[int]:
    """Return the pages that the kernel cleared in each round, for a model on that device."""
    command = [sys.executable, "-c", PROGRAM, device]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return [int(line) for line in ended.stdout.split()]


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_what_a_model_on_the_cpu_frees_is_used_again() -> None:
    _, *others = count_faults("cpu")
    # A third of all pages, where nothing is held.
    assert max(others) < 0.05 * 3 * NUM_BYTES // PAGE_BYTES


def test_the_process_of_a_gpu_is_left_alone() -> None:
    assert not hold_freed_memory("cuda")

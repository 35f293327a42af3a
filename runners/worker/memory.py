"""Memory of the host, which a model on the CPU uses again and again."""

import ctypes
from pathlib import Path

# Numbers of glibc's `mallopt`, from <malloc.h>.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_LARGEST_HELD = 32 << 20  # older versions of glibc take no more
_MOST_HELD = 512 << 20
_NVIDIA_DRIVER = Path("/proc/driver/nvidia")


def hold_freed_memory(device: str) -> bool:
    """Let the process of a model on the CPU keep what it frees; returns whether it does.

    Each operation of a model allocates its result, of up to some 30 MB, and the next one frees
    that. By default glibc gives such memory back to the kernel, which then clears it anew, page by
    page. For threads beside the main one it does so more often, because each has memory of its own
    in parts of 64 MB: from now on they share that of the main thread.

    It has to be called before other threads have allocated memory.

    Args:
        device: of the model, as the settings name it.
    """
    if device != "cpu" and (device != "auto" or _NVIDIA_DRIVER.exists()):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    options = {
        _ARENA_MAX: 1,
        _MMAP_THRESHOLD: _LARGEST_HELD,
        _TRIM_THRESHOLD: _MOST_HELD,
    }
    return all(mallopt(option, value) for option, value in options.items())

"""The end of a child process."""

import subprocess


def end_within(process: subprocess.Popen[bytes] | subprocess.Popen[str], seconds: float) -> None:
    """Wait for a process that was asked to end, and kill it when it takes longer.

    Args:
        process: a child of this one.
        seconds: that it has.
    """
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

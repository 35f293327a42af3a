"""Try the sandbox as on a kernel without Landlock; prints the findings as JSON.

A filter that this process gives itself answers Landlock's first call as such a kernel does.
"""

import asyncio
import contextlib
import ctypes
import errno
import io
import json
import os
import tempfile
from pathlib import Path

from structlog.testing import capture_logs

from runners.sandbox import confinement
from runners.sandbox.fork_server import SandboxLimits
from runners.sandbox.pool import Sandbox
from runners.settings import child_environment


def remove_landlock() -> None:
    code = confinement._pack(
        [
            confinement._load(0),
            (confinement._IS_EQUAL, 0, 1, confinement._LANDLOCK_CREATE_RULESET),
            confinement._answer(confinement._FAIL | errno.ENOSYS),
            confinement._answer(confinement._ALLOW),
        ]
    )
    buffer = ctypes.create_string_buffer(code, len(code))
    program = confinement._Program(4, ctypes.addressof(buffer))
    libc = confinement._libc()
    assert libc.prctl(confinement._PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert libc.prctl(confinement._PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0) == 0


async def try_attacks(folder: Path) -> dict[str, str]:
    limits = SandboxLimits(memory_bytes=2**30, cpu_seconds=60, file_bytes=2**20)
    sandbox = Sandbox(limits, child_environment(), module="tests.sandbox.hostile")
    await sandbox.start()
    try:
        return {
            how: await sandbox.run("attack", folder, how=how)
            for how in ("connect_by_tcp", "read_passwords")
        }
    finally:
        sandbox.close()


def start_service() -> str:
    os.environ["FOLEY_SANDBOX"] = "required"
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            import service  # noqa: F401
        except SystemExit as error:
            return f"{error.code} {said.getvalue().rstrip()}"
    return ""


def main() -> None:
    remove_landlock()
    with tempfile.TemporaryDirectory() as folder, capture_logs() as logs:
        attacks = asyncio.run(try_attacks(Path(folder)))
    print(json.dumps({"attacks": attacks, "logs": logs, "refusal": start_service()}))


if __name__ == "__main__":
    main()

"""A PostgreSQL server of our own, on a free port of loopback and in a temporary folder."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from runners.process import find_free_port
from tests.patience import wait_for_exit, wait_until

NOBODY = 65534  # PostgreSQL refuses to run as root
# Durability of the database itself is not under test.
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


def find_programs() -> Path:
    """Return the folder of PostgreSQL's programs, or skip the test."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if (found := shutil.which("initdb")) is not None:
        folders.append(Path(found).resolve().parent)
    for folder in folders:
        if all((folder / name).exists() for name in ("initdb", "postgres", "pg_isready")):
            return folder
    pytest.skip("PostgreSQL's server is not installed")


@dataclass
class Postgres:
    """A server.

    Attributes:
        programs: its folder.
        folder: of its data.
        host: on which it listens.
        port: on which it listens.
    """

    programs: Path
    folder: Path
    host: str
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where the queue's database is; the first who asks creates it."""
        return f"postgresql://foley:secret@{self.host}:{self.port}/foley"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [str(self.programs / "postgres"), "-D", str(self.folder / "data"), "-p"]
        command += [str(self.port), "-k", "", "-c", f"listen_addresses={self.host}"]
        for name, value in FAST.items():
            command += ["-c", f"{name}={value}"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, **as_nobody())
        ready = [str(self.programs / "pg_isready"), "-q", "-h", self.host, "-p", str(self.port)]
        wait_until(
            lambda: subprocess.run(ready, check=False).returncode == 0,
            60,
            what=lambda: (self.folder / "log").read_text(),
        )

    def stop(self) -> None:
        """End it at once, with all connections."""
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            wait_for_exit(self.process, 30)
            self.process = None


@contextmanager
def serve_postgres(host: str = "127.0.0.1") -> Iterator[Postgres]:
    """Yield an empty server.

    Args:
        host: address of this machine.
    """
    programs = find_programs()
    with tempfile.TemporaryDirectory(prefix="foley-postgres-") as name:
        folder = Path(name)
        password = folder / "password"
        password.write_text("secret")
        for path in (folder, password):
            if os.geteuid() == 0:
                os.chown(path, NOBODY, NOBODY)
        init = [str(programs / "initdb"), "-D", str(folder / "data"), "-U", "foley", "--no-sync"]
        init += ["--auth=scram-sha-256", f"--pwfile={password}", "--no-instructions"]
        init += ["--locale=C", "--encoding=UTF8"]
        subprocess.run(init, check=True, capture_output=True, **as_nobody())
        if host != "127.0.0.1":
            with (folder / "data/pg_hba.conf").open("a") as rules:
                rules.write("host all all all scram-sha-256\n")
        server = Postgres(programs, folder, host, find_free_port())
        try:
            server.start()
            yield server
        finally:
            server.stop()


def as_nobody() -> dict[str, object]:
    """Return the options of a process that must not be root's."""
    if os.geteuid() != 0:
        return {}
    return {"user": NOBODY, "group": NOBODY, "extra_groups": [], "cwd": "/"}

"""The folders in which requests are worked on, and what is left of processes that died.

    <scratch root>/
        foley-<random>.lock     held by flock for as long as its process lives
        foley-<random>/         one for each API process
            <random>/           one for each request; gone when the request ends, however it ends
                clip  frames.safetensors  waveforms.safetensors  output files
        foley-common-<server>.lock   held, shared, by each API process of one server
        foley-common-<server>/  what these processes have in common; the last one removes it
            requests/           one file for each request that is being worked on
            results/            one folder for each result that is kept

The kernel drops a lock with its process, whatever killed it, so the folders whose lock can be taken
are leftovers; they are removed when the next process starts.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from foley.errors import ConfigError

NAME = "foley-"
LOCK = ".lock"
CLIP = "clip"


class Scratch:
    """The folder of one process, with a folder for each of its requests."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        remove_leftovers(root)
        # Locked before it gets the name that others look for, so it never seems a leftover.
        descriptor, unnamed = tempfile.mkstemp(prefix=".", suffix=LOCK, dir=root)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        self.folder = Path(tempfile.mkdtemp(prefix=NAME, dir=root))
        self._descriptor = descriptor
        self._lock = self.folder.with_name(self.folder.name + LOCK)
        os.rename(unnamed, self._lock)

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """A folder for one request, removed at the end with all that is in it."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            yield folder
        finally:
            # A thread that a timeout left behind may still be writing here; `close` takes the rest.
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Remove the folder and give up its lock."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.unlink(missing_ok=True)
        os.close(self._descriptor)


class Common:
    """The folder that all API processes of one server have in common.

    Raises:
        ConfigError: something that is not ours has its name.
    """

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.folder = root / f"{NAME}common-{_server_name()}"
        self._lock = self.folder.with_name(self.folder.name + LOCK)
        while not self._join():
            pass  # the last process of an earlier server was just removing it
        self.folder.mkdir(mode=0o700, exist_ok=True)
        about = self.folder.lstat()
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
            # Its name can be known beforehand, and /dev/shm is everybody's.
            raise ConfigError(f"{self.folder} is somebody else's; set FOLEY_SCRATCH_DIR")
        self.requests = self.folder / "requests"
        self.results = self.folder / "results"
        for folder in (self.requests, self.results):
            folder.mkdir(exist_ok=True)

    def _join(self) -> bool:
        """Whether the lock that was taken is the one that others will find."""
        self._descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._descriptor), self._lock.stat()):
                return True
        os.close(self._descriptor)
        return False

    def close(self) -> None:
        """Give up the lock; whoever held it last removes the folder."""
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(self.folder, ignore_errors=True)
            self._lock.unlink(missing_ok=True)
        os.close(self._descriptor)


def _server_name() -> str:
    """The same in all processes of one server: they have one parent."""
    name = f"{socket.gethostname()}/{os.getppid()}"  # containers may share the folder, not pids
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def remove_leftovers(root: Path) -> list[Path]:
    """Remove the folders whose processes are dead; returns them."""
    removed = []
    for lock in root.glob(f"{NAME}*{LOCK}"):
        with contextlib.suppress(OSError), lock.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            folder = lock.with_name(lock.name.removesuffix(LOCK))
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink()
            removed.append(folder)
    return removed

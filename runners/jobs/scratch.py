"""The folders for the files of requests, and the removal of those that dead processes left.

    <scratch root>/
        foley-<random>.lock     locked by flock for as long as its process lives
        foley-<random>/         one for each API process
            room-<random>-<owner>-<bytes>   what a request may still write, which all processes heed
            <random>/           one for each request, removed when the request ends
                clip  frames.safetensors  frames.json  waveforms.safetensors  output files
        foley-common-<server>.lock   locked, shared, by each API process of one server
        foley-common-<server>/  shared by these processes; the last one removes it
            requests/           one file for each active request
            results/            one folder for each result that is kept

The kernel drops a lock with its process. So a folder whose lock can be taken is a leftover of a
dead process. It is removed when the next process starts.
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
from typing import NamedTuple

import structlog

from foley.errors import BusyError, ConfigError, StorageFullError

log = structlog.get_logger(__name__)

MIN_ROOM_BYTES = 32 * 1024 * 1024  # the frames of a clip of 3 s
NAME = "foley-"
LOCK = ".lock"
REQUESTS = "requests"
ROOM = "room-"  # where confined children cannot write
_PARENT = os.getppid()  # asked once, since a process whose parent was killed gets another one


class _Claim(NamedTuple):
    owner: str  # a digest
    num_bytes: int  # that the folder of a request may come to hold


class Scratch:
    """The folder of one process, with a folder for each of its requests.

    Args:
        root: created if missing; leftovers in it are removed.
        key_share: largest share of the room that the files of one key's requests may take,
            above 0; each may have one request.
    """

    def __init__(self, root: Path, key_share: float = 1.0) -> None:
        root.mkdir(parents=True, exist_ok=True)
        remove_leftovers(root)
        self._key_share = key_share
        self._root = root
        self._was_full = False
        # Locked before it gets the name that others look for, so that it never looks like a
        # leftover.
        descriptor, unnamed = tempfile.mkstemp(prefix=".", suffix=LOCK, dir=root)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        self.folder = Path(tempfile.mkdtemp(prefix=NAME, dir=root))
        self._descriptor = descriptor
        self._lock = self.folder.with_name(self.folder.name + LOCK)
        os.rename(unnamed, self._lock)

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """Yield an empty folder for one request, and remove it with its files at the end.

        Raises:
            StorageFullError: as `check_room`.
        """
        self.check_room()
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            yield folder
        finally:
            self._forget_claim(folder)
            # A thread that outlived a timeout may still write here. `close` removes such files.
            shutil.rmtree(folder, ignore_errors=True)

    def reserve(self, folder: Path, owner: str, num_bytes: int) -> None:
        """Set room aside for what a request will write, until its workspace is removed.

        What other processes have set aside counts too. A later call counts as far as it asks for
        more than an earlier one of the same request.

        Args:
            folder: the request's workspace. What is in it is counted already.
            owner: of the request; see `runners.auth.caller_of`.
            num_bytes: that will be written beside it.

        Raises:
            BusyError: the requests of this key would take more than its share.
            StorageFullError: there is no room for so much.
        """
        before = self._claims.get(folder)
        wanted = _Claim(
            hashlib.sha256(owner.encode()).hexdigest()[:16], _measure_files(folder) + num_bytes
        )
        # What was promised to others does not shut out a request that asks for no more.
        if not num_bytes or (before is not None and before.num_bytes >= wanted.num_bytes):
            return
        # Noted first: of two processes that ask at the same time, one at least sees both.
        self._note_claim(folder, wanted)
        try:
            others = self._claims
            others.pop(folder, None)
            self._check_claim(wanted, num_bytes, others)
        except BaseException:
            self._forget_claim(folder)
            if before is not None:
                self._note_claim(folder, before)
            raise

    def _check_claim(self, wanted: _Claim, num_bytes: int, others: dict[Path, _Claim]) -> None:
        claimed_bytes = sum(claim.num_bytes for claim in others.values())
        of_key = sum(claim.num_bytes for claim in others.values() if claim.owner == wanted.owner)
        room_bytes = self._measure_unclaimed(others)
        if of_key and of_key + wanted.num_bytes > self._key_share * (room_bytes + claimed_bytes):
            raise BusyError(
                f"the files of this caller's requests would take {of_key + wanted.num_bytes} "
                "bytes, more than its share of the room; try again later"
            )
        if num_bytes > room_bytes:
            raise StorageFullError()

    @property
    def _claims(self) -> dict[Path, _Claim]:
        """What the requests of all processes have set aside, by their folders."""
        claims = {}
        for path in self._root.glob(f"{NAME}*/{ROOM}*"):
            _, request, owner, num_bytes = path.name.split("-")
            claims[path.parent / request] = _Claim(owner, int(num_bytes))
        return claims

    def _note_claim(self, folder: Path, claim: _Claim) -> None:
        self._forget_claim(folder)
        try:
            (self.folder / f"{ROOM}{folder.name}-{claim.owner}-{claim.num_bytes}").touch()
        except OSError as error:
            raise StorageFullError() from error

    def _forget_claim(self, folder: Path) -> None:
        # A pattern of pathlib with the folder's name would be compiled for each request.
        with contextlib.suppress(FileNotFoundError):  # at the end of the service
            for name in os.listdir(self.folder):
                if name.startswith(f"{ROOM}{folder.name}-"):
                    (self.folder / name).unlink(missing_ok=True)

    def check_upload(self, num_bytes: int = 0) -> None:
        """Return if so many bytes may arrive, beside what was set aside for running requests.

        Args:
            num_bytes: of an upload, whose frames need room too.

        Raises:
            StorageFullError: there is no room for them.
        """
        if num_bytes > self._measure_unclaimed() - MIN_ROOM_BYTES:
            raise StorageFullError()

    def _measure_unclaimed(self, claims: dict[Path, _Claim] | None = None) -> int:
        """Return the bytes that are free and not set aside; what is written is free no more."""
        missing_bytes = sum(
            max(0, claim.num_bytes - _measure_files(folder))
            for folder, claim in (self._claims if claims is None else claims).items()
        )
        return self._measure_free() - missing_bytes

    def _measure_free(self) -> int:
        stats = os.statvfs(self.folder)
        return stats.f_bavail * stats.f_frsize

    def check_room(self) -> None:
        """Return if the file system has room for a request; logs once when that changes.

        Raises:
            StorageFullError: it has less than `MIN_ROOM_BYTES`.
        """
        free_bytes = self._measure_free()
        is_full = free_bytes < MIN_ROOM_BYTES
        if is_full != self._was_full:
            self._was_full = is_full
            report = log.error if is_full else log.info
            report(
                "storage_full" if is_full else "storage_free",
                folder=str(self.folder.parent),
                free_bytes=free_bytes,
                least_bytes=MIN_ROOM_BYTES,
            )
        if is_full:
            raise StorageFullError()

    def close(self) -> None:
        """Remove the folder and release its lock."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.unlink(missing_ok=True)
        os.close(self._descriptor)


def _measure_files(folder: Path) -> int:
    """Return the bytes of the files in a folder, which may go meanwhile."""
    num_bytes = 0
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                num_bytes += entry.stat(follow_symlinks=False).st_size
    return num_bytes


class SharedScratch:
    """The folder that all API processes of one server share.

    Args:
        root: created if missing.

    Attributes:
        folder: the shared folder.
        requests: for `runners.jobs.cancellation`.
        results: for `runners.jobs.results`.

    Raises:
        ConfigError: another user has a file of its name.
    """

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.folder = find_shared_folder(root)
        self._lock = self.folder.with_name(self.folder.name + LOCK)
        while not self._join():
            pass  # the last process of an earlier server has just removed it
        self.folder.mkdir(mode=0o700, exist_ok=True)
        about = self.folder.lstat()
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
            # Any user can create files in /dev/shm, and the name is predictable.
            raise ConfigError(f"{self.folder} belongs to another user; set FOLEY_SCRATCH_DIR")
        self.requests = self.folder / REQUESTS
        self.results = self.folder / "results"
        for folder in (self.requests, self.results):
            folder.mkdir(exist_ok=True)

    def _join(self) -> bool:
        """Take the lock; returns whether it is still the file that others will find."""
        self._descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._descriptor), self._lock.stat()):
                return True
        os.close(self._descriptor)
        return False

    def close(self) -> bool:
        """Release the lock; the last process that does so removes the folder, and gets True."""
        is_last = False
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_last = True
            shutil.rmtree(self.folder, ignore_errors=True)
            self._lock.unlink(missing_ok=True)
        os.close(self._descriptor)
        return is_last


def find_shared_folder(root: Path) -> Path:
    """Return the path of the shared folder, which may not exist yet or no longer.

    Args:
        root: as of `SharedScratch`.
    """
    return root / f"{NAME}common-{_make_server_name()}"


def _make_server_name() -> str:
    """Return a name that all processes of one server share, because they have one parent."""
    # The host's name, because containers that share a folder may have equal process ids.
    name = f"{socket.gethostname()}/{_PARENT}"
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def is_abandoned(workspace: Path) -> bool:
    """Return whether a request's folder is gone, or the process that made it is dead.

    Args:
        workspace: of `Scratch.workspace`, in any process.
    """
    lock = workspace.parent.with_name(workspace.parent.name + LOCK)
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return not workspace.exists()
    except FileNotFoundError:
        return True
    return True


def remove_leftovers(root: Path) -> list[Path]:
    """Remove the folders of dead processes; returns them.

    Args:
        root: of `Scratch` and `SharedScratch`.
    """
    removed = []
    for lock in root.glob(f"{NAME}*{LOCK}"):
        with contextlib.suppress(OSError), lock.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            folder = lock.with_name(lock.name.removesuffix(LOCK))
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink()
            removed.append(folder)
    return removed

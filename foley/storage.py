"""Where clips come from and results go: a folder of this machine, or a prefix of an S3 bucket.

A result appears whole or not at all in both. The keys of a bucket are in the usual variables of
AWS, which the library obstore reads itself; so is the address of another service than Amazon's.
"""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from foley.atomic import atomic_path
from foley.errors import ConfigError, OutputError, ParameterError, VideoDecodeError

S3 = "s3://"


class Storage(Protocol):
    """A place for files, which have names with slashes relative to it."""

    def list_sizes(self, below: str = "") -> dict[str, int]:
        """Return the size in bytes of each file, by its name.

        Args:
            below: beginning of the names, up to a slash; all files without it.
        """

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            OutputError: it cannot be read.
        """

    def write(self, name: str, data: bytes) -> None:
        """Write a file, in place of one that exists.

        Raises:
            OutputError: it cannot be written.
        """

    def has(self, name: str) -> bool:
        """Return whether there is a file of a name."""

    def put(self, source: Path, name: str, *, replace: bool) -> None:
        """Copy a file of this machine here.

        Args:
            source: the file.
            name: of the copy.
            replace: whether a file that exists is overwritten.

        Raises:
            OutputError: it exists and is not to be overwritten, or cannot be written.
        """

    def fetch(self, name: str, destination: Path) -> None:
        """Copy a file from here to this machine.

        Args:
            name: of the file.
            destination: path of the copy.

        Raises:
            VideoDecodeError: there is no such file, or it cannot be read.
        """


def open_storage(address: str) -> Storage:
    """Return the storage at an address.

    Args:
        address: path of a folder, or s3://bucket/prefix.

    Raises:
        ParameterError: the address names no bucket.
        ConfigError: it is one of S3, and the extra that reads it is not installed.
    """
    return Bucket(address) if is_remote(address) else Folder(Path(address))


def is_remote(address: str) -> bool:
    """Return whether an address is one of S3, and no path."""
    return address.startswith(S3)


def require_library(what: str) -> None:
    """Return if the library that reads and writes buckets is installed.

    Args:
        what: needs it.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec("obstore") is None:
        raise ConfigError(f"{what} needs the library obstore: pip install 'foley-serving[bulk]'")


def fetch_clip(address: str, destination: Path) -> None:
    """Copy a clip to a path of this machine.

    Args:
        address: path of the clip, or s3://bucket/key.
        destination: path of the copy.

    Raises:
        VideoDecodeError: there is no such clip, or it cannot be read.
    """
    parent, _, name = address.rpartition("/")
    open_storage(parent or "/").fetch(name, destination)


class Folder:
    """A folder of this machine.

    Args:
        root: its path; it is made with the first file.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def list_sizes(self, below: str = "") -> dict[str, int]:
        """See `Storage.list_sizes`. Links to folders are not followed."""
        return dict(_walk(self._root, below.rstrip("/")))

    def read(self, name: str) -> bytes:
        """See `Storage.read`."""
        try:
            return (self._root / name).read_bytes()
        except OSError as error:
            raise OutputError(f"{self._root / name} cannot be read ({error.strerror})") from error

    def write(self, name: str, data: bytes) -> None:
        """See `Storage.write`."""
        with self._replace(name) as partial:
            partial.write_bytes(data)

    def has(self, name: str) -> bool:
        """See `Storage.has`."""
        return (self._root / name).exists()

    def put(self, source: Path, name: str, *, replace: bool) -> None:
        """See `Storage.put`."""
        if not replace and self.has(name):
            raise OutputError(_already_there(str(self._root / name)))
        with self._replace(name) as partial:
            shutil.copyfile(source, partial)

    def fetch(self, name: str, destination: Path) -> None:
        """See `Storage.fetch`."""
        path = self._root / name
        try:
            shutil.copyfile(path, destination)
        except (OSError, shutil.SpecialFileError) as error:
            if isinstance(error, OSError) and error.filename2 is not None and path.exists():
                raise  # the copy is at fault
            reason = getattr(error, "strerror", None) or error
            raise VideoDecodeError(
                f"{path} cannot be read ({reason}); name a video file"
            ) from error

    def _replace(self, name: str) -> "_Replacement":
        return _Replacement(self._root / name)


class _Replacement:
    """As `atomic_path`, with the folder made first and errors as `OutputError`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Path:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._translate(error) from error
        self._atomic = atomic_path(self._path)
        return self._atomic.__enter__()

    def __exit__(self, *failure: Any) -> None:
        try:
            self._atomic.__exit__(*failure)
        except OSError as error:
            raise self._translate(error) from error

    def _translate(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self._path} cannot be written ({error.strerror}); check the folder, its permissions "
            "and the space left"
        )


def _walk(root: Path, below: str) -> Iterator[tuple[str, int]]:
    try:
        entries = sorted(os.scandir(root / below), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise OutputError(f"{root / below} cannot be listed ({error.strerror})") from error
    for entry in entries:
        name = f"{below}/{entry.name}" if below else entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(root, name)
        elif entry.is_file():
            yield name, entry.stat().st_size


class Bucket:
    """A prefix of an S3 bucket.

    Args:
        address: s3://bucket/prefix.
        retry_seconds: for how long a request that the bucket does not answer is repeated.

    Raises:
        ParameterError: it names no bucket.
        ConfigError: obstore is not installed.
    """

    def __init__(self, address: str, *, retry_seconds: float = 60.0) -> None:
        self._address = address.rstrip("/")
        bucket, _, prefix = self._address.removeprefix(S3).partition("/")
        if not bucket:
            raise ParameterError(f"{address} names no bucket; write s3://BUCKET/PREFIX")
        require_library(address)
        from obstore.store import S3Store

        retries: Any = {"max_retries": 5, "retry_timeout": timedelta(seconds=retry_seconds)}
        self._store = S3Store(bucket, prefix=prefix or None, retry_config=retries)

    def list_sizes(self, below: str = "") -> dict[str, int]:
        """See `Storage.list_sizes`."""
        with self._translate("listed", below):
            return {
                item["path"]: item["size"]
                for page in self._store.list(below.rstrip("/") or None)
                for item in page
            }

    def read(self, name: str) -> bytes:
        """See `Storage.read`."""
        with self._translate("read", name):
            return bytes(self._store.get(name).bytes())

    def write(self, name: str, data: bytes) -> None:
        """See `Storage.write`."""
        with self._translate("written", name):
            self._store.put(name, data)

    def has(self, name: str) -> bool:
        """See `Storage.has`."""
        try:
            with self._translate("read", name, FileNotFoundError):
                self._store.head(name)
        except FileNotFoundError:
            return False
        return True

    def put(self, source: Path, name: str, *, replace: bool) -> None:
        """See `Storage.put`. Without `replace` the bucket itself refuses a second file."""
        with self._translate("written", name):
            if replace:
                self._store.put(name, source)
            else:  # in one piece: an upload in parts cannot be refused by its name
                self._store.put(name, source, mode="create", use_multipart=False)

    def create(self, name: str, data: bytes | Path) -> bool:
        """Write a file unless there is one of its name; returns whether it was written.

        Args:
            name: of the file.
            data: its content, or the file that holds it.

        Raises:
            OutputError: it cannot be written.
        """
        from obstore.exceptions import AlreadyExistsError

        try:
            with self._translate("written", name, AlreadyExistsError):
                self._store.put(name, data, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        return True

    def remove_all(self, below: str, *, without: str | None = None) -> None:
        """Remove files.

        Args:
            below: beginning of their names, up to a slash.
            without: beginning of the names that are kept; None for none.

        Raises:
            OutputError: they cannot be removed.
        """
        names = [
            name for name in self.list_sizes(below) if not (without and name.startswith(without))
        ]
        if names:
            with self._translate("removed", below):
                self._store.delete(names)

    def fetch(self, name: str, destination: Path) -> None:
        """See `Storage.fetch`."""
        try:
            with self._translate("read", name), destination.open("wb") as file:
                for chunk in self._store.get(name).stream():
                    file.write(chunk)
        except OutputError as error:
            raise VideoDecodeError(str(error)) from error

    def _translate(
        self, verb: str, name: str, passed: type[Exception] | tuple[()] = ()
    ) -> "_TranslateErrors":
        return _TranslateErrors(verb, f"{self._address}/{name}", passed)


class _TranslateErrors:
    """Turns the errors of obstore inside a block into `OutputError`, those of one kind excepted."""

    def __init__(self, verb: str, address: str, passed: type[Exception] | tuple[()]) -> None:
        self._verb = verb
        self._address = address
        self._passed = passed

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        from obstore.exceptions import AlreadyExistsError, BaseError

        if isinstance(error, self._passed):
            return
        if isinstance(error, AlreadyExistsError):
            raise OutputError(_already_there(self._address)) from error
        # A missing file is Python's own FileNotFoundError.
        if isinstance(error, BaseError | FileNotFoundError):
            reason = str(error).strip().splitlines()[0][:200]
            raise OutputError(
                f"{self._address} cannot be {self._verb} ({reason}); check the address, the keys "
                "in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_ENDPOINT_URL"
            ) from error


def _already_there(name: str) -> str:
    return f"{name} exists; another run writes to the same output: let one of them end"

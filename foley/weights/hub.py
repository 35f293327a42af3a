"""Files of the hub -> a folder of weights: each fetched once, verified, and never half there.

huggingface_hub does the talking: HF_TOKEN, HF_ENDPOINT (mirrors), HF_HOME and HF_HUB_OFFLINE mean
what they mean to it. Its own download drops what it has of a file when its process ends; here that
stays, and the next call goes on from there.

    DIR/.NAME.partial    what has come of a file so far
    DIR/.foley.lock      held by the one process that fetches
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from filelock import Timeout
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import WeakFileLock, build_hf_headers

from foley.errors import DownloadError
from foley.version import __version__
from foley.weights.manifest import Digest, Ledger
from foley.weights.sources import HubFile

logger = logging.getLogger(__name__)

LOCK_FILE = ".foley.lock"
NUM_ATTEMPTS = 5  # in a row without a new byte

OnProgress = Callable[[str, int, int], None]  # place of the file, bytes there, bytes in all


def default_folder() -> Path:
    """Where weights lie when no folder is named: `foley` in Hugging Face's home."""
    return Path(constants.HF_HOME) / "foley"


def missing_files(files: Sequence[HubFile], folder: Path) -> list[HubFile]:
    """The files that are not in the folder, or not verified."""
    ledger = Ledger.read(folder)
    return [file for file in files if not ledger.holds(file)]


def fetch(
    files: Sequence[HubFile],
    folder: Path,
    *,
    on_progress: OnProgress = lambda _place, _done, _total: None,
    on_wait: Callable[[], None] = lambda: None,
) -> None:
    """Have all files in the folder, verified. Where they are already, nothing is asked or written.

    Args:
        files: what is wanted.
        folder: made if it does not exist.
        on_progress: called while a file comes.
        on_wait: called once if another process is at it; its files are used when it is done.

    Raises:
        DownloadError: names the file and the reason; what was verified before stays.
    """
    if not missing_files(files, folder):
        return
    with _writing_to(folder), _locked(folder, on_wait):
        ledger = Ledger.read(folder)
        missing = [file for file in files if not ledger.holds(file)]
        missing = [file for file in missing if not _adopt_cached(file, ledger)]
        wanted = {file: _stated(file) for file in missing}
        for file, digest in list(wanted.items()):
            if digest is None or _adopt_present(file, digest, ledger):
                ledger.add(file, digest)
                del wanted[file]
        digests = {file: digest for file, digest in wanted.items() if digest is not None}
        _refuse_full_disk(digests, folder)
        for file, digest in digests.items():
            _transfer(file, digest, folder, on_progress)
            ledger.add(file, digest)


def _digest(file: HubFile, num_bytes: int, etag: str) -> Digest:
    """The table's values, completed by the hub's: an ETag is a SHA-256, or git's id of a blob."""
    is_hex = all(character in "0123456789abcdef" for character in etag)
    sha256 = file.sha256 or (etag if is_hex and len(etag) == 64 else None)
    git_id = etag if is_hex and len(etag) == 40 and sha256 is None else None
    digest = Digest(num_bytes=file.num_bytes or num_bytes, sha256=sha256, git_id=git_id)
    stated = replace(digest, num_bytes=num_bytes)
    if is_hex and len(etag) == 64:
        stated = replace(stated, sha256=etag)
    if stated != digest:
        raise DownloadError(
            f"{file.repo}: {file.path} should have {digest.num_bytes} bytes with SHA-256 "
            f"{digest.sha256}, but {stated.num_bytes} bytes with {stated.sha256} are offered for "
            f"{file.revision[:12]}; nothing was fetched; another mirror may hold the right file"
        )
    return digest


def _stated(file: HubFile) -> Digest | None:
    """What the hub says of a file; None where it does not hold one that is not required."""
    with _explained(file):
        try:
            found = get_hf_file_metadata(_url(file))
        except RemoteEntryNotFoundError:
            if file.required:
                raise
            return None
    if found.size is None or found.etag is None:
        raise DownloadError(
            f"{file.path}: {constants.ENDPOINT} does not state its size and ETag; it is no hub"
        )
    return _digest(file, found.size, found.etag)


def _adopt_cached(file: HubFile, ledger: Ledger) -> bool:
    """Use the hub cache's copy where there is a good one: a link, so it takes no room."""
    cached = try_to_load_from_cache(file.repo, file.path, revision=file.revision)
    target = ledger.folder / file.place
    if not isinstance(cached, str) or target.exists():
        return False
    # The cache names a file's content by its ETag.
    etag = Path(os.readlink(cached)).name if os.path.islink(cached) else ""
    content = Path(cached).resolve()
    digest = _digest(file, file.num_bytes or content.stat().st_size, etag)
    if not digest.sha256 and not digest.git_id:
        return False
    if wrong := digest.mismatch(content):
        logger.warning("%s in the hub cache is damaged: %s; it is not used", cached, wrong)
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(content)  # outlives the cache
    except OSError:  # another file system, or one without hard links
        target.symlink_to(content)
    ledger.add(file, digest)
    return True


def _adopt_present(file: HubFile, digest: Digest, ledger: Ledger) -> bool:
    """Whether the folder holds the file already. A wrong one is removed, and it alone."""
    target = ledger.folder / file.place
    if not target.exists():
        return False
    wrong = digest.mismatch(target)
    if wrong:
        logger.warning("%s is not the published file: %s; it is fetched again", target, wrong)
        target.unlink()
    return not wrong


def _refuse_full_disk(digests: dict[HubFile, Digest], folder: Path) -> None:
    there = sum(_size(_partial(folder / file.place)) for file in digests)
    needed = sum(digest.num_bytes for digest in digests.values()) - there
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{folder} has {free / 1e9:.2f} GB free and {needed / 1e9:.2f} GB more are needed for "
            f"{len(digests)} files; free some, or name another folder with --to"
        )


def _transfer(file: HubFile, digest: Digest, folder: Path, on_progress: OnProgress) -> None:
    """Fetch one file, from where an earlier attempt ended, and verify it."""
    target = folder / file.place
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(target)
    if _size(partial) > digest.num_bytes:
        partial.unlink()
    attempts = NUM_ATTEMPTS
    while True:
        before = _size(partial)
        with _explained(file, partial):
            try:
                with partial.open("ab") as out:
                    reporting = _Reporting(
                        out, lambda done: on_progress(file.place, done, digest.num_bytes)
                    )
                    http_get(
                        _url(file),
                        reporting,
                        resume_size=before,
                        headers=_headers(),
                        expected_size=digest.num_bytes,
                        tqdm_class=_NoBar,
                    )
                break
            except HfHubHTTPError:
                raise
            except HTTPError:  # the connection: huggingface_hub retries some of these, not all
                attempts = NUM_ATTEMPTS if _size(partial) > before else attempts - 1
                if not attempts:
                    raise
    if wrong := digest.mismatch(partial):
        partial.unlink()
        raise DownloadError(
            f"{file.place} came, but {wrong}; it was removed and the other files stay; run again, "
            "and if it happens twice the source is damaged"
        )
    partial.replace(target)


@dataclass(frozen=True)
class _Reporting:
    """A file that tells how far it has come."""

    file: BinaryIO
    report: Callable[[int], None]

    def write(self, data: bytes) -> int:
        count = self.file.write(data)
        self.report(self.file.tell())
        return count

    def seek(self, position: int) -> int:
        return self.file.seek(position)

    def tell(self) -> int:
        return self.file.tell()

    def truncate(self) -> int:
        return self.file.truncate()


class _NoBar:
    """In place of huggingface_hub's own bar for each file."""

    def __init__(self, **_: object) -> None: ...

    def __enter__(self) -> "_NoBar":
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, _num_bytes: int) -> None: ...


def _url(file: HubFile) -> str:
    return hf_hub_url(file.repo, file.path, revision=file.revision)


def _headers() -> dict[str, str]:
    headers = build_hf_headers(library_name="foley", library_version=__version__)
    return {**headers, "Accept-Encoding": "identity"}  # ranges count the file's own bytes


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextlib.contextmanager
def _locked(folder: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Be the only process that writes to the folder. The system frees the lock of a dead one."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(folder / LOCK_FILE, timeout=0.2))
        except Timeout:
            on_wait()
            stack.enter_context(WeakFileLock(folder / LOCK_FILE))
        yield


@contextlib.contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    """Tell the system's refusals of a folder as one line."""
    try:
        yield
    except OSError as error:
        raise DownloadError(
            f"cannot write to {error.filename or folder}: {error.strerror or error}; "
            "name a folder that can be written with --to"
        ) from error


@contextlib.contextmanager
def _explained(file: HubFile, partial: Path | None = None) -> Iterator[None]:
    """Tell what went wrong with a request: which file, why, what to do."""
    name = f"{file.repo}: {file.path}"
    kept = ""
    try:
        yield
    except HfHubHTTPError as error:
        raise DownloadError(f"{name}: {_refusal(file, error)}") from error
    except (HTTPError, OfflineModeIsEnabled) as error:
        if partial is not None and _size(partial):
            kept = f" after {_size(partial)} bytes, which stay"
        reason = str(error) or type(error).__name__
        offline = isinstance(error, OfflineModeIsEnabled)
        advice = "unset HF_HUB_OFFLINE" if offline else "check the network or HF_ENDPOINT"
        raise DownloadError(
            f"{name} cannot be fetched from {constants.ENDPOINT}{kept}: {reason.splitlines()[0]}; "
            f"{advice} and run again, or copy the files into the folder"
        ) from error
    except OSError as error:
        if error.errno is None:  # more or fewer bytes than were stated
            if partial is not None:
                partial.unlink(missing_ok=True)
            raise DownloadError(f"{name}: {str(error).splitlines()[0]}; run again") from error
        raise DownloadError(
            f"{name} cannot be stored: {error.strerror}; what has come of it stays; make room or "
            "name another folder with --to, and run again"
        ) from error


def _refusal(file: HubFile, error: HfHubHTTPError) -> str:
    """A refused request in words."""
    status = error.response.status_code
    has_token = "authorization" in {name.lower() for name in _headers()}
    token = "the token in use has no right to it" if has_token else "no token was sent"
    page = f"{constants.ENDPOINT}/{file.repo}"
    if isinstance(error, GatedRepoError):
        return (
            f"the repository is gated and {token} ({status}); accept its terms at {page}, then set "
            "HF_TOKEN to a read token of that account, or run: hf auth login"
        )
    if status == 401:
        return (
            f"not authorised, {token} (401); set HF_TOKEN to a valid read token, or run: "
            "hf auth login"
        )
    if status == 403:
        return f"forbidden, {token} (403); set HF_TOKEN to a token that may read {page}"
    if isinstance(error, RevisionNotFoundError):
        return f"there is no revision {file.revision} at {constants.ENDPOINT} (404)"
    if status == 404:
        return f"it is not at {constants.ENDPOINT} in revision {file.revision[:12]} (404)"
    if status == 429:
        return "too many requests (429); wait some minutes and run again"
    return f"the hub answered {status}; run again later"

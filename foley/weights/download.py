"""Fill a folder with files of the hub: each is fetched once, verified, and listed in a manifest.

DIR/.NAME.partial        what was received of a file so far
DIR/.foley.lock          held by the one process that writes to the folder
DIR/foley-files.json     the manifest of verified files
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from huggingface_hub import try_to_load_from_cache

from foley.errors import DownloadError
from foley.weights.hub import combine_digest, receive_file, request_digest
from foley.weights.manifest import Digest, Manifest, missing_files
from foley.weights.sources import HubFile

logger = logging.getLogger(__name__)

LOCK_FILE = ".foley.lock"

OnFileProgress = Callable[[str, int, int], None]  # place of the file, bytes received, its size


def download_files(
    files: Sequence[HubFile],
    folder: Path,
    *,
    on_progress: OnFileProgress = lambda _place, _num_received, _num_bytes: None,
    on_wait: Callable[[], None] = lambda: None,
) -> None:
    """Fetch the files that the folder lacks, and verify them.

    A complete folder is neither written to, nor is the hub asked about it. Files that lie in the
    folder or in the hub's cache are verified and used.

    Args:
        files: the files that the folder must hold.
        folder: made if it does not exist.
        on_progress: called while a file is received.
        on_wait: called once if another process writes to the folder; this one then waits.

    Raises:
        DownloadError: names the file and the reason; files that were verified before stay.
    """
    if not missing_files(files, folder):
        return
    with _translate_folder_errors(folder), _lock(folder, on_wait):
        manifest = Manifest.read(folder)
        missing = [file for file in files if not manifest.holds(file)]
        missing = [file for file in missing if not _link_cached(file, manifest)]
        digests: dict[HubFile, Digest] = {}
        for file in missing:
            digest = request_digest(file)
            if digest is None or _is_present(file, digest, folder):
                manifest.add(file, digest)
            else:
                digests[file] = digest
        _check_free_space(digests, folder)
        for file, digest in digests.items():
            _fetch(file, digest, folder, on_progress)
            manifest.add(file, digest)


def _link_cached(file: HubFile, manifest: Manifest) -> bool:
    """Link the hub cache's copy into the folder; returns False if there is no intact one."""
    cached = try_to_load_from_cache(file.repo, file.path, revision=file.revision)
    target = manifest.folder / file.place
    if not isinstance(cached, str) or target.exists():
        return False
    # A snapshot's entries are links to blobs, which are named by their ETags.
    etag = Path(os.readlink(cached)).name if os.path.islink(cached) else ""
    content = Path(cached).resolve()
    digest = combine_digest(file, file.num_bytes or content.stat().st_size, etag)
    if not digest.sha256 and not digest.git_id:
        return False
    if wrong := digest.find_mismatch(content):
        logger.warning("%s in the hub cache is damaged: %s; it is not used", cached, wrong)
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(content)  # stays when the cache is cleared
    except OSError:  # another file system, or one without hard links
        target.symlink_to(content)
    manifest.add(file, digest)
    return True


def _is_present(file: HubFile, digest: Digest, folder: Path) -> bool:
    """Whether the folder holds the right file; a wrong one is removed."""
    target = folder / file.place
    if not target.exists():
        return False
    wrong = digest.find_mismatch(target)
    if wrong:
        logger.warning("%s is not the published file: %s; it is fetched again", target, wrong)
        target.unlink()
    return not wrong


def _check_free_space(digests: Mapping[HubFile, Digest], folder: Path) -> None:
    partials = [_partial_path(folder / file.place) for file in digests]
    num_received = sum(path.stat().st_size for path in partials if path.exists())
    needed = sum(digest.num_bytes for digest in digests.values()) - num_received
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{folder} has {free / 1e9:.2f} GB free and {needed / 1e9:.2f} GB more are needed for "
            f"{len(digests)} files; free some, or name another folder with --to"
        )


def _fetch(file: HubFile, digest: Digest, folder: Path, on_progress: OnFileProgress) -> None:
    """Receive one file, from where an earlier attempt ended, verify it, and give it its name."""
    target = folder / file.place
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial_path(target)
    if partial.exists() and partial.stat().st_size > digest.num_bytes:
        partial.unlink()
    receive_file(
        file,
        digest.num_bytes,
        partial,
        lambda num_received: on_progress(file.place, num_received, digest.num_bytes),
    )
    if wrong := digest.find_mismatch(partial):
        partial.unlink()
        raise DownloadError(
            f"{file.place} came, but {wrong}; it was removed and the other files stay; run again, "
            "and if it happens twice the source is damaged"
        )
    partial.replace(target)


def _partial_path(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


@contextlib.contextmanager
def _lock(folder: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the folder's lock. The system releases it when the process ends in any way."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0.2)
    except Timeout:
        on_wait()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _translate_folder_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DownloadError(
            f"cannot write to {error.filename or folder}: {error.strerror or error}; "
            "name a folder that can be written with --to"
        ) from error

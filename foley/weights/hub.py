"""Requests to the Hugging Face hub: what a file must be, and its content.

`huggingface_hub` makes the requests, so `HF_TOKEN`, `HF_ENDPOINT` (mirrors), `HF_HOME` and
`HF_HUB_OFFLINE` have their documented meanings. `receive_file` stands in for its
`hf_hub_download`, which discards a partial file when the process ends: these files have gigabytes.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, hf_raise_for_status
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, http_stream_backoff, httpx

from foley.errors import DownloadError
from foley.version import __version__
from foley.weights.manifest import Digest
from foley.weights.sources import HubFile

logger = logging.getLogger(__name__)

NUM_ATTEMPTS = 5  # in a row without a new byte
RECONNECT_SECONDS = 1.0
PIECE_BYTES = 1 << 20  # what an interruption loses at most


def default_folder() -> Path:
    """Return the folder of weights when none is named: `foley` in Hugging Face's home."""
    return Path(constants.HF_HOME) / "foley"


def request_digest(file: HubFile) -> Digest | None:
    """Ask the hub for a file's size and checksum, and compare them with the table's.

    Returns:
        What the content must be; None if the repository does not hold the file and it is not
        required.

    Raises:
        DownloadError: the hub cannot be reached, refuses the request, or offers another file.
    """
    with _translate_errors(file):
        try:
            found = get_hf_file_metadata(
                _url(file), library_name="foley", library_version=__version__
            )
        except RemoteEntryNotFoundError:
            if file.required:
                raise
            return None
    if found.size is None or found.etag is None:
        raise DownloadError(
            f"{file.path}: {constants.ENDPOINT} does not state its size and ETag; it is no hub"
        )
    return combine_digest(file, found.size, found.etag)


def combine_digest(file: HubFile, num_bytes: int, etag: str) -> Digest:
    """Return the table's size and checksum of a file, completed by the hub's.

    Args:
        file: an entry of the table.
        num_bytes: the size that the hub states.
        etag: the hub's ETag: the SHA-256 of a large file, git's blob id of a small one.

    Raises:
        DownloadError: the table and the hub disagree.
    """
    is_hex = all(character in "0123456789abcdef" for character in etag)
    sha256 = file.sha256 or (etag if is_hex and len(etag) == 64 else None)
    git_id = etag if is_hex and len(etag) == 40 and sha256 is None else None
    digest = Digest(num_bytes=file.num_bytes or num_bytes, sha256=sha256, git_id=git_id)
    offered = replace(digest, num_bytes=num_bytes)
    if is_hex and len(etag) == 64:
        offered = replace(offered, sha256=etag)
    if offered != digest:
        raise DownloadError(
            f"{file.repo}: {file.path} should have {digest.num_bytes} bytes with SHA-256 "
            f"{digest.sha256}, but {offered.num_bytes} bytes with {offered.sha256} are offered for "
            f"{file.revision[:12]}; nothing was fetched; another mirror may hold the right file"
        )
    return digest


def receive_file(
    file: HubFile, num_bytes: int, partial: Path, on_bytes: Callable[[int], None]
) -> None:
    """Append what is missing of a file's content to `partial`.

    A connection that ends early is opened again for the rest, up to `NUM_ATTEMPTS` times in a row
    without a new byte. The content is not verified here.

    Args:
        file: the file to request.
        num_bytes: its size.
        partial: holds what earlier calls received; made if it does not exist.
        on_bytes: called after each piece with the number of bytes that `partial` holds.

    Raises:
        DownloadError: the hub cannot be reached or refuses the request, or the disk is full. What
            was received stays in `partial`.
    """
    attempts_left = NUM_ATTEMPTS
    with _translate_errors(file, partial):
        partial.touch()
        while (before := partial.stat().st_size) < num_bytes:
            try:
                _append_rest(file, partial, on_bytes)
                return
            except HfHubHTTPError:
                raise
            except httpx.HTTPError as error:
                progressed = partial.stat().st_size > before
                attempts_left = NUM_ATTEMPTS if progressed else attempts_left - 1
                if not attempts_left:
                    raise
                logger.warning("%s: %s; the rest is requested again", file.place, error)
                time.sleep(RECONNECT_SECONDS)


def _append_rest(file: HubFile, partial: Path, on_bytes: Callable[[int], None]) -> None:
    with partial.open("ab") as out:
        start = out.tell()
        # Ranges count the bytes of the file itself, so the content must not be compressed.
        headers = _headers() | {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        with http_stream_backoff(
            "GET",
            _url(file),
            headers=headers,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            # `receive_file` retries after errors of the connection, from the byte that was reached.
            retry_on_exceptions=(),
        ) as response:
            hf_raise_for_status(response)
            if start and response.status_code != 206:  # the server ignores ranges
                out.seek(0)
                out.truncate()
            for piece in response.iter_bytes(PIECE_BYTES):
                out.write(piece)
                on_bytes(out.tell())


def _url(file: HubFile) -> str:
    return hf_hub_url(file.repo, file.path, revision=file.revision)


def _headers() -> dict[str, str]:
    return build_hf_headers(library_name="foley", library_version=__version__)


@contextlib.contextmanager
def _translate_errors(file: HubFile, partial: Path | None = None) -> Iterator[None]:
    """Raise errors of a request as `DownloadError`: which file, why, and what to do.

    Args:
        file: the file that is requested.
        partial: holds what was received of it, if its content is requested.
    """
    name = f"{file.repo}: {file.path}"
    try:
        yield
    except HfHubHTTPError as error:
        raise DownloadError(f"{name}: {_explain_refusal(file, error)}") from error
    except (httpx.HTTPError, OfflineModeIsEnabled) as error:
        kept = ""
        if partial is not None and partial.stat().st_size:
            kept = f" after {partial.stat().st_size} bytes, which stay"
        reason = str(error) or type(error).__name__
        offline = isinstance(error, OfflineModeIsEnabled)
        advice = "unset HF_HUB_OFFLINE" if offline else "check the network or HF_ENDPOINT"
        raise DownloadError(
            f"{name} cannot be fetched from {constants.ENDPOINT}{kept}: {reason.splitlines()[0]}; "
            f"{advice} and run again, or copy the files into the folder"
        ) from error
    except OSError as error:
        raise DownloadError(
            f"{name} cannot be stored: {error.strerror or error}; what was received stays; make "
            "room or name another folder with --to, and run again"
        ) from error


def _explain_refusal(file: HubFile, error: HfHubHTTPError) -> str:
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

"""The S3 buckets that callers may name: clips come from some, and jobs write their files to others.

The keys and the address of the storage are in the usual variables of AWS, as for `foley.storage`.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog

from foley.atomic import atomic_path
from foley.errors import FetchError, NotReadyError, ParameterError, UploadTooLargeError
from foley.storage import S3, Bucket

log = structlog.get_logger(__name__)

RETRY_SECONDS = 10.0  # for which a bucket that does not answer is asked again
MAX_ADDRESS_CHARACTERS = 1200  # a key has 1024 bytes at most
# Every service of S3 takes these characters in a prefix as they are.
PREFIX = re.compile(r"s3://[a-z0-9][a-z0-9.-]+(/[A-Za-z0-9!_.*'()=-]+)*/?", re.ASCII)
CLIP = re.compile(r"s3://[a-z0-9][a-z0-9.-]+(/[^/\x00-\x1f\x7f]+)+")


def check_prefix(name: str, address: str, allowed: Sequence[str], setting: str) -> str:
    """Return the address of a prefix into which a caller may have files written.

    Args:
        name: of the field that held it.
        address: as the caller sent it; any text.
        allowed: the addresses below which it must lie.
        setting: that names them.

    Raises:
        ParameterError: it is none, or lies elsewhere.
    """
    if len(address) > MAX_ADDRESS_CHARACTERS or not PREFIX.fullmatch(address):
        raise ParameterError(
            f"{name}: {address[:80]!r} names no bucket; write s3://BUCKET/PREFIX, the bucket in "
            "two or more small letters and digits, with . and - between, the prefix in letters, "
            "digits and !_.*'()=-"
        )
    _check_allowed(name, address, allowed, setting)
    return address.rstrip("/")


def check_clip(name: str, address: str, allowed: Sequence[str], setting: str) -> None:
    """Check the address of a file that a caller wants to be read.

    Args:
        name: of the field that held it.
        address: as the caller sent it; any text.
        allowed: the addresses below which it must lie.
        setting: that names them.

    Raises:
        ParameterError: it is none, or lies elsewhere.
    """
    if len(address) > MAX_ADDRESS_CHARACTERS or not CLIP.fullmatch(address):
        raise ParameterError(
            f"{name}: {address[:80]!r} names no file; write s3://BUCKET/KEY, the "
            "bucket in two or more small letters and digits, with . and - between"
        )
    _check_allowed(name, address, allowed, setting)


def _check_allowed(name: str, address: str, allowed: Sequence[str], setting: str) -> None:
    # Some services read the names of folders as those of a file system.
    parts = address.rstrip("/").removeprefix(S3).split("/")
    folders = [folder.rstrip("/").removeprefix(S3).split("/") for folder in allowed]
    is_below = any(parts[: len(folder)] == folder for folder in folders)
    if not is_below or {".", ".."} & set(parts):
        hint = f"it uses {', '.join(allowed)}" if allowed else "it uses none"
        raise ParameterError(
            f"{name}: {address[:200]} lies in no bucket that this service uses for it; {hint}, "
            f"which its operator sets by {setting}"
        )


async def fetch_object(
    address: str,
    destination: Path,
    *,
    max_bytes: int,
    timeout_seconds: float,
    on_bytes: Callable[[int], None],
) -> None:
    """Copy a file of a bucket to this machine.

    Args:
        address: that `check_clip` has passed.
        destination: the file, which is not created if this fails.
        max_bytes: largest file.
        timeout_seconds: longest download.
        on_bytes: called with the number of new bytes, before they are written; an error that it
            raises ends the download.

    Raises:
        FetchError: there is no such file, it may not be read, or it comes too slowly.
        UploadTooLargeError: it has more than `max_bytes`.
        NotReadyError: the bucket does not answer.
    """
    from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
    from obstore.store import S3Store

    bucket, _, key = address.removeprefix(S3).partition("/")
    retries: Any = {"max_retries": 5, "retry_timeout": timedelta(seconds=RETRY_SECONDS)}
    store = S3Store(bucket, retry_config=retries)
    try:
        async with asyncio.timeout(timeout_seconds):
            found = await store.get_async(key)
            if found.meta["size"] > max_bytes:
                raise UploadTooLargeError(
                    f"the clip has {found.meta['size']} bytes, the limit is {max_bytes}; shorten "
                    "or compress it"
                )
            with atomic_path(destination) as partial, partial.open("wb") as file:
                async for chunk in found.stream():
                    on_bytes(len(chunk))
                    await asyncio.to_thread(file.write, chunk)
    except TimeoutError as error:
        raise FetchError(
            f"{address} did not arrive within {timeout_seconds:g} s; send the clip in the request"
        ) from error
    except FileNotFoundError as error:
        raise FetchError(f"{address} does not exist; check the bucket and the key") from error
    except (PermissionDeniedError, UnauthenticatedError) as error:
        log.warning("bucket_refuses", address=address, reason=str(error)[:500])
        raise FetchError(
            f"{address} does not exist, or this service may not read it; check the key, and what "
            "the bucket allows"
        ) from error
    except BaseError as error:
        log.warning("bucket_away", address=address, reason=str(error)[:500])
        raise NotReadyError("the bucket of the clip does not answer; try again") from error


def deliver(folder: Path, address: str, result: dict[str, Any]) -> dict[str, Any]:
    """Write the files of a result to a bucket, and return the result as it is there.

    A file that is there already stays: an earlier try has written it, with the same sound.

    Args:
        folder: holds the files.
        address: s3://bucket/prefix, of this job alone.
        result: describes the files.

    Raises:
        OutputError: the bucket does not answer, or refuses.
    """
    bucket = Bucket(address, retry_seconds=RETRY_SECONDS)
    is_new = {
        file["name"]: bucket.create(file["name"], folder / file["name"]) for file in result["files"]
    }
    if all(is_new.values()):
        return result
    sizes = bucket.list_sizes()
    return {
        **result,
        "files": [
            {**file, "bytes": sizes.get(file["name"], file["bytes"])} for file in result["files"]
        ],
    }

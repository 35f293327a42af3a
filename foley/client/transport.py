"""How both clients reach the service: connection settings, paths, retries and mapped errors."""

import contextlib
import ipaddress
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from foley.client.results import RemoteFile, RemotePiece
from foley.errors import (
    BusyError,
    ConnectionFailedError,
    EndingError,
    FoleyError,
    NotReadyError,
    OutputError,
    ParameterError,
    RunnerLostError,
    ServerError,
    StorageFullError,
)
from foley.version import __version__

CONNECT_TIMEOUT_SECONDS = 10.0
READ_TIMEOUT_SECONDS = 60.0  # the service sends a comment every 10 s even if nothing is new
DEFAULT_RETRY_SECONDS = 2.0
# The same request may succeed later.
RETRYABLE_ERRORS = (BusyError, NotReadyError, RunnerLostError, StorageFullError)
# A job that was submitted twice under one key is one job.
RETRYABLE_JOB_ERRORS = (*RETRYABLE_ERRORS, EndingError, ConnectionFailedError)
_API_KEY = re.compile(r"[!-~]+")


def make_client_settings(
    base_url: str, api_key: str | None, timeout_seconds: float | None
) -> dict[str, Any]:
    """Return the arguments of `httpx.Client`.

    Args:
        base_url: an `http://` or `https://` address, with or without a path.
        api_key: printable ASCII without spaces; None or empty sends none.
        timeout_seconds: bound of each connect, read and write, at most the constants above.

    Raises:
        ParameterError: the address or the key is malformed.
    """
    if not re.match(r"https?://[^/]", base_url):
        raise ParameterError(
            f"base_url: {base_url!r} is not an address; give one such as http://127.0.0.1:3000"
        )
    headers = {"User-Agent": f"foley/{__version__}"}
    if api_key:
        if not _API_KEY.fullmatch(api_key):
            raise ParameterError("api_key: holds spaces or characters outside ASCII")
        headers["Authorization"] = f"Bearer {api_key}"
    read_seconds = min(READ_TIMEOUT_SECONDS, timeout_seconds or math.inf)
    timeout = httpx.Timeout(read_seconds, connect=min(CONNECT_TIMEOUT_SECONDS, read_seconds))
    return {
        "base_url": base_url,
        "headers": headers,
        "timeout": timeout,
        "trust_env": not is_loopback(base_url),
    }


def is_loopback(base_url: str) -> bool:
    """Return whether an address is of this machine, so that no proxy could reach it.

    Args:
        base_url: an `http://` or `https://` address.
    """
    try:
        host = urlsplit(base_url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name, or no address: then httpx refuses it
        return False


class RetryPolicy:
    """Decides how long a client retries while the service is busy or not ready.

    Args:
        max_wait_seconds: how long after now the last try may start; 0 allows no retry.
    """

    def __init__(self, max_wait_seconds: float) -> None:
        self._deadline = time.monotonic() + max_wait_seconds

    def compute_delay(self, error: FoleyError) -> float:
        """Return the seconds to wait before the next try.

        Args:
            error: the failure of the last try; its `retry_after_seconds` is the delay.

        Raises:
            FoleyError: `error` itself, if the delay would pass the deadline.
        """
        seconds = error.retry_after_seconds or DEFAULT_RETRY_SECONDS
        if time.monotonic() + seconds > self._deadline:
            raise error
        return seconds


@contextlib.contextmanager
def map_connection_errors(base_url: object) -> Iterator[None]:
    """Raise httpx's errors as `ConnectionFailedError`.

    Args:
        base_url: the address that the message names.
    """
    try:
        yield
    except httpx.TimeoutException as error:
        raise ConnectionFailedError(
            f"{base_url} did not answer in time; try again later"
        ) from error
    except httpx.ConnectError as error:
        raise ConnectionFailedError(
            f"{base_url} cannot be reached ({error}); check the address, and that a service runs"
        ) from error
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise ConnectionFailedError(f"{base_url} broke off ({reason}); try again") from error


@contextlib.contextmanager
def map_write_errors(path: Path) -> Iterator[None]:
    """Raise the operating system's errors as `OutputError`.

    Args:
        path: the file that the message names.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror or error}); "
            "check the folder, its permissions and the space left"
        ) from error


def get_result_path(file: RemoteFile | RemotePiece) -> str:
    """Return the path of a file below the service's address.

    Args:
        file: with the `url` that the service stated.

    Raises:
        ServerError: the URL names another host, which must not receive the API key.
    """
    if not file.url.startswith("/") or file.url.startswith("//"):
        raise ServerError(f"the service names the file {file.url!r}, which is not its own")
    return file.url


def get_cancel_path(request_id: str) -> str:
    """Return the path that cancels a request when it receives a POST.

    Args:
        request_id: any text; it is percent-encoded.
    """
    return f"/v1/requests/{quote(request_id, safe='')}/cancel"

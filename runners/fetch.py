"""Download clips from user-supplied URLs; `runners.guard` decides what may be connected to."""

import asyncio
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urljoin

import aiohttp

from foley.atomic import atomic_path
from foley.errors import FetchError, UploadTooLargeError
from runners.guard import Address, is_public, open_session, parse_url, translate_error

MAX_REDIRECTS = 5
CHUNK_BYTES = 256 * 1024
REDIRECTS = (301, 302, 303, 307, 308)
HEADERS = {"User-Agent": "foley", "Accept": "*/*", "Accept-Encoding": "identity"}


class Fetcher:
    """Downloads clips.

    Args:
        max_bytes: largest clip.
        timeout_seconds: longest download of one clip, including redirects.
        schemes: of the addresses: https, or http too. No redirect leads from https to http.
        is_allowed: whether a connection to an IP address is allowed.
        tls: the trusted certificates; None trusts the system's.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        timeout_seconds: float,
        schemes: Sequence[str] = ("https",),
        is_allowed: Callable[[Address], bool] = is_public,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._max_bytes = max_bytes
        self._timeout_seconds = timeout_seconds
        self._schemes = tuple(schemes)
        self._is_allowed = is_allowed
        self._tls = tls or ssl.create_default_context()

    async def fetch(
        self,
        address: str,
        destination: Path,
        on_bytes: Callable[[int], None] = lambda num_bytes: None,
    ) -> int:
        """Download a clip to a file and return its number of bytes.

        Args:
            address: a URL without user name and password, of at most `MAX_URL_CHARACTERS`.
            destination: the file, which is not created if the download fails.
            on_bytes: called with the number of each new bytes, before they are written; an error
                that it raises ends the download.

        Raises:
            FetchError: the URL is refused, or the host cannot be reached, does not have the clip or
                is too slow.
            UploadTooLargeError: the clip has more than `max_bytes`.
        """
        try:
            async with asyncio.timeout(self._timeout_seconds):
                with atomic_path(destination) as partial:
                    async with self._open_session() as session:
                        return await self._follow(session, address, partial, on_bytes)
        except aiohttp.ClientError as error:
            raise translate_error(error) from error
        except TimeoutError as error:
            raise FetchError(
                f"the clip did not arrive within {self._timeout_seconds:g} s; put it on a faster "
                "host, or send it in the request"
            ) from error

    def _open_session(self) -> aiohttp.ClientSession:
        return open_session(headers=HEADERS, is_allowed=self._is_allowed, tls=self._tls)

    async def _follow(
        self,
        session: aiohttp.ClientSession,
        address: str,
        destination: Path,
        on_bytes: Callable[[int], None],
    ) -> int:
        schemes = self._schemes
        for _ in range(MAX_REDIRECTS + 1):
            url = parse_url(address, schemes)
            if url.scheme == "https":
                schemes = ("https",)
            async with session.get(url, allow_redirects=False) as response:
                if response.status not in REDIRECTS:
                    return await self._store(response, destination, on_bytes)
                location = response.headers.get("Location", "")
            if not location:
                raise FetchError("the clip's host answered with a redirect that leads nowhere")
            address = urljoin(str(url), location)
        raise FetchError(f"the clip's address redirects more than {MAX_REDIRECTS} times")

    async def _store(
        self,
        response: aiohttp.ClientResponse,
        destination: Path,
        on_bytes: Callable[[int], None],
    ) -> int:
        if response.status != 200:
            raise FetchError(
                f"the clip's host answered {response.status} {response.reason or ''}".rstrip()
                + "; check the address, and whether it has expired"
            )
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise FetchError(f"the clip's host sent it compressed ({encoding}); have it sent as is")
        if (response.content_length or 0) > self._max_bytes:
            raise self._too_large()
        num_bytes = 0
        with destination.open("wb") as file:
            async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                num_bytes += len(chunk)
                if num_bytes > self._max_bytes:
                    raise self._too_large()
                on_bytes(len(chunk))
                await asyncio.to_thread(file.write, chunk)
        return num_bytes

    def _too_large(self) -> UploadTooLargeError:
        return UploadTooLargeError(
            f"the clip is larger than the limit of {self._max_bytes} bytes; shorten or compress it"
        )

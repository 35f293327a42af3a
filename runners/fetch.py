"""Download clips from user-supplied URLs, with SSRF and DNS-rebinding protection.

Each connection resolves the host name once, and connects to the IP address that was checked. If the
name were checked first and resolved again for the connection, it could change in between (DNS
rebinding). The check runs where the socket is created, so it also covers IP addresses in any
notation, every address of a name, and every redirect.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urljoin

import aiohttp
from yarl import URL

from foley.atomic import atomic_path
from foley.errors import FetchError, UploadTooLargeError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_REDIRECTS = 5
MAX_URL_CHARACTERS = 4096
CONNECT_TIMEOUT_SECONDS = 10.0
READ_TIMEOUT_SECONDS = 20.0
CHUNK_BYTES = 256 * 1024
REDIRECTS = (301, 302, 303, 307, 308)
# Private networks that `ipaddress` calls global: protocol assignments (with Oracle's metadata
# service), 6to4 relays, and Azure's platform and metadata service.
_FORBIDDEN = tuple(
    ipaddress.ip_network(block) for block in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")
)
_NAT64 = tuple(ipaddress.ip_network(block) for block in ("64:ff9b::/96", "64:ff9b:1::/48"))


class _ForbiddenAddressError(OSError):
    """Raised instead of creating a socket. aiohttp expects an OSError there."""


def is_public(address: Address) -> bool:
    """Return whether an IP address belongs to the public internet.

    An IPv4 address that is embedded in an IPv6 address (mapped, 6to4, Teredo, NAT64) counts by
    itself.

    Args:
        address: the IP address.
    """
    if isinstance(address, ipaddress.IPv6Address):
        inner: Address | None = address.ipv4_mapped or address.sixtofour
        if address.teredo is not None:
            inner = address.teredo[1]
        if any(address in block for block in _NAT64):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address.scope_id is not None or address.is_site_local:
            return False
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not address.is_unspecified
        and not any(address in block for block in _FORBIDDEN)
    )


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
            raise _translate_error(error) from error
        except TimeoutError as error:
            raise FetchError(
                f"the clip did not arrive within {self._timeout_seconds:g} s; put it on a faster "
                "host, or send it in the request"
            ) from error

    def _open_session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            ssl=self._tls,
            resolver=aiohttp.ThreadedResolver(),  # the system's resolver, with its hosts file
            socket_factory=self._create_socket,
            use_dns_cache=False,
            force_close=True,
            happy_eyeballs_delay=None,  # tries the addresses one after the other
        )
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_TIMEOUT_SECONDS, sock_read=READ_TIMEOUT_SECONDS
            ),
            headers={"User-Agent": "foley", "Accept": "*/*", "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # a small response cannot expand into a large file
            trust_env=False,  # a proxy would resolve the name itself, unchecked
        )

    def _create_socket(self, info: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
        """Create the socket for one resolved address, which aiohttp then connects to."""
        family, kind, protocol, _, place = info
        if not self._is_allowed(ipaddress.ip_address(str(place[0]))):
            raise _ForbiddenAddressError
        return socket.socket(family, kind, protocol)

    async def _follow(
        self,
        session: aiohttp.ClientSession,
        address: str,
        destination: Path,
        on_bytes: Callable[[int], None],
    ) -> int:
        schemes = self._schemes
        for _ in range(MAX_REDIRECTS + 1):
            url = _parse_url(address, schemes)
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


def _parse_url(address: str, schemes: Sequence[str]) -> URL:
    """Return the parsed URL, or raise `FetchError` if it is not allowed."""
    if len(address) > MAX_URL_CHARACTERS:
        raise FetchError(f"the clip's address is longer than {MAX_URL_CHARACTERS} characters")
    try:
        url = URL(address)
        port = url.port
    except ValueError as error:
        raise FetchError("the clip's address is malformed") from error
    if url.scheme not in schemes:
        beginnings = " or ".join(f"{scheme}://" for scheme in schemes)
        raise FetchError(f"the clip's address must begin with {beginnings}, got {address[:40]!r}")
    if url.user is not None or url.password is not None:
        raise FetchError("the clip's address holds a user name or password; use a signed address")
    if not url.host or not port:
        raise FetchError("the clip's address names no host")
    return url


def _translate_error(error: aiohttp.ClientError) -> FetchError:
    """Return an error without details of the network around this process."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, _ForbiddenAddressError):
            return FetchError("the clip's address leads to a network that is not the open internet")
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, aiohttp.InvalidURL):  # such as 127.1 or 0x7f000001
        return FetchError("the clip's address is malformed")
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
        return FetchError("the clip's host has no valid certificate")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return FetchError("the clip's host is not known")
    if isinstance(error, aiohttp.ServerTimeoutError):
        return FetchError("the clip's host does not answer")
    return FetchError("the connection to the clip's host failed; try again")

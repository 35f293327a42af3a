"""Fetches a clip from an address that a stranger names, without becoming the stranger's way inside.

The name is resolved once for each connection, and the very address that was checked is the one that
is connected to: checking a name first and connecting by name later would let it change in between.
The check sits where the socket is made, so it also meets addresses written as numbers, every
address of a name, and every redirect.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urljoin

import aiohttp
from yarl import URL

from foley.atomic import atomic_path
from foley.errors import FetchError, UploadTooLargeError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_REDIRECTS = 5
MAX_URL_CHARACTERS = 4096
CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 20.0
CHUNK_BYTES = 256 * 1024
REDIRECTS = (301, 302, 303, 307, 308)
# Not the open internet, though Python's tables call them global: protocol assignments, Oracle's
# metadata among them; relays of 6to4; Azure's platform and metadata service.
_FORBIDDEN = tuple(
    ipaddress.ip_network(block) for block in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")
)
_NAT64 = tuple(ipaddress.ip_network(block) for block in ("64:ff9b::/96", "64:ff9b:1::/48"))


class _ForbiddenAddressError(OSError):
    """Raised where a socket would be made; what is around it knows OSError."""


def is_public(address: Address) -> bool:
    """Whether an address belongs to the open internet, also inside the forms that wrap another."""
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
    """Fetches clips over HTTPS.

    Args:
        max_bytes: of one clip.
        timeout_seconds: for one clip, redirects and all.
        is_allowed: whether an address may be connected to.
        tls: what certificates are trusted; the system's when absent.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        timeout_seconds: float,
        is_allowed: Callable[[Address], bool] = is_public,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._max_bytes = max_bytes
        self._timeout_seconds = timeout_seconds
        self._is_allowed = is_allowed
        self._tls = tls or ssl.create_default_context()

    async def fetch(self, address: str, destination: Path) -> int:
        """Write what the address names to a file; returns its bytes.

        Args:
            address: https://...
            destination: not there when this fails.

        Raises:
            FetchError: refused, unreachable, not found, or too slow.
            UploadTooLargeError: more than `max_bytes`.
        """
        try:
            async with asyncio.timeout(self._timeout_seconds):
                with atomic_path(destination) as partial:
                    async with self._session() as session:
                        return await self._follow(session, address, partial)
        except aiohttp.ClientError as error:
            raise _told(error) from error
        except TimeoutError as error:
            raise FetchError(
                f"the clip did not arrive within {self._timeout_seconds:g} s; put it on a faster "
                "host, or send it in the request"
            ) from error

    def _session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            ssl=self._tls,
            resolver=aiohttp.ThreadedResolver(),  # the system's, hosts file and all
            socket_factory=self._socket,
            use_dns_cache=False,
            force_close=True,
            happy_eyeballs_delay=None,  # one address after the other: each is checked alike
        )
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS
            ),
            headers={"User-Agent": "foley", "Accept": "*/*", "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # a small answer cannot swell
            trust_env=False,  # a proxy would resolve the name by itself
        )

    def _socket(self, info: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
        """The socket for one resolved address, which is the address that it will connect to."""
        family, kind, protocol, _, place = info
        if not self._is_allowed(ipaddress.ip_address(str(place[0]))):
            raise _ForbiddenAddressError
        return socket.socket(family, kind, protocol)

    async def _follow(self, session: aiohttp.ClientSession, address: str, destination: Path) -> int:
        for _ in range(MAX_REDIRECTS + 1):
            url = _checked(address)
            async with session.get(url, allow_redirects=False) as response:
                if response.status not in REDIRECTS:
                    return await self._store(response, destination)
                location = response.headers.get("Location", "")
            if not location:
                raise FetchError("the clip's host answered with a redirect that leads nowhere")
            address = urljoin(str(url), location)
        raise FetchError(f"the clip's address redirects more than {MAX_REDIRECTS} times")

    async def _store(self, response: aiohttp.ClientResponse, destination: Path) -> int:
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
                await asyncio.to_thread(file.write, chunk)
        return num_bytes

    def _too_large(self) -> UploadTooLargeError:
        return UploadTooLargeError(
            f"the clip is larger than the limit of {self._max_bytes} bytes; shorten or compress it"
        )


def _checked(address: str) -> URL:
    """The address, when it is of the one kind that is fetched."""
    if len(address) > MAX_URL_CHARACTERS:
        raise FetchError(f"the clip's address is longer than {MAX_URL_CHARACTERS} characters")
    try:
        url = URL(address)
        port = url.port
    except ValueError as error:
        raise FetchError("the clip's address is malformed") from error
    if url.scheme != "https":
        raise FetchError(f"the clip's address must begin with https://, got {address[:40]!r}")
    if url.user is not None or url.password is not None:
        raise FetchError("the clip's address holds a user name or password; use a signed address")
    if not url.host or not port:
        raise FetchError("the clip's address names no host")
    return url


def _told(error: aiohttp.ClientError) -> FetchError:
    """What went wrong between here and the clip's host, without telling what is around us."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, _ForbiddenAddressError):
            return FetchError("the clip's address leads to a network that is not the open internet")
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, aiohttp.InvalidURL):  # 127.1 or 0x7f000001, which systems read as numbers
        return FetchError("the clip's address is malformed")
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
        return FetchError("the clip's host has no valid certificate")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return FetchError("the clip's host is not known")
    if isinstance(error, aiohttp.ServerTimeoutError):
        return FetchError("the clip's host does not answer")
    return FetchError("the connection to the clip's host failed; try again")

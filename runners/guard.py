"""Connections to addresses that callers name, with SSRF and DNS-rebinding protection.

Each connection resolves the host name once, and connects to the IP address that was checked. If the
name were checked first and resolved again for the connection, it could change in between (DNS
rebinding). The check runs where the socket is created, so it also covers IP addresses in any
notation, every address of a name, and every redirect.
"""

import ipaddress
import re
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence

import aiohttp
from yarl import URL

from foley.errors import FetchError, iterate_causes

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_URL_CHARACTERS = 4096
CONNECT_TIMEOUT_SECONDS = 10.0
READ_TIMEOUT_SECONDS = 20.0
# Private networks that `ipaddress` calls global: protocol assignments (with Oracle's metadata
# service), 6to4 relays, and Azure's platform and metadata service.
_FORBIDDEN = tuple(
    ipaddress.ip_network(block) for block in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")
)
_NAT64 = tuple(ipaddress.ip_network(block) for block in ("64:ff9b::/96", "64:ff9b:1::/48"))

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NAME = re.compile(r"[A-Za-z0-9._-]+")  # the underscore is none of DNS, but of Compose's services


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


def open_session(
    *,
    headers: Mapping[str, str],
    is_allowed: Callable[[Address], bool] = is_public,
    tls: ssl.SSLContext | None = None,
) -> aiohttp.ClientSession:
    """Return a session that connects to allowed addresses only, and never through a proxy.

    Args:
        headers: of each request.
        is_allowed: whether a connection to an IP address is allowed.
        tls: the trusted certificates; None trusts the system's.
    """

    def create_socket(info: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
        """Create the socket for one resolved address, which aiohttp then connects to."""
        family, kind, protocol, _, place = info
        if not is_allowed(ipaddress.ip_address(str(place[0]))):
            raise _ForbiddenAddressError
        return socket.socket(family, kind, protocol)

    connector = aiohttp.TCPConnector(
        limit=0,  # the callers have limits of their own
        ssl=tls or ssl.create_default_context(),
        resolver=aiohttp.ThreadedResolver(),  # the system's resolver, with its hosts file
        socket_factory=create_socket,
        use_dns_cache=False,
        force_close=True,
        happy_eyeballs_delay=None,  # tries the addresses one after the other
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT_SECONDS, sock_read=READ_TIMEOUT_SECONDS
        ),
        headers=headers,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,  # a small response cannot expand into a large file
        trust_env=False,  # a proxy would resolve the name itself, unchecked
    )


def parse_url(address: str, schemes: Sequence[str], what: str = "clip") -> URL:
    """Return a parsed URL.

    Args:
        address: as the caller gave it; any text.
        schemes: that are allowed.
        what: is there, in the message of an error.

    Raises:
        FetchError: it is too long or malformed, of another scheme, holds a password, or names a
            host that no resolver takes.
    """
    if len(address) > MAX_URL_CHARACTERS:
        raise FetchError(f"the {what}'s address is longer than {MAX_URL_CHARACTERS} characters")
    if (found := _CONTROL.search(address)) is not None:  # the parser leaves some of them out
        raise FetchError(
            f"the {what}'s address is malformed: its character {found.start() + 1} is "
            f"{found.group()!r}; remove it"
        )
    try:
        url = URL(address)
        port = url.port
    except ValueError as error:
        raise FetchError(f"the {what}'s address is malformed") from error
    if url.scheme not in schemes:
        beginnings = " or ".join(f"{scheme}://" for scheme in schemes)
        raise FetchError(f"the {what}'s address must begin with {beginnings}, got {address[:40]!r}")
    if url.user is not None or url.password is not None:
        raise FetchError(
            f"the {what}'s address holds a user name or password; use a signed address"
        )
    if not url.host or not port:
        raise FetchError(f"the {what}'s address names no host")
    if not _is_host(url.raw_host or ""):
        raise FetchError(
            f"the {what}'s address is malformed: {url.host[:80]!r} is neither a name nor a whole "
            "IP address, such as 192.0.2.1 or [2001:db8::1]"
        )
    return url


def _is_host(host: str) -> bool:
    """Whether aiohttp's resolver takes a host. It refuses the short forms of IPv4, such as 127.1.

    Args:
        host: in ASCII, without brackets.
    """
    try:
        if ":" in host or host.replace(".", "").isdigit():
            ipaddress.ip_address(host)
            return True
        host.encode("idna")  # as the resolver does: a label has 1 to 63 characters
    except ValueError:
        return False
    return _NAME.fullmatch(host) is not None


def translate_error(error: aiohttp.ClientError, what: str = "clip") -> FetchError:
    """Return an error without details of the network around this process.

    Args:
        error: of a connection.
        what: was wanted, in the message.
    """
    for cause in iterate_causes(error):
        if isinstance(cause, _ForbiddenAddressError):
            return FetchError(
                f"the {what}'s address leads to a network that is not the open internet"
            )
    if isinstance(error, aiohttp.InvalidURL):  # such as 127.1 or 0x7f000001
        return FetchError(f"the {what}'s address is malformed")
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
        return FetchError(f"the {what}'s host has no valid certificate")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return FetchError(f"the {what}'s host is not known")
    if isinstance(error, aiohttp.ServerTimeoutError):
        return FetchError(f"the {what}'s host does not answer")
    return FetchError(f"the connection to the {what}'s host failed; try again")


def allow_networks(networks: Sequence[str]) -> Callable[[Address], bool]:
    """Return a check that allows the open internet, and some networks beside it.

    Args:
        networks: such as 10.0.0.0/8.
    """
    blocks = [ipaddress.ip_network(network) for network in networks]

    def is_allowed(address: Address) -> bool:
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return is_public(address) or any(address in block for block in blocks)

    return is_allowed

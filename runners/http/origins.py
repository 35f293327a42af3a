"""From where a request may come: the header `Host`, and `Sec-Fetch-Site`, which browsers send.

A page of somebody else can make its visitor's browser send requests to a service that only this
browser reaches. It may also give its own name the service's address (DNS rebinding), and then read
the answers.
"""

import functools
import ipaddress
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from foley.errors import ForbiddenError
from runners.process import find_http_host

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
ANY = "*"
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class OriginCheck:
    """Refuses requests that name a foreign host, or that a foreign page sends to change something.

    Args:
        hosts: names that `Host` may have besides those of this machine; `*` allows all. Without
            any, `Host` is checked only where the service listens on a loopback address: elsewhere
            the names of proxies and probes are unknown.
        origins: pages of other sites that may send requests, such as https://example.com.
        unchecked_paths: probes, which name a pod by its address.
    """

    def __init__(
        self,
        hosts: Iterable[str] = (),
        origins: Iterable[str] = (),
        unchecked_paths: Iterable[str] = (),
    ) -> None:
        self._hosts = {host.lower() for host in hosts}
        self._origins = set(origins)
        self._unchecked_paths = set(unchecked_paths)

    @functools.cached_property
    def _allowed(self) -> set[str]:
        """The names that are allowed; with `*` all are."""
        bound = find_http_host()
        if not self._hosts and not _is_loopback(bound):
            return {ANY}
        return {*self._hosts, *LOCAL_NAMES}

    def check(
        self, method: str, path: str, headers: Mapping[str, str], address: str | None = None
    ) -> None:
        """Raise an error unless the request may come from where it comes.

        Args:
            method: of the request, such as POST.
            path: of the request.
            headers: by lower-case name.
            address: where the connection arrived, such as 10.1.2.3; it is a name of this service.

        Raises:
            ForbiddenError: it may not.
        """
        host = headers.get("host")
        if host is not None and path not in self._unchecked_paths and ANY not in self._allowed:
            name = _name_of(host)
            if name not in self._allowed and (not name or name != address):
                raise ForbiddenError(
                    f"this service is not called {name or 'so'!r:.100}; its operator names its "
                    "hosts in FOLEY_ALLOWED_HOSTS"
                )
        is_foreign = headers.get("sec-fetch-site") == "cross-site"
        if is_foreign and method not in SAFE_METHODS and headers.get("origin") not in self._origins:
            raise ForbiddenError(
                "a page of another site sent this request; the service's operator names the sites "
                "that may in FOLEY_CORS_ORIGINS"
            )


def _name_of(host: str) -> str:
    """Return the name or address in a `Host` header, in lower case; "" if it cannot be read."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

"""API keys and request ids: who calls, and by which name. HTTP and gRPC share both."""

import hashlib
import hmac
import ipaddress
import re
import uuid
from collections.abc import Callable, Iterable, Mapping

from foley.errors import UnauthorizedError

# A request id is a segment of a path, so it must not be `.` or `..`.
REQUEST_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", re.ASCII)


class ApiKeys:
    """The API keys that the service accepts. Without any, it accepts every caller.

    Args:
        keys: in plain text. Only their digests are kept.
        read_job_key: returns the owner for whom a key of the executor of jobs was made, and None
            for another key; see `runners.durable.secret`. None if there are no jobs.
    """

    def __init__(
        self, keys: Iterable[str], read_job_key: Callable[[str], str | None] | None = None
    ) -> None:
        self._read_job_key = read_job_key
        # Digests have one length, so the time of a comparison says nothing about a key's length.
        self._digests = [_digest(key) for key in keys]

    def owner_of(self, headers: Mapping[str, str]) -> str:
        """Return the owner of a request: the digest of its API key, or "" where no key is needed.

        Args:
            headers: HTTP headers or gRPC metadata, by lower-case name. The key is in
                `authorization: Bearer KEY`, or in `x-api-key`.

        Raises:
            UnauthorizedError: there is no key, or it is unknown.
        """
        if not self._digests:
            return ""
        key = _read_key(headers)
        if not key:
            raise UnauthorizedError("no API key; send one as `Authorization: Bearer KEY`")
        if self._read_job_key is not None and (owner := self._read_job_key(key)) is not None:
            return owner
        digest = _digest(key)
        # Compare with every key, so that the time does not depend on which one matches.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if not any(matches):
            raise UnauthorizedError("this API key is not known")
        return digest.hex()

    def is_executor(self, headers: Mapping[str, str]) -> bool:
        """Return whether a request is one of the executor of jobs, which nobody else can sign.

        Args:
            headers: as of `owner_of`.
        """
        return self._read_job_key is not None and self._read_job_key(_read_key(headers)) is not None


def caller_of(owner: str, address: str) -> str:
    """Return for whom turns and shares are counted: the owner, or the address of one without a key.

    Args:
        owner: as of `ApiKeys.owner_of`.
        address: of the connection, or as a trusted proxy states it; empty if there is none. Of
            IPv6 its network counts, since one machine has a whole one.
    """
    if owner:
        return owner
    try:
        known = ipaddress.ip_address(address)
    except ValueError:  # such as of a Unix socket
        return ""
    if known.version == 4:
        return str(known)
    return str(known.ipv4_mapped or ipaddress.ip_network((int(known), 64), strict=False))


def request_id_of(headers: Mapping[str, str]) -> str:
    """Return the caller's own `x-request-id` where it matches `REQUEST_ID`, else a new id.

    Args:
        headers: HTTP headers or gRPC metadata, by lower-case name.
    """
    given = headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _read_key(headers: Mapping[str, str]) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()

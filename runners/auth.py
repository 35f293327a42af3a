"""API keys: who may call, and whose a request is. HTTP and gRPC ask here."""

import hashlib
import hmac
from collections.abc import Iterable, Mapping

from foley.errors import UnauthorizedError


class ApiKeys:
    """The keys that open the service. Without any, it is open to everybody."""

    def __init__(self, keys: Iterable[str]) -> None:
        # Digests have one length: comparing them tells nothing of a key's own.
        self._digests = [_digest(key) for key in keys]

    def owner_of(self, headers: Mapping[str, str]) -> str:
        """Whose the request with these headers is: a digest of its key; empty where all may call.

        Args:
            headers: by lower-case names, as HTTP headers and gRPC metadata have them. The key is in
                `authorization: Bearer KEY` or in `x-api-key`.

        Raises:
            UnauthorizedError: no key, or a wrong one.
        """
        if not self._digests:
            return ""
        given = _given(headers)
        if not given:
            raise UnauthorizedError("no API key; send one as `Authorization: Bearer KEY`")
        digest = _digest(given)
        # All of them are compared, so that the time does not tell which was nearly right.
        same = [hmac.compare_digest(digest, known) for known in self._digests]
        if not any(same):
            raise UnauthorizedError("this API key is not known")
        return digest.hex()


def _given(headers: Mapping[str, str]) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()

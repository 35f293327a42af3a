"""The secrets that sign webhooks, as FOLEY_WEBHOOK_SECRET has them."""

import base64
import binascii

from foley.errors import ParameterError

_PREFIX = "whsec_"
_NUM_BYTES = range(24, 65)


def split_secrets(text: str) -> tuple[str, ...]:
    """Return the secrets of a text that has them between commas; empty places count for nothing.

    Raises:
        ParameterError: one is not `whsec_` and the base64 of 24 to 64 bytes. The message contains
            no secret.
    """
    secrets = tuple(filter(None, (secret.strip() for secret in text.split(","))))
    for number, secret in enumerate(secrets, start=1):
        try:
            key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
        except (binascii.Error, ValueError):  # the latter for letters beyond ASCII
            key = b""
        if not secret.startswith(_PREFIX) or len(key) not in _NUM_BYTES:
            raise ParameterError(
                f"secret number {number} is malformed; write {_PREFIX} and the base64 of 24 to 64 "
                "random bytes"
            )
    return secrets

"""The key with which the executor calls the API for the owner of a job.

The API keeps only digests of its callers' keys, and a job outlives the request that brought one. So
the executor calls with a key that is derived from the owner and from a secret in the jobs' folder.
"""

import contextlib
import hashlib
import hmac
import os
import secrets
import tempfile
from pathlib import Path

from foley.errors import ConfigError

PREFIX = "foley-job"


def load_secret(folder: Path) -> bytes:
    """Return the secret of a jobs' folder; the first caller makes it.

    Args:
        folder: created if missing, for this user alone.

    Raises:
        ConfigError: the folder cannot be read or written.
    """
    try:
        return _load_secret(folder)
    except OSError as error:
        raise ConfigError(f"FOLEY_JOBS_DIR: {error}; name a folder that can be written") from error


def _load_secret(folder: Path) -> bytes:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "jobs.secret"
    if not path.exists():
        # Written under another name and linked, so that nobody reads a part of it.
        descriptor, unnamed = tempfile.mkstemp(dir=folder)
        with open(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(unnamed, path)
        os.unlink(unnamed)
    return bytes.fromhex(path.read_text())


def make_job_key(secret: bytes, owner: str) -> str:
    """Return the API key with which the executor calls for an owner.

    Args:
        secret: of the folder.
        owner: see `runners.auth.ApiKeys.owner_of`.
    """
    return f"{PREFIX}.{owner}.{_sign(secret, owner)}"


def read_job_key(secret: bytes, key: str) -> str | None:
    """Return the owner for whom a key was made; None if it is no such key.

    Args:
        secret: of the folder.
        key: as a caller sent it.
    """
    prefix, _, rest = key.partition(".")
    owner, _, signature = rest.rpartition(".")
    if prefix != PREFIX or not hmac.compare_digest(
        signature.encode(), _sign(secret, owner).encode()
    ):
        return None
    return owner


def _sign(secret: bytes, owner: str) -> str:
    return hmac.new(secret, owner.encode(), hashlib.sha256).hexdigest()

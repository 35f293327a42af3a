"""What a request has beside its body: parameters of its query, and the path below which it came."""

import re

from starlette.requests import Request

from foley.errors import ParameterError

MAX_LISTED = 100
MAX_OFFSET = 1_000_000


def find_root(request: Request) -> str:
    """Return the path below which the caller reaches the service; empty without one."""
    root: str = request.scope.get("root_path", "")
    return root


def read_page(request: Request) -> tuple[int, int]:
    """Return how many things are asked for, and how many of the first are left out.

    Args:
        request: with `limit`, 1 to `MAX_LISTED`, and `offset`.

    Raises:
        ParameterError: one is out of bounds.
    """
    limit = _read_count(request, "limit", default=20, low=1, high=MAX_LISTED)
    return limit, _read_count(request, "offset", default=0, low=0, high=MAX_OFFSET)


def _read_count(request: Request, name: str, *, default: int, low: int, high: int) -> int:
    text = request.query_params.get(name, str(default))
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or not low <= int(text) <= high:
        raise ParameterError(f"{name}: must be {low} to {high}, got {text[:80]!r}")
    return int(text)

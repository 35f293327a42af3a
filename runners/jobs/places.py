"""Places for work that needs no model, which the GPU process therefore does not count."""

import contextlib
from collections import Counter
from collections.abc import Iterator

from foley.errors import BusyError


class Places:
    """A limit on what one API process works on at once, waiting for a turn included.

    Args:
        capacity: places of all callers together, at least 1.
        key_share: largest share of them that one caller may hold, above 0; each may hold one.
    """

    def __init__(self, capacity: int, key_share: float = 1.0) -> None:
        self._capacity = capacity
        self._capacity_of_key = max(1, int(key_share * capacity))
        self._held: Counter[str] = Counter()

    @contextlib.contextmanager
    def hold(self, owner: str) -> Iterator[None]:
        """Hold a place while the block lasts.

        Args:
            owner: whose place it is; see `runners.auth.caller_of`.

        Raises:
            BusyError: all places are taken, or those of the caller.
        """
        num_held = self._held.total()
        if num_held >= self._capacity:
            raise BusyError(f"{num_held} sounds are being mixed, the limit; try again later")
        if self._held[owner] >= self._capacity_of_key:
            raise BusyError(
                f"{self._held[owner]} sounds of this caller are being mixed, the limit; try again "
                "later"
            )
        self._held[owner] += 1
        try:
            yield
        finally:
            self._held[owner] -= 1
            if not self._held[owner]:
                del self._held[owner]

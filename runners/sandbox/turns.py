"""Fair turns between callers at the few media tasks that run at once."""

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator

MAX_REMEMBERED = 1000  # owners, who may be addresses, of which there is no end


class Turns:
    """A semaphore whose next turn goes to the owner who holds the fewest.

    Among owners who hold equally many, the one whose last turn is the longest ago goes first. There
    is one turn more than one owner may hold, so one who sends many costly clips does not make
    another's clip wait for any of them.

    Args:
        num_turns: that one owner may hold, at least 1; all together may hold one more.
        key_share: largest share of `num_turns` that one owner may hold instead, above 0; each may
            hold one.
    """

    def __init__(self, num_turns: int, *, key_share: float = 1.0) -> None:
        self._num_free = num_turns + 1
        self._max_of_key = max(1, int(key_share * num_turns))
        self._held: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._num_given = 0
        self._last_given: dict[str, int] = {}  # number of the last turn of each, in their order

    @contextlib.asynccontextmanager
    async def take(self, owner: str) -> AsyncIterator[None]:
        """Wait for a turn, and hold it while the block lasts.

        Args:
            owner: whose turn it is; see `runners.auth.caller_of`.
        """
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(turn)
        self._give()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._return(owner)  # it came at the same moment
            raise
        try:
            yield
        finally:
            self._return(owner)

    def _return(self, owner: str) -> None:
        self._num_free += 1
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]
        self._give()

    def _give(self) -> None:
        """Give the free turns to those whose it is."""
        while self._num_free:
            able = [owner for owner in self._waiting if self._held[owner] < self._max_of_key]
            if not able:
                return
            owner = min(able, key=lambda owner: (self._held[owner], self._last_given.get(owner, 0)))
            turn = self._waiting[owner].popleft()
            if not self._waiting[owner]:
                del self._waiting[owner]
            if turn.cancelled():
                continue
            self._num_free -= 1
            self._held[owner] += 1
            self._num_given += 1
            self._last_given.pop(owner, None)
            self._last_given[owner] = self._num_given
            if len(self._last_given) > MAX_REMEMBERED:
                del self._last_given[next(iter(self._last_given))]
            turn.set_result(None)

"""What one API process takes in: uploads at once, their bytes and rate, and requests of a key.

An upload computes nothing, so it holds no place of the model. It has bounds of its own, so that
callers who send slowly neither shut others out nor fill the scratch folder.

A generation or a job is counted once, when it was received; pieces of uploads are not. The executor
asks for what was counted as a job.
"""

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator

from foley.errors import BusyError, UploadTooSlowError
from runners.settings import Settings

# A stall of this length is normal on a radio link. The rate is checked over as many seconds.
WINDOW_SECONDS = 10.0
MINUTE = 60.0
ROOM_BYTES = 1024 * 1024  # of an upload between two looks at the room
CheckRoom = Callable[[int], None]


class Upload:
    """One upload while it is received.

    Args:
        intake: has the bounds.
        check_room: raises an error if there is no room for so many bytes; called now and then.
    """

    def __init__(self, intake: "Intake", check_room: CheckRoom) -> None:
        self._intake = intake
        self._check_room = check_room
        self._unchecked_bytes = 0
        self.num_bytes = 0

    def add(self, num_bytes: int) -> None:
        """Count bytes that have arrived.

        Args:
            num_bytes: since the last call.

        Raises:
            BusyError: all uploads together have more bytes than allowed.
            StorageFullError: the room is needed for running requests.
        """
        self._intake.check_bytes(num_bytes)
        self._unchecked_bytes += num_bytes
        if self._unchecked_bytes >= ROOM_BYTES:
            self._check_room(self._unchecked_bytes)
            self._unchecked_bytes = 0
        self.num_bytes += num_bytes

    async def watch_rate(self) -> str:
        """Run beside the upload, as a signal of `run_until_cancelled`, which it ends if slow.

        Raises:
            UploadTooSlowError: fewer bytes came within `WINDOW_SECONDS` than the least rate asks.
        """
        least = self._intake.min_bytes_per_second
        while True:
            before = self.num_bytes
            await asyncio.sleep(WINDOW_SECONDS)
            received = self.num_bytes - before
            if received < least * WINDOW_SECONDS:
                raise UploadTooSlowError(
                    f"the upload is too slow: {received} bytes came within {WINDOW_SECONDS:g} s, "
                    f"the least is {least} bytes a second; use a faster connection or a smaller "
                    "clip"
                )


class Intake:
    """The uploads of one API process, and the recent requests of each key.

    Args:
        max_uploads: at once.
        max_bytes: that all uploads of the moment may have together.
        min_bytes_per_second: least rate of an upload; 0 for none.
        key_share: largest share of the uploads that the requests of one key may hold, above 0.
        requests_per_minute: generations and jobs of one key; 0 for no limit.
    """

    def __init__(
        self,
        *,
        max_uploads: int,
        max_bytes: int,
        min_bytes_per_second: int,
        key_share: float,
        requests_per_minute: int,
    ) -> None:
        self.min_bytes_per_second = min_bytes_per_second
        self._max_uploads = max_uploads
        self._max_bytes = max_bytes
        self._max_uploads_of_key = max(1, int(key_share * max_uploads))
        self._requests_per_minute = requests_per_minute
        self._uploads: set[Upload] = set()
        self._uploads_of: Counter[str] = Counter()
        self._recent: dict[str, deque[float]] = {}

    @contextlib.contextmanager
    def receive(
        self, owner: str, check_room: CheckRoom = lambda num_bytes: None
    ) -> Iterator[Upload]:
        """Yield the count of a new upload, and forget it when the block ends.

        Args:
            owner: of the request; see `runners.auth.caller_of`.
            check_room: of the folder in which the upload is stored, as of `Upload`.

        Raises:
            BusyError: too many uploads are under way.
        """
        if self._uploads_of[owner] >= self._max_uploads_of_key:
            raise BusyError(
                f"{self._uploads_of[owner]} uploads of this caller are being received, the limit; "
                "try again later"
            )
        if len(self._uploads) >= self._max_uploads:
            raise BusyError(
                f"{self._max_uploads} uploads are being received, the limit; try again later"
            )
        upload = Upload(self, check_room)
        self._uploads.add(upload)
        self._uploads_of[owner] += 1
        try:
            yield upload
        finally:
            self._uploads.remove(upload)
            self._uploads_of[owner] -= 1
            self._uploads_of += Counter()  # leaves out the callers without uploads

    def check_bytes(self, num_bytes: int) -> None:
        """Check that so many more bytes fit beside those of the uploads under way.

        Args:
            num_bytes: that have arrived.

        Raises:
            BusyError: they do not.
        """
        if sum(upload.num_bytes for upload in self._uploads) + num_bytes > self._max_bytes:
            raise BusyError(
                f"the uploads that are being received have {self._max_bytes} bytes together, the "
                "limit; try again later"
            )

    def check_requests(self, owner: str) -> None:
        """Check that an owner may send a request; called before one is received.

        Args:
            owner: of the request; see `runners.auth.caller_of`.

        Raises:
            BusyError: the owner has had as many as allowed within a minute.
        """
        now = time.monotonic()
        recent = self._find_recent(owner, now)
        if 0 < self._requests_per_minute <= len(recent):
            busy = BusyError(
                f"this caller has sent {len(recent)} requests within a minute, the limit; "
                "try again later"
            )
            busy.retry_after_seconds = recent[0] + MINUTE - now
            raise busy

    def count_request(self, owner: str) -> None:
        """Note a request that was received and is whole.

        Args:
            owner: of the request; see `runners.auth.caller_of`.

        Raises:
            BusyError: as of `check_requests`.
        """
        self.check_requests(owner)
        if not self._requests_per_minute:
            return
        now = time.monotonic()
        recent = self._find_recent(owner, now)
        recent.append(now)
        self._recent.pop(owner, None)
        self._recent[owner] = recent  # at the end: the oldest is the first
        while not (oldest := next(iter(self._recent.values()))) or oldest[-1] <= now - MINUTE:
            del self._recent[next(iter(self._recent))]

    @contextlib.contextmanager
    def counting(self, owner: str) -> Iterator[None]:
        """Note a request as `count_request` does, and forget it if the block has no place for it.

        Args:
            owner: of the request; see `runners.auth.caller_of`.

        Raises:
            BusyError: as of `check_requests`, or of the block.
        """
        self.count_request(owner)
        try:
            yield
        except BusyError:
            if recent := self._recent.get(owner):
                recent.pop()
            raise

    def _find_recent(self, owner: str, now: float) -> deque[float]:
        """Return when an owner has sent requests within the last minute."""
        recent = self._recent.get(owner, deque())
        while recent and recent[0] <= now - MINUTE:
            recent.popleft()
        return recent


def make_intake(settings: Settings) -> Intake:
    """Return the intake of an API process.

    Args:
        settings: have its bounds.
    """
    return Intake(
        max_uploads=settings.max_uploads,
        max_bytes=settings.max_uploads_bytes,
        min_bytes_per_second=settings.min_upload_bytes_per_second,
        key_share=settings.key_share,
        requests_per_minute=settings.requests_per_minute,
    )

"""The end of the GPU process after SIGTERM, which the launcher sends to all processes at once."""

import asyncio
import time
from pathlib import Path

from runners.jobs.cancellation import has_active_request
from runners.jobs.scratch import REQUESTS, find_shared_folder

POLL_SECONDS = 0.2
LAST_SECONDS = 1.0  # for the server around the worker to end


async def wait_for_requests(scratch_root: Path, grace_seconds: float) -> float:
    """Wait until no API process works on a request, so that uploads under way become sounds.

    Args:
        scratch_root: of the API's processes.
        grace_seconds: limit, from now on.

    Returns:
        the seconds that the server may take to end.
    """
    folder, stop = find_shared_folder(scratch_root) / REQUESTS, time.monotonic() + grace_seconds
    while True:
        # First of all, since an API process may learn of its end a moment later than this one.
        await asyncio.sleep(POLL_SECONDS)
        if time.monotonic() > stop or not await asyncio.to_thread(has_active_request, folder):
            return LAST_SECONDS

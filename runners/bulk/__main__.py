"""Run `python -m runners.bulk`: read rows from standard input until it ends."""

import asyncio
import logging
import os
import sys

from foley.bulk import BulkStart
from runners.bulk.station import serve
from runners.logs import configure_logging


def main() -> None:
    """Serve rows until standard input ends, which it does when the process at its other end dies.

    What libraries print must not come between the messages, so standard output becomes standard
    error for everything else.
    """
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    line = sys.stdin.buffer.readline()
    if not line:
        return
    start = BulkStart.model_validate_json(line)
    configure_logging("info" if start.verbose else "error")
    if not start.verbose:  # the libraries warn of what concerns model developers only
        logging.disable(logging.WARNING)
    asyncio.run(serve(start, sys.stdin.buffer, messages))


if __name__ == "__main__":
    main()

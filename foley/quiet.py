"""Imports of libraries that log remarks which concern model developers only."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silence_imports() -> Iterator[None]:
    """Hide log lines below `ERROR` inside the block.

    Libraries log remarks about each other's versions while they are imported.
    """
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)

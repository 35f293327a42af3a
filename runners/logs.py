"""Configure logging: one JSON object a line, from our loggers and from those of the libraries.

Prompts are never logged.
"""

import logging
import sys
from typing import Any

import structlog


def configure_logging(level: str) -> None:
    """Send the records of every logger of this process to standard output as JSON.

    Args:
        level: the lowest level that our own loggers log, such as "info"; warnings for the others.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,  # the stack, not the values in it
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.root.handlers = [handler]
    logging.root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    adopt_libraries()
    for name in ("foley", "runners", "service"):
        logging.getLogger(name).setLevel(level.upper())


def adopt_libraries() -> None:
    """Remove the handlers of the libraries' loggers, so that their records reach our own handler.

    Some libraries install a handler when they are imported. Call this again after that.
    """
    for library in logging.root.manager.loggerDict.values():
        if isinstance(library, logging.Logger):
            library.handlers = []
            library.propagate = True

"""Errors of requests as callers get them: those of this project, and our own fault for others."""

import structlog

from foley.errors import FoleyError, ServerError, StorageFullError
from runners.storage import is_storage_full

log = structlog.get_logger(__name__)

FAULT = "something went wrong inside the model's process"


def translate_error(error: BaseException) -> FoleyError:
    """Return the error that a caller gets; one that is a fault of ours is logged.

    Args:
        error: with which a request, or the loading of a model, has ended.
    """
    if isinstance(error, FoleyError):
        return error
    if is_storage_full(error):
        return StorageFullError()
    log.error("job_failed", exc_info=error)
    return ServerError(FAULT)

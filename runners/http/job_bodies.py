"""Jobs as server-sent events."""

import hashlib
import json
from typing import Any


def format_event(description: dict[str, Any]) -> tuple[bytes, str]:
    """Return a job as a server-sent event, and the event's id, which is that of its content.

    Args:
        description: of `describe_job`.
    """
    data = json.dumps(description)
    event_id = hashlib.sha256(data.encode()).hexdigest()[:16]
    return f"id: {event_id}\nevent: job\ndata: {data}\n\n".encode(), event_id

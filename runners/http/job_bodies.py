"""Jobs as callers see them: as JSON, and as server-sent events."""

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

from runners.durable.job import Job


def describe_job(
    job: Job, root: str, keep_seconds: float, queue_position: int | None = None
) -> dict[str, Any]:
    """Return a job as a JSON object.

    Args:
        job: of the caller.
        root: path below which the service is reached.
        keep_seconds: for how long ended jobs are kept.
        queue_position: how many jobs are started before it; None for a job that does not wait, and
            where it was not counted.
    """
    url = f"{root}/v1/jobs/{job.id}"
    times = {"created_at": job.created_ms, "started_at": job.started_ms}
    times["finished_at"] = job.finished_ms
    if job.finished_ms is not None:
        times["expires_at"] = job.finished_ms + round(1000 * keep_seconds)
    optional: dict[str, Any] = {
        **{name: None if ms is None else format_time(ms) for name, ms in times.items()},
        "queue_position": queue_position,
        "progress": job.progress or None,
        "error": job.error and {"code": job.error[0], "message": job.error[1]},
        "result": job.result and _describe_result(job.result, url),
    }
    return {
        "id": job.id,
        "state": job.state,
        "priority": job.priority,
        **{name: value for name, value in optional.items() if value is not None},
        "status_url": url,
        "events_url": f"{url}/events",
        "cancel_url": f"{url}/cancel",
        "result_url": f"{url}/result",
    }


def format_event(description: dict[str, Any]) -> tuple[bytes, str]:
    """Return a job as a server-sent event, and the event's id, which is that of its content.

    Args:
        description: of `describe_job`.
    """
    data = json.dumps(description)
    event_id = hashlib.sha256(data.encode()).hexdigest()[:16]
    return f"id: {event_id}\nevent: job\ndata: {data}\n\n".encode(), event_id


def format_time(milliseconds: int) -> str:
    """Return a time as ISO 8601 in UTC.

    Args:
        milliseconds: Unix time.
    """
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def _describe_result(result: dict[str, Any], url: str) -> dict[str, Any]:
    files = [
        {**{k: v for k, v in file.items() if k != "name"}, "url": f"{url}/result/{file['name']}"}
        for file in result["files"]
    ]
    return {**result, "files": files}

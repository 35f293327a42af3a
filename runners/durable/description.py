"""Jobs as callers see them: in answers, in events and in webhooks."""

import json
from datetime import UTC, datetime
from typing import Any

from runners.durable.bucket_files import TRY
from runners.durable.job import Job, Webhook


def describe_job(
    job: Job,
    root: str,
    keep_seconds: float,
    *,
    queue_position: int | None = None,
    webhook: Webhook | None = None,
) -> dict[str, Any]:
    """Return a job as a JSON object.

    Args:
        job: of the caller.
        root: path below which the service is reached.
        keep_seconds: for how long ended jobs are kept.
        queue_position: how many jobs are started before it; None for a job that does not wait, and
            where it was not counted.
        webhook: of the job; None without one, and where it was not looked up.
    """
    url = f"{root}/v1/jobs/{job.id}"
    times = {"created_at": job.created_ms, "started_at": job.started_ms}
    times["finished_at"] = job.finished_ms
    if job.finished_ms is not None:
        times["expires_at"] = job.finished_ms + round(1000 * keep_seconds)
    optional: dict[str, Any] = {
        **{name: None if ms is None else format_time(ms) for name, ms in times.items()},
        "output": job.output,
        "start_by": job.start_by,
        "starts": job.num_starts or None,
        "queue_position": queue_position,
        "progress": job.progress or None,
        "error": job.error and {"code": job.error[0], "message": job.error[1]},
        "result": job.result and _describe_result(job.result, job.output or f"{url}/result"),
        "webhook": webhook and describe_webhook(webhook, root),
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


def describe_webhook(webhook: Webhook, root: str) -> dict[str, Any]:
    """Return a webhook as a JSON object.

    Args:
        webhook: of the caller.
        root: path below which the service is reached.
    """
    optional: dict[str, Any] = {
        "last_error": webhook.last_error or None,
        "next_try_at": format_time(webhook.next_ms) if webhook.state == "sending" else None,
        "ended_at": format_time(webhook.ended_ms) if webhook.ended_ms else None,
    }
    return {
        "id": webhook.message_id,
        "job_id": webhook.job_id,
        "url": webhook.url,
        "state": webhook.state,
        "tries": webhook.num_tries,
        **{name: value for name, value in optional.items() if value is not None},
        "resend_url": f"{root}/v1/webhooks/{webhook.job_id}/resend",
    }


def format_message(job: Job, root: str, keep_seconds: float) -> str:
    """Return what the webhook of a job that has ended says, as JSON.

    Args:
        job: that has ended.
        root: path below which the caller reached the service.
        keep_seconds: for how long ended jobs are kept.

    Source: Standard Webhooks, "Payload structure".
    """
    assert job.finished_ms is not None
    return json.dumps(
        {
            "type": f"job.{job.state}",
            "timestamp": format_time(job.finished_ms),
            "data": describe_job(job, root, keep_seconds),
        }
    )


def format_time(milliseconds: int) -> str:
    """Return a time as ISO 8601 in UTC.

    Args:
        milliseconds: Unix time.
    """
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def _describe_result(result: dict[str, Any], folder: str) -> dict[str, Any]:
    files = [
        {**{k: v for k, v in file.items() if k != "name"}, "url": f"{folder}/{file['name']}"}
        for file in result["files"]
    ]
    told = {name: value for name, value in result.items() if name != TRY}
    return {**told, "files": files}

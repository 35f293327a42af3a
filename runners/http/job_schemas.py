"""The part of the OpenAPI document that describes durable jobs."""

from collections.abc import Callable
from typing import Any

from foley.types import Stage
from runners.durable.job import JOB_STATES, WEBHOOK_STATES
from runners.http.schemas import EVENTS, INTEGER, NUMBER, TEXT, Schema
from runners.http.sse import MEDIA_TYPE
from runners.jobs.job import MEDIA_TYPES

TIME: Schema = {**TEXT, "format": "date-time"}
FILE = {"schema": {**TEXT, "format": "binary"}}
ID_PARAMETER = {
    "name": "id",
    "in": "path",
    "required": True,
    "description": "Of the job.",
    "schema": {**TEXT, "pattern": "^[0-9a-f]{32}$"},
}
KEY_PARAMETER = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The same request under the same key is the same job; another one is refused.",
    "schema": {**TEXT, "pattern": "^[!-~]{1,255}$"},
}
_RESULT_FIELDS = (
    "model",
    "duration_seconds",
    "sample_rate_hz",
    "timings_seconds",
    "device_seconds",
    "notices",
)

WEBHOOK_SCHEMA: Schema = {
    "type": "object",
    "properties": {
        "id": {**TEXT, "description": "Of the message; all tries have it."},
        "job_id": TEXT,
        "url": {**TEXT, "description": "Of the receiver."},
        "state": {
            **TEXT,
            "enum": list(WEBHOOK_STATES),
            "description": "It waits for the end of the job, is being sent, with pauses between "
            "the tries, was delivered, or was given up.",
        },
        "tries": {**INTEGER, "description": "That were made, since it was asked for last."},
        "last_error": {**TEXT, "description": "Of a try that failed."},
        "next_try_at": TIME,
        "ended_at": {**TIME, "description": "When it was delivered or given up."},
        "resend_url": TEXT,
    },
    "required": ["id", "job_id", "url", "state", "tries", "resend_url"],
}
JOB_SCHEMA: Schema = {
    "type": "object",
    "properties": {
        "id": TEXT,
        "state": {**TEXT, "enum": list(JOB_STATES)},
        "priority": {**TEXT, "enum": ["interactive", "bulk"]},
        "created_at": TIME,
        "start_by": {**TIME, "description": "When it must have begun."},
        "output": {
            **TEXT,
            "description": "Folder of a bucket to which the files are written. Absent where the "
            "service keeps them.",
        },
        "starts": {
            **INTEGER,
            "description": "How often it was started; more than once after restarts.",
        },
        "started_at": {**TIME, "description": "When it was started last."},
        "finished_at": TIME,
        "expires_at": {**TIME, "description": "When the job and its files are removed."},
        "queue_position": {
            **INTEGER,
            "description": "How many jobs are started before one that waits; not in lists.",
        },
        "progress": {
            "type": "object",
            "description": "Of a running job, at most a second old. `code` and `message` say why "
            "the job waits, such as `not_ready`.",
            "properties": {
                "stage": {**TEXT, "enum": [stage.value for stage in Stage]},
                "queue_position": INTEGER,
                "step": INTEGER,
                "num_steps": INTEGER,
                "seconds_left": NUMBER,
                "code": TEXT,
                "message": TEXT,
                "retries": {**INTEGER, "description": "Tries that have not succeeded so far."},
            },
        },
        "error": {
            "type": "object",
            "description": "Of a job that failed.",
            "properties": {"code": TEXT, "message": TEXT},
        },
        "result": {
            "type": "object",
            "description": "Of a job that succeeded.",
            "properties": {
                **{name: EVENTS["result"]["properties"][name] for name in _RESULT_FIELDS},
                "seeds": {"type": "array", "items": INTEGER},
                "files": {"type": "array", "items": {"$ref": "#/components/schemas/ResultFile"}},
            },
        },
        "webhook": {"$ref": "#/components/schemas/Webhook"},
        "status_url": TEXT,
        "events_url": TEXT,
        "cancel_url": TEXT,
        "result_url": {**TEXT, "description": "The file that was asked for."},
    },
    "required": ["id", "state", "status_url", "events_url", "cancel_url", "result_url"],
}


def build_job_paths(
    form: Schema, errors: dict[str, Any], describe_error: Callable[[str], dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return the paths of jobs.

    Args:
        form: schema of the form of POST /v1/generate, which is that of a job too.
        errors: the error responses of POST /v1/generate.
        describe_error: returns an error response with a description.
    """
    job = {"application/json": {"schema": {"$ref": "#/components/schemas/Job"}}}
    lists: Schema = {
        "type": "object",
        "properties": {
            "jobs": {"type": "array", "items": {"$ref": "#/components/schemas/Job"}},
            "next_offset": {**INTEGER, "description": "Of the next page; absent on the last."},
        },
        "required": ["jobs"],
    }
    missing = {
        "401": describe_error("No API key, or a wrong one, where the service needs one."),
        "404": describe_error("There is no such job, or it belongs to another key."),
    }
    unready = {"409": describe_error("The job has no result, or its files are in a bucket.")}
    files = {
        "200": {"description": "The file.", "content": dict.fromkeys(MEDIA_TYPES.values(), FILE)},
        "206": {"description": "A range.", "content": dict.fromkeys(MEDIA_TYPES.values(), FILE)},
        "400": describe_error("The range cannot be read."),
        "416": describe_error("The range lies outside the file."),
    }
    told = (
        "Server-sent events `job`, their data a Job. If the job is deleted meanwhile, an event "
        "`error`, its data an Error, ends them."
    )
    events = {"schema": {**TEXT, "description": told}}
    one = {"parameters": [ID_PARAMETER]}
    name = {"name": "file", "in": "path", "required": True, "schema": TEXT}
    webhooks: Schema = {
        "type": "object",
        "properties": {
            "webhooks": {"type": "array", "items": {"$ref": "#/components/schemas/Webhook"}},
            "next_offset": lists["properties"]["next_offset"],
        },
        "required": ["webhooks"],
    }
    webhook = {"application/json": {"schema": {"$ref": "#/components/schemas/Webhook"}}}
    last = {"name": "Last-Event-ID", "in": "header", "schema": TEXT}
    return {
        "/v1/jobs": {
            "post": {
                "summary": "Accept a job: it is finished even if the service is restarted",
                "operationId": "submitJob",
                "description": "Takes the form of `/v1/generate`, or its fields as a JSON object, "
                "where the clip is named by `clip_url` or `upload`. `priority` is `bulk` unless "
                "the request says otherwise, and `format` is mp4, or wav without a clip.",
                "parameters": [KEY_PARAMETER],
                "requestBody": {
                    "required": True,
                    "content": {
                        "multipart/form-data": {"schema": form},
                        "application/json": {"schema": {"$ref": "#/components/schemas/JobJson"}},
                    },
                },
                "responses": {
                    "202": {
                        "description": "It is accepted, or was before under the same key.",
                        "content": job,
                        "headers": {"Location": {"description": "Its path.", "schema": TEXT}},
                    },
                    **errors,
                    "404": describe_error("There is no such upload, or it belongs to another key."),
                    "409": describe_error(
                        "Another request came with this Idempotency-Key, or the upload is not "
                        "complete."
                    ),
                },
            },
            "get": {
                "summary": "The jobs of this key, the newest first",
                "operationId": "listJobs",
                "parameters": [
                    _query("state", {**TEXT, "enum": list(JOB_STATES)}),
                    *_PAGE,
                ],
                "responses": {
                    "200": {
                        "description": "A page of them.",
                        "content": {"application/json": {"schema": lists}},
                    },
                    "401": missing["401"],
                    "422": describe_error("A parameter is out of its bounds."),
                },
            },
        },
        "/v1/jobs/{id}": {
            "get": {
                **one,
                "summary": "A job: its state, progress, error and result",
                "operationId": "getJob",
                "responses": {"200": {"description": "The job.", "content": job}, **missing},
            },
            "delete": {
                **one,
                "summary": "Forget a job that has ended, and remove its files",
                "operationId": "deleteJob",
                "responses": {
                    "204": {"description": "It is gone."},
                    **missing,
                    "409": describe_error("The job has not ended."),
                },
            },
        },
        "/v1/jobs/{id}/cancel": {
            "post": {
                **one,
                "summary": "Cancel a job in any state",
                "operationId": "cancelJob",
                "responses": {
                    "200": {
                        "description": "The job; one that had ended is unchanged.",
                        "content": job,
                    },
                    **missing,
                },
            }
        },
        "/v1/jobs/{id}/events": {
            "get": {
                "summary": "The job whenever it changes, until it ends",
                "operationId": "jobEvents",
                "parameters": [ID_PARAMETER, last],
                "responses": {
                    "200": {"description": "A stream.", "content": {MEDIA_TYPE: events}},
                    "204": {"description": "The job has ended, and the caller has seen that."},
                    **missing,
                },
            }
        },
        "/v1/jobs/{id}/result": {
            "get": {
                **one,
                "summary": "The file that was asked for",
                "operationId": "jobResult",
                "responses": {**files, **missing, **unready},
            }
        },
        "/v1/jobs/{id}/result/{file}": {
            "get": {
                "summary": "A file of a job with several",
                "operationId": "jobFile",
                "parameters": [ID_PARAMETER, name],
                "responses": {**files, **missing, **unready},
            }
        },
        "/v1/webhooks/failed": {
            "get": {
                "summary": "Webhooks of this key that were given up, the latest first",
                "operationId": "listFailedWebhooks",
                "parameters": _PAGE,
                "responses": {
                    "200": {
                        "description": "A page of them.",
                        "content": {"application/json": {"schema": webhooks}},
                    },
                    "401": missing["401"],
                    "422": describe_error("A parameter is out of its bounds."),
                },
            }
        },
        "/v1/webhooks/{job_id}/resend": {
            "post": {
                "summary": "Send a webhook again, at once",
                "operationId": "resendWebhook",
                "parameters": [{**ID_PARAMETER, "name": "job_id"}],
                "responses": {
                    "200": {"description": "The webhook.", "content": webhook},
                    **missing,
                    "409": describe_error("The job has not ended."),
                },
            }
        },
    }


def _query(name: str, schema: Schema) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema}


_PAGE = [
    _query("limit", {**INTEGER, "minimum": 1, "maximum": 100, "default": 20}),
    _query("offset", {**INTEGER, "minimum": 0, "maximum": 1_000_000}),
]

"""The OpenAPI document. Fields come from the form's model, errors from the status table."""

from typing import Any

from foley.errors import ConnectionFailedError, FoleyError
from foley.types import Stage
from runners.http.sse import MEDIA_TYPE
from runners.jobs.job import MEDIA_TYPES, ZIP, GenerationOptions
from runners.settings import Settings
from runners.status import CODE_OF_HTTP_STATUS, INTERNAL_CODE, status_of

API_VERSION = "1.0.0"
FILE = {"schema": {"type": "string", "format": "binary"}}

HEADERS = {
    "X-Foley-Seed": "Seed of each sound, separated by commas. Giving one back repeats its sound.",
    "X-Foley-Duration-Seconds": "Length of each sound in seconds.",
    "X-Foley-Timings": "Seconds spent in each stage, as a JSON object.",
    "Server-Timing": "The same in milliseconds, in the standard form that browsers show.",
    "X-Foley-Model": "Name of the model's preset.",
    "X-Foley-Notices": "Sentences about what was done to the clip, as a JSON list.",
    "X-Request-Id": "Id of the request: the caller's own X-Request-Id, or a new one.",
}

PROBES = {
    "/livez": ("Whether the service's process is alive.", {"200": "It is."}),
    "/readyz": (
        "Whether the model is loaded and warm.",
        {"200": "It is.", "503": "It is loading, or could not be loaded; `code` says which."},
    ),
    "/metrics": ("Counts and durations in Prometheus' text format.", {"200": "They are."}),
}
HEALTH = (
    "The same as `/readyz` for load balancers, without a body.",
    {"200": "Ready.", "204": "Loading.", "503": "The model could not be loaded."},
)


TEXT = {"type": "string"}
NUMBER = {"type": "number"}
COUNT = {"type": "integer"}
RESULT_FILE = {
    "type": "object",
    "properties": {
        "variation": {**COUNT, "description": "Counted from 1."},
        "seed": COUNT,
        "format": {**TEXT, "enum": list(MEDIA_TYPES)},
        "media_type": TEXT,
        "bytes": COUNT,
        "url": {**TEXT, "description": "Where it is fetched; ranges are served."},
    },
}
EVENTS = {
    "accepted": {
        "type": "object",
        "description": "The first event.",
        "properties": {"request_id": TEXT},
    },
    "progress": {
        "type": "object",
        "properties": {
            "stage": {**TEXT, "enum": [stage.value for stage in Stage]},
            "queue_position": {
                **COUNT,
                "description": "While it waits for a device: how many go before it.",
            },
            "step": {**COUNT, "description": "While sampling: solver steps done."},
            "num_steps": COUNT,
            "seconds_left": {
                **NUMBER,
                "description": "While sampling, from the second step on: by the rate so far.",
            },
        },
        "required": ["stage"],
    },
    "result": {
        "type": "object",
        "description": "The last event of a request that succeeds.",
        "properties": {
            "request_id": TEXT,
            "model": TEXT,
            "duration_seconds": NUMBER,
            "sample_rate_hz": COUNT,
            "timings_seconds": {"type": "object", "additionalProperties": NUMBER},
            "notices": {"type": "array", "items": TEXT},
            "kept_seconds": {**NUMBER, "description": "For how long the files can be fetched."},
            "seeds": {"type": "array", "items": COUNT},
            "files": {
                "type": "array",
                "description": "Of each variation: the format asked for, wav and flac.",
                "items": {"$ref": "#/components/schemas/ResultFile"},
            },
        },
    },
    "error": {
        "$ref": "#/components/schemas/Error",
        "description": "The last event of a request that fails.",
    },
}
REQUEST_ID = {
    "name": "request_id",
    "in": "path",
    "required": True,
    "description": "The request's X-Request-Id.",
    "schema": {**TEXT, "pattern": "^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$"},
}
MODEL = {
    "type": "object",
    "properties": {
        "state": {"type": "string", "enum": ["ready"]},
        "preset": {"type": "string", "description": "Name of the model."},
        "about": {
            "type": "string",
            "description": "What it is and is not, in a line; empty where its publisher tells.",
        },
        "num_inference_steps": {
            "type": "integer",
            "description": "Solver steps of a request that names none.",
        },
        "guidance_scale": {
            "type": "number",
            "description": "Guidance scale of a request that names none.",
        },
        "revision": {
            "type": "string",
            "description": "Of the weights' repository; empty where it is not known.",
        },
        "licence": {"type": "string", "description": "Of the weights."},
        "territory": {"type": "string", "description": "Where that licence applies."},
    },
}


def document(settings: Settings) -> dict[str, Any]:
    """The whole document, OpenAPI 3.1, of a service with these settings."""
    form = GenerationOptions.model_json_schema(ref_template="#/components/schemas/{model}")
    clip = {
        "type": "string",
        "format": "binary",
        "description": "The video, in any common container and codec. Its own sound is dropped. "
        f"At most {settings.max_clip_seconds:g} s (longer ones can be trimmed), "
        f"{settings.max_clip_pixels} pixels a frame, "
        f"and {int(settings.max_upload_bytes)} bytes for the whole request.",
        "x-max-seconds": settings.max_clip_seconds,
        "x-max-pixels": settings.max_clip_pixels,
        "x-max-request-bytes": int(settings.max_upload_bytes),
    }
    form["properties"] = {"clip": clip, **form["properties"]}
    form["required"] = ["clip"]
    form["additionalProperties"] = False
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Foley",
            "version": API_VERSION,
            "description": "A clip and a prompt go in; the same clip with synchronised "
            "48 kHz sound comes out.",
        },
        "servers": [{"url": "."}],
        "paths": {
            "/v1/generate": {"post": _generate()},
            "/v1/results/{request_id}/{file}": {"get": _result()},
            "/v1/requests/{request_id}/cancel": {"post": _cancel()},
            "/v1/models": {"get": _models()},
            **{path: {"get": _probe(*facts)} for path, facts in PROBES.items()},
            settings.health_path: {"get": _probe(*HEALTH)},
        },
        "components": {
            "schemas": {
                "GenerationOptions": form,
                "Model": MODEL,
                "ResultFile": RESULT_FILE,
                **{f"Event_{name}": schema for name, schema in EVENTS.items()},
                "Error": _error_schema(),
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
        "security": [{"bearer": []}, {"header": []}] if settings.keys else [],
    }


def _generate() -> dict[str, Any]:
    events = {"schema": {**TEXT, "description": _describe_events()}}
    formats = {**dict.fromkeys([*MEDIA_TYPES.values(), ZIP], FILE), MEDIA_TYPE: events}
    return {
        "summary": "Make sound for a clip",
        "operationId": "generate",
        "description": "Answers with one file. With `num_variations` over 1, or `Accept: "
        "application/zip`, that is a zip of all sounds with `manifest.json`, which holds the "
        "seed of each, durations, timings and notices; of several sounds, `Accept` names the "
        "format in the zip. With `Accept: text/event-stream`: server-sent events.",
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {"$ref": "#/components/schemas/GenerationOptions"}
                }
            },
        },
        "responses": {
            "200": {
                "description": "The clip with its new sound, or the sound alone.",
                "content": formats,
                "headers": {
                    name: {"description": text, "schema": {"type": "string"}}
                    for name, text in HEADERS.items()
                },
            },
            **_error_responses(),
        },
    }


def _describe_events() -> str:
    named = ", ".join(f"`{name}` (Event_{name})" for name in EVENTS)
    return f"Server-sent events, the data of each a JSON object: {named}."


def _result() -> dict[str, Any]:
    name = {"name": "file", "in": "path", "required": True, "schema": TEXT}
    media = dict.fromkeys(MEDIA_TYPES.values(), FILE)
    return {
        "summary": "A file of a result that was told of by events",
        "operationId": "result",
        "parameters": [REQUEST_ID, name],
        "responses": {
            "200": {"description": "The file.", "content": media},
            "206": {"description": "The range asked for.", "content": media},
            "400": _error("The range cannot be read."),
            "404": _error("There is none, it is no longer kept, or another key made it."),
            "416": _error("The range lies outside the file."),
            **_unauthorized(),
        },
    }


def _cancel() -> dict[str, Any]:
    cancelled = {"type": "object", "properties": {"cancelled": {"const": True}}}
    return {
        "summary": "Stop a request that is being worked on",
        "operationId": "cancel",
        "parameters": [REQUEST_ID],
        "responses": {
            "200": {
                "description": "It stops within a second; it is answered `cancelled`.",
                "content": {"application/json": {"schema": cancelled}},
            },
            "404": _error("No such request is being worked on, or another key made it."),
            **_unauthorized(),
        },
    }


def _unauthorized() -> dict[str, Any]:
    return {"401": _error("No API key, or a wrong one, where the service asks for one.")}


def _error(description: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Error"}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _models() -> dict[str, Any]:
    item = {"$ref": "#/components/schemas/Model"}
    schema = {"type": "object", "properties": {"models": {"type": "array", "items": item}}}
    return {
        "summary": "The model that is served, and the licence of its weights",
        "operationId": "models",
        "responses": {
            "200": {
                "description": "One model, warm.",
                "content": {"application/json": {"schema": schema}},
            },
            "503": _error("It is loading, or could not be loaded."),
            **_unauthorized(),
        },
    }


def _error_responses() -> dict[str, Any]:
    codes: dict[int, set[str]] = {500: {INTERNAL_CODE}}
    for kind in _kinds(FoleyError):
        codes.setdefault(status_of(kind).http, set()).add(kind.code)
    codes.pop(404)  # the path is there
    codes[500].remove(ConnectionFailedError.code)  # only clients raise it
    return {
        str(status): _error(f"`code` is one of: {', '.join(sorted(codes[status]))}.")
        for status in sorted(codes)
    }


def _kinds(kind: type[FoleyError]) -> list[type[FoleyError]]:
    return [kind, *(found for child in kind.__subclasses__() for found in _kinds(child))]


def _error_schema() -> dict[str, Any]:
    known = {kind.code for kind in _kinds(FoleyError)} | set(CODE_OF_HTTP_STATUS.values())
    known.remove(ConnectionFailedError.code)  # only clients raise it
    properties = {
        "code": {**TEXT, "description": "Stable.", "enum": sorted(known | {INTERNAL_CODE})},
        "message": {**TEXT, "description": "What was wrong, with the value and the limit."},
        "request_id": {**TEXT, "description": "The answer's X-Request-Id."},
    }
    error = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "object", "properties": {"error": error}, "required": ["error"]}


def _probe(summary: str, answers: dict[str, str]) -> dict[str, Any]:
    return {
        "summary": summary,
        "responses": {status: {"description": text} for status, text in answers.items()},
    }

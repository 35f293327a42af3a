"""The OpenAPI document. Fields come from the options' model, errors from the status table."""

from typing import Any

from runners.durable.request import JobOptions
from runners.http.job_schemas import JOB_SCHEMA, WEBHOOK_SCHEMA, build_job_paths
from runners.http.mix import ACCEPTED, MIX_PATH, SOUND_FIELD
from runners.http.negotiation import EVENTS_PATH, ZIP
from runners.http.schemas import (
    EVENTS,
    MODEL_SCHEMA,
    RESULT_FILE,
    TEXT,
    Schema,
    build_error_schema,
    server_error_kinds,
)
from runners.http.sse import MEDIA_TYPE
from runners.http.upload_schemas import build_upload_paths
from runners.jobs.job import MEDIA_TYPES, GenerationOptions
from runners.settings import Settings
from runners.status import INTERNAL_CODE, status_of

API_VERSION = "1.0.0"
FILE = {"schema": {"type": "string", "format": "binary"}}

JSON_FIELDS = ("cues", "layers", "adapters", "edit")  # objects, or lists of them
_NULL_KEYS = ("anyOf", "default")  # of an optional field, whose default is null

HEADERS = {
    "X-Foley-Seed": "Seed of each sound, separated by commas. Giving one back repeats its sound.",
    "X-Foley-Duration-Seconds": "Length of each sound in seconds.",
    "X-Foley-Timings": "Seconds spent in each stage, and in total, as a JSON object.",
    "Server-Timing": "The same in milliseconds, in the standard form that browsers show.",
    "X-Foley-Model": "Name of the model's preset.",
    "X-Foley-Notices": "Sentences about what was done to the clip, as a JSON list.",
    "X-Foley-Loudness": "Loudness and true peak of each file, before and after, as a JSON list. "
    "Sent where an option of the mix was given.",
    "X-Foley-Speech-Seconds": "Seconds of speech in each file, separated by commas. Sent where "
    "`avoid_speech` is not off.",
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
REQUEST_ID_PARAMETER = {
    "name": "request_id",
    "in": "path",
    "required": True,
    "description": "The request's X-Request-Id.",
    "schema": {**TEXT, "pattern": "^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$"},
}


def build_document(settings: Settings) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of a service.

    Args:
        settings: the limits of the clip, the path for load balancers, whether keys are needed.
    """
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
            "/v1/generate": {"post": _generate_operation()},
            EVENTS_PATH: {"post": _events_operation()},
            MIX_PATH: {"post": _mix_operation()},
            "/v1/results/{request_id}/{file}": {"get": _result_operation()},
            "/v1/requests/{request_id}/cancel": {"post": _cancel_operation()},
            "/v1/models": {"get": _models_operation()},
            **_job_paths(settings),
            **{path: {"get": _probe_operation(*probe)} for path, probe in PROBES.items()},
            settings.health_path: {"get": _probe_operation(*HEALTH)},
        },
        "components": {
            "schemas": {
                "GenerationOptions": _build_form_schema(settings, GenerationOptions),
                "MixForm": _build_mix_schema(settings),
                **_job_components(settings),
                "Model": MODEL_SCHEMA,
                "ResultFile": RESULT_FILE,
                **{f"Event_{name}": schema for name, schema in EVENTS.items()},
                "Error": build_error_schema(),
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
        "security": [{"bearer": []}, {"header": []}] if settings.keys else [],
    }


def _build_form_schema(settings: Settings, kind: type[GenerationOptions]) -> Schema:
    """Return the schema of the form: the options, and the clip with its limits."""
    form = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    clip = {
        "type": "string",
        "format": "binary",
        "description": "The video, in any common container and codec. Its own sound is dropped, "
        "unless `original_sound` says otherwise. "
        "It is required, unless there is a `duration_seconds`. "
        f"At most {settings.max_clip_seconds:g} s (longer ones can be trimmed), "
        f"{settings.max_clip_pixels} pixels a frame, "
        f"and {int(settings.max_upload_bytes)} bytes for the whole request.",
        "x-max-seconds": settings.max_clip_seconds,
        "x-max-pixels": settings.max_clip_pixels,
        "x-max-request-bytes": int(settings.max_upload_bytes),
    }
    source = {
        "type": "string",
        "format": "binary",
        "description": "The sound that an `edit` of source `file` starts from: wav, flac, or a "
        "video with sound.",
    }
    options = {name: _drop_null(field) for name, field in form["properties"].items()}
    form["properties"] = {"clip": clip, "edit_source": source, **options}
    for name in JSON_FIELDS:  # a part of a form is a text
        form["properties"][name] = {
            **TEXT,
            "contentMediaType": "application/json",
            "description": form["properties"][name]["description"],
            **({} if name == "edit" else {"default": "[]"}),
        }
    form.pop("$defs")
    form["additionalProperties"] = False
    return form


def _build_json_schema(form: Schema) -> Schema:
    """Return the schema of a form's fields as a JSON object, which holds no files."""
    fields = {
        name: field for name, field in form["properties"].items() if field.get("format") != "binary"
    }
    item = {"type": "object"}
    for name in JSON_FIELDS:
        described = {"description": fields[name]["description"]}
        kind = item if name == "edit" else {"type": "array", "items": item}
        fields[name] = {**kind, **described}
    return {**form, "title": "JobJson", "properties": fields}


def _build_mix_schema(settings: Settings) -> Schema:
    """Return the schema of the form of POST /v1/mix."""
    form = _build_form_schema(settings, GenerationOptions)
    sound = {
        "type": "string",
        "format": "binary",
        "description": "The sound that becomes the clip's, such as the sum of layers: wav or flac, "
        "mono or stereo.",
    }
    fields = {name: field for name, field in form["properties"].items() if name in ACCEPTED}
    clip = {**form["properties"]["clip"], "description": "The video, as for `/v1/generate`."}
    return {
        **form,
        "title": "MixForm",
        "description": "A clip, a sound that was made before, and the options of the mix. `prompt` "
        "and `seed` say how the sound was made.",
        "properties": {"clip": clip, SOUND_FIELD: sound, **fields},
        "required": [SOUND_FIELD],
    }


def _drop_null(field: Schema) -> Schema:
    """Return the schema of an optional field as a form has it: a value, or no part at all."""
    if "anyOf" not in field:
        return field
    (kind,) = (kind for kind in field["anyOf"] if kind.get("type") != "null")
    return {**kind, **{key: value for key, value in field.items() if key not in _NULL_KEYS}}


def _generate_operation() -> dict[str, Any]:
    return {
        "summary": "Make sound for a clip, or for a prompt alone",
        "operationId": "generate",
        "description": "Answers with one file. Several files, by `num_variations` over 1, by "
        "`layers` or by `also`, come as a zip with `manifest.json`, which holds durations, "
        "timings, notices, and the seed of each file. `Accept: application/zip` asks for a zip of "
        "one file too. "
        f"With `Accept: text/event-stream` the answer is that of `{EVENTS_PATH}`.",
        "requestBody": _form_body(),
        "responses": {
            "200": {
                "description": "The clip with its new sound, or the sound alone.",
                "content": dict.fromkeys([*MEDIA_TYPES.values(), ZIP], FILE),
                "headers": {
                    name: {"description": text, "schema": {"type": "string"}}
                    for name, text in HEADERS.items()
                },
            },
            **_error_responses(),
        },
    }


def _events_operation() -> dict[str, Any]:
    events = {"schema": {**TEXT, "description": _events_description()}}
    return {
        "summary": "Make sound, and follow the progress",
        "operationId": "generate_events",
        "description": "Takes the same form, and answers with server-sent events. The last one has "
        "the paths of the files, or an error.",
        "requestBody": _form_body(),
        "responses": {
            "200": {"description": "The request is admitted.", "content": {MEDIA_TYPE: events}},
            **_error_responses(),
        },
    }


def _mix_operation() -> dict[str, Any]:
    return {
        **_generate_operation(),
        "summary": "Finish a sound that was made before",
        "operationId": "mix",
        "description": "Mixes a sound with a clip's own and writes the file, as `/v1/generate` "
        "does with a sound that it has made. The model is not used.",
        "requestBody": _form_body("MixForm"),
    }


def _form_body(name: str = "GenerationOptions") -> dict[str, Any]:
    form = {"$ref": f"#/components/schemas/{name}"}
    return {"required": True, "content": {"multipart/form-data": {"schema": form}}}


def _events_description() -> str:
    names = ", ".join(f"`{name}` (Event_{name})" for name in EVENTS)
    return f"Server-sent events, the data of each a JSON object: {names}."


def _result_operation() -> dict[str, Any]:
    name = {"name": "file", "in": "path", "required": True, "schema": TEXT}
    content = dict.fromkeys(MEDIA_TYPES.values(), FILE)
    return {
        "summary": "A file of a streamed request",
        "operationId": "result",
        "parameters": [REQUEST_ID_PARAMETER, name],
        "responses": {
            "200": {"description": "The file.", "content": content},
            "206": {"description": "The range asked for.", "content": content},
            "400": _error_response("The range cannot be read."),
            "404": _error_response("There is none, it has expired, or it belongs to another key."),
            "416": _error_response("The range lies outside the file."),
            **_unauthorized_response(),
        },
    }


def _cancel_operation() -> dict[str, Any]:
    cancelled = {"type": "object", "properties": {"cancelled": {"type": "boolean"}}}
    return {
        "summary": "Stop a request that is being worked on",
        "operationId": "cancel",
        "parameters": [REQUEST_ID_PARAMETER],
        "responses": {
            "200": {
                "description": "It stops within a second; its response is the error `cancelled`.",
                "content": {"application/json": {"schema": cancelled}},
            },
            "404": _error_response(
                "No such request is being worked on, or it belongs to another key."
            ),
            **_unauthorized_response(),
        },
    }


def _models_operation() -> dict[str, Any]:
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
            "503": _error_response("It is loading, or could not be loaded."),
            **_unauthorized_response(),
        },
    }


def _job_paths(settings: Settings) -> dict[str, Any]:
    """Return the paths of jobs, if this service takes any."""
    if settings.jobs_dir is None:
        return {}
    form = {"$ref": "#/components/schemas/JobOptions"}
    return {
        **build_job_paths(form, _error_responses(), _error_response),
        **build_upload_paths(_error_response),
    }


def _job_components(settings: Settings) -> dict[str, Schema]:
    """Return the schemas of jobs, if this service takes any."""
    if settings.jobs_dir is None:
        return {}
    form = _build_form_schema(settings, JobOptions)
    return {
        "JobOptions": form,
        "JobJson": _build_json_schema(form),
        "Job": JOB_SCHEMA,
        "Webhook": WEBHOOK_SCHEMA,
    }


def _probe_operation(summary: str, descriptions: dict[str, str]) -> dict[str, Any]:
    return {
        "summary": summary,
        "responses": {status: {"description": text} for status, text in descriptions.items()},
    }


def _error_responses() -> dict[str, Any]:
    """Return the error responses of POST /v1/generate, with the codes of each status."""
    codes: dict[int, set[str]] = {500: {INTERNAL_CODE}}
    for kind in server_error_kinds():
        codes.setdefault(status_of(kind).http, set()).add(kind.code)
    codes.pop(404)  # the path exists
    codes.pop(409)  # a new request conflicts with nothing
    return {
        str(status): _error_response(f"`code` is one of: {', '.join(sorted(codes[status]))}.")
        for status in sorted(codes)
    }


def _unauthorized_response() -> dict[str, Any]:
    return {"401": _error_response("No API key, or a wrong one, where the service needs one.")}


def _error_response(description: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Error"}
    return {"description": description, "content": {"application/json": {"schema": schema}}}

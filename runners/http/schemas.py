"""The JSON schemas of the OpenAPI document, apart from that of the form."""

from collections.abc import Iterable
from typing import Any

from foley.errors import ConnectionFailedError, FoleyError
from foley.types import Stage
from runners.jobs.job import MEDIA_TYPES
from runners.status import CODE_OF_HTTP_STATUS, INTERNAL_CODE

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
INTEGER: Schema = {"type": "integer"}

TIMINGS: Schema = {
    "type": "object",
    "description": f"Seconds in each stage: {', '.join(Stage)}; and in total.",
    "additionalProperties": NUMBER,
}
_METER: Schema = {
    "type": "object",
    "properties": {
        "integrated_lufs": {
            **NUMBER,
            "description": "By EBU R 128; absent under -70 LUFS, and for less than 0.4 s.",
        },
        "true_peak_dbtp": {**NUMBER, "description": "Absent for digital silence."},
    },
}
LOUDNESS: Schema = {
    "type": "object",
    "description": "As measured, where an option of the mix was given.",
    "properties": {
        "before": {**_METER, "description": "Of the sound or the mix, after the gains asked for."},
        "after": {**_METER, "description": "Of the sound that was encoded."},
        "gain_db": {**NUMBER, "description": "Of the whole sound between them."},
    },
}
RESULT_FILE: Schema = {
    "type": "object",
    "properties": {
        "variation": {**INTEGER, "description": "Counted from 1."},
        "layer": {**INTEGER, "description": "Of which it is the stem. Absent for the mix."},
        "seed": INTEGER,
        "format": {**TEXT, "enum": list(MEDIA_TYPES)},
        "media_type": TEXT,
        "bytes": INTEGER,
        "url": {**TEXT, "description": "Path of the file; ranges are served."},
        "loudness": LOUDNESS,
        "speech_seconds": {
            **NUMBER,
            "description": "How much of the sound is speech, where `avoid_speech` asked for it.",
        },
    },
}
EVENTS: dict[str, Schema] = {
    "accepted": {
        "type": "object",
        "description": "The first event: the clip was received, and the request is admitted.",
        "properties": {"request_id": TEXT},
    },
    "progress": {
        "type": "object",
        "properties": {
            "stage": {**TEXT, "enum": [stage.value for stage in Stage]},
            "queue_position": {
                **INTEGER,
                "description": "In the queue: how many requests go before this one.",
            },
            "step": {**INTEGER, "description": "While sampling: solver steps done."},
            "num_steps": {**INTEGER, "description": "While sampling: solver steps in all."},
            "seconds_left": {
                **NUMBER,
                "description": "While sampling, from the second step on: of this stage, "
                "estimated from the rate so far.",
            },
        },
        "required": ["stage"],
    },
    "sound": {
        "type": "object",
        "description": "A piece of a long sound that is final, where `pieces` asks for them.",
        "properties": {
            "variation": {**INTEGER, "description": "Counted from 1."},
            "number": {
                **INTEGER,
                "description": "Of the piece, counted from 1; each begins where the one before it "
                "ends.",
            },
            "start_seconds": {**NUMBER, "description": "From the start of the sound."},
            "duration_seconds": NUMBER,
            "media_type": TEXT,
            "bytes": INTEGER,
            "url": {**TEXT, "description": "Path of the wav file."},
        },
    },
    "result": {
        "type": "object",
        "description": "The last event of a request that succeeds.",
        "properties": {
            "request_id": TEXT,
            "model": TEXT,
            "duration_seconds": NUMBER,
            "sample_rate_hz": INTEGER,
            "timings_seconds": TIMINGS,
            "device_seconds": {
                **NUMBER,
                "description": "For how long the model's devices, GPUs or the CPU, worked on the "
                "request. Work that it shared with other requests counts by its part.",
            },
            "notices": {"type": "array", "items": TEXT},
            "kept_seconds": {**NUMBER, "description": "For how long the files can be fetched."},
            "seeds": {"type": "array", "items": INTEGER},
            "files": {
                "type": "array",
                "description": "By variation: the format asked for, then those of `also`.",
                "items": {"$ref": "#/components/schemas/ResultFile"},
            },
        },
    },
    "error": {
        "$ref": "#/components/schemas/Error",
        "description": "The last event of a request that fails.",
    },
}
MODEL_SCHEMA: Schema = {
    "type": "object",
    "properties": {
        "state": {**TEXT, "enum": ["ready"]},
        "preset": {**TEXT, "description": "Name of the model."},
        "about": {
            **TEXT,
            "description": "What the model can and cannot do, in a line; empty where its "
            "publisher says so.",
        },
        "prompts": {
            "type": "array",
            "items": TEXT,
            "description": "Prompts that suit the model, to start from.",
        },
        "num_inference_steps": {
            **INTEGER,
            "description": "Solver steps of a request that names none.",
        },
        "guidance_scale": {
            **NUMBER,
            "description": "Guidance scale of a request that names none.",
        },
        "revision": {
            **TEXT,
            "description": "Of the weights' repository; empty where it is not known.",
        },
        "licence": {**TEXT, "description": "Of the weights."},
        "territory": {**TEXT, "description": "Where that licence applies."},
        "adapters": {
            "type": "array",
            "description": "Adapters that a request may ask for.",
            "items": {
                "type": "object",
                "properties": {
                    "name": {**TEXT, "description": "By which a request asks for it."},
                    "rank": {**INTEGER, "description": "Of its largest layer."},
                    "about": {**TEXT, "description": "What it does; may be empty."},
                    "trigger": {**TEXT, "description": "A prompt that suits it; may be empty."},
                },
            },
        },
    },
}


def build_error_schema() -> Schema:
    """Return the schema of the body of every error response, with all codes that may occur."""
    codes = {kind.code for kind in server_error_kinds()} | set(CODE_OF_HTTP_STATUS.values())
    properties = {
        "code": {**TEXT, "description": "Stable.", "enum": sorted(codes | {INTERNAL_CODE})},
        "message": {**TEXT, "description": "What was wrong, with the value and the limit."},
        "request_id": {**TEXT, "description": "The response's X-Request-Id."},
        "retry_after_seconds": {
            **INTEGER,
            "description": "When the same request may succeed; absent where waiting does not help.",
        },
    }
    required = ["code", "message", "request_id"]
    error = {"type": "object", "properties": properties, "required": required}
    return {"type": "object", "properties": {"error": error}, "required": ["error"]}


def server_error_kinds() -> list[type[FoleyError]]:
    """Return the classes of the errors that a service may answer with."""
    return [kind for kind in _with_subclasses([FoleyError]) if kind is not ConnectionFailedError]


def _with_subclasses(kinds: Iterable[type[FoleyError]]) -> list[type[FoleyError]]:
    return [found for kind in kinds for found in (kind, *_with_subclasses(kind.__subclasses__()))]

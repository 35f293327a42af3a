"""Renders docs/reference/ from the code: settings, options, errors and metrics.

    python -m scripts.reference

`tests/unit/test_docs.py` fails when a page differs from what the code says.
"""

import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, MaxLen
from prometheus_client import Counter, Gauge, Histogram
from pydantic import ByteSize, SecretStr
from pydantic.fields import FieldInfo

from foley.configs import PRESETS
from foley.errors import ConnectionFailedError, FoleyError
from foley.request import AdapterUse, Cue, Edit, Layer
from runners import metrics
from runners.http.openapi import HEADERS, build_document
from runners.http.schemas import EVENTS
from runners.jobs.job import MEDIA_TYPES, GenerationOptions
from runners.settings import KNOWN_ELSEWHERE, PREFIX, Settings
from runners.status import CODE_OF_HTTP_STATUS, INTERNAL_CODE, status_of

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "reference"
NOTE = "<!-- Rendered by scripts/reference.py: edit the code, then run it again. -->\n"
UNITS = {"GiB": 1024**3, "MiB": 1024**2, "MB": 1000**2}
# Variables with the prefix that something else than the service reads, and what reads them.
ELSEWHERE = {
    "FOLEY_ACCEPT_LICENSE": "`foley download`: `yes` accepts the licence that it shows.",
    "FOLEY_PYTHON": "`scripts/setup`: the Python interpreter to use, 3.11 or 3.12.",
    "FOLEY_REQUIRE_GPU": "The tests: `1` makes GPU tests fail where there is no GPU.",
    "FOLEY_ROLE": "The image's entry point: `pod`, `load-balancer` or `queue`.",
    "FOLEY_VOLUME": "The image's entry point: the folder for weights and packages.",
}
CLIENT_VARIABLE = (
    "| `FOLEY_API_KEY` | `foley generate --server`: the key that it sends. The service does not "
    "start when it finds this variable: `FOLEY_API_KEYS` was probably meant. |"
)


def main() -> None:
    """Write all pages."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text)


def pages() -> dict[str, str]:
    """Return the text of each page, by its file name."""
    return {
        "settings.md": settings_page(),
        "options.md": options_page(),
        "errors.md": errors_page(),
        "metrics.md": metrics_page(),
    }


def settings_page() -> str:
    """Return the page of the `FOLEY_*` variables: default, values and meaning."""
    rows = [
        f"| `{PREFIX}{name.upper()}` | {default_of(field)} | {values_of(field)} "
        f"| {cell(field.description)} |"
        for name, field in Settings.model_fields.items()
    ]
    others = [f"| `{name}` | {ELSEWHERE[name]} |" for name in sorted(KNOWN_ELSEWHERE)]
    return "\n".join(
        [
            "# Settings\n",
            NOTE,
            f"The service reads `{PREFIX}*` from the environment once, when it starts. A name that "
            "nothing reads and a value out of range end the start with one line that names them. "
            "Sizes take units, such as `200MiB`.\n",
            "| setting | default | values | meaning |",
            "| --- | --- | --- | --- |",
            *rows,
            "\n## Variables that the service does not read\n",
            "| variable | read by |",
            "| --- | --- |",
            *others,
            CLIENT_VARIABLE,
            "\nBentoML's own variables work too, `BENTOML_HOME` among them: two services on one "
            "machine need two of these folders, because BentoML keeps their metrics there. "
            "BentoML would report each start to its makers; the service sets "
            "`BENTOML_DO_NOT_TRACK=True` unless the environment says False. "
            "Tracing is set by OpenTelemetry's own variables: see [metrics](metrics.md).\n",
        ]
    )


def options_page() -> str:
    """Return the page of a request's options, the headers of its answer and its events."""
    clip = build_document(Settings())["components"]["schemas"]["GenerationOptions"]["properties"][
        "clip"
    ]
    rows = [
        f"| `{name}` | {type_of(field.annotation)} | {default_of(field)} | {values_of(field)} "
        f"| {cell(field.description)} |"
        for name, field in GenerationOptions.model_fields.items()
    ]
    presets = [
        f"| `{name}` | {preset.default_plan.num_inference_steps} | {preset.default_guidance:g} |"
        for name, preset in PRESETS.items()
    ]
    return "\n".join(
        [
            "# Options of a request\n",
            NOTE,
            "Over HTTP these are the fields of the form; over gRPC the fields of "
            "`GenerateOptions`, and the clip follows in chunks. An optional field that is sent "
            "empty counts as absent, except for a text.\n",
            "| option | type | default | values | meaning |",
            "| --- | --- | --- | --- | --- |",
            f"| `clip` | file | none | | {cell(clip['description'])} |",
            *rows,
            "\nWhere a request names no steps or no guidance scale, the model's own apply:\n",
            "| preset | `num_inference_steps` | `guidance_scale` |",
            "| --- | --- | --- |",
            *presets,
            "\n## Formats\n",
            "| `format` | media type |",
            "| --- | --- |",
            *(f"| `{name}` | `{media_type}` |" for name, media_type in MEDIA_TYPES.items()),
            "\n## Headers of the answer\n",
            "| header | meaning |",
            "| --- | --- |",
            *(f"| `{name}` | {cell(text)} |" for name, text in HEADERS.items()),
            "\n## Events\n",
            "With `Accept: text/event-stream` the answer is a stream of these events, each with a "
            "JSON object. `accepted` comes first; `result` or `error` comes last.\n",
            "| event | field | meaning |",
            "| --- | --- | --- |",
            *event_rows(),
            "",
        ]
    )


def event_rows() -> list[str]:
    """Return one table row for each field of each event."""
    rows = []
    events: dict[str, Any] = EVENTS
    for event, schema in events.items():
        for name, field in schema.get("properties", {}).items():
            text = field.get("description", "")
            if "enum" in field:
                text = f"{text} One of {', '.join(f'`{value}`' for value in field['enum'])}."
            rows.append(f"| `{event}` | `{name}` | {cell(text)} |")
    return [*rows, "| `error` | `error` | An object, as in [errors](errors.md). |"]


def errors_page() -> str:
    """Return the page of error codes with HTTP status, gRPC code, class and meaning."""
    rows = []
    for kind in families(FoleyError):
        if kind is ConnectionFailedError:  # only clients raise it
            continue
        status = status_of(kind)
        rows.append((status.http, kind.code, status.grpc, f"`{kind.__name__}`", summary_of(kind)))
    raised = {code for _, code, *_ in rows}
    rows += [
        (http, code, "", "", "The path, the method or the range does not fit.")
        for http, code in CODE_OF_HTTP_STATUS.items()
        if code not in raised
    ]
    internal = "A defect: the log has a traceback under the request's id."
    rows.append((500, INTERNAL_CODE, "INTERNAL", "", internal))
    lines = [
        f"| {http} | `{code}` | {f'`{grpc}`' if grpc else ''} | {kind} | {cell(text)} |"
        for http, code, grpc, kind, text in sorted(rows)
    ]
    return "\n".join(
        [
            "# Errors\n",
            NOTE,
            "An error is one JSON object, "
            '`{"error": {"code": "...", "message": "...", "request_id": "..."}}`. '
            "`code` is stable; `message` is for people and names the value and the limit. "
            "`retry_after_seconds` comes with the header `Retry-After`. "
            "Over gRPC the code is in the trailing metadata as `foley-error-code` and in "
            "`google.rpc.ErrorInfo`. `foley.client` raises the class again. "
            "What to do about an error is in [troubleshooting](../guides/troubleshooting.md).\n",
            "| HTTP | `code` | gRPC | class in `foley.errors` | meaning |",
            "| --- | --- | --- | --- | --- |",
            *lines,
            f"\n`{ConnectionFailedError.code}` is raised by clients alone, "
            f"as `{ConnectionFailedError.__name__}`: {cell(summary_of(ConnectionFailedError))}\n",
        ]
    )


def metrics_page() -> str:
    """Return the page of metrics, logs and traces."""
    rows = []
    for metric in vars(metrics).values():
        if isinstance(metric, Counter | Gauge | Histogram):
            (described,) = metric.describe()
            name = described.name + ("_total" if isinstance(metric, Counter) else "")
            labels = ", ".join(f"`{label}`" for label in metric._labelnames)
            kind = type(metric).__name__.lower()
            rows.append(f"| `{name}` | {kind} | {labels} | {cell(described.documentation)} |")
    return "\n".join(
        [
            "# Metrics, logs and traces\n",
            NOTE,
            "`GET /metrics` answers in Prometheus' text format for all processes of the service "
            "together. Where the service has API keys, it needs one.\n",
            "| metric | type | labels | meaning |",
            "| --- | --- | --- | --- |",
            *rows,
            "\n`route` is a pattern such as `/v1/generate`, a gRPC method such as "
            "`/foley.v1.FoleyService/Generate`, or `other`. `stage` is one of the stages in the "
            "[glossary](../concepts/glossary.md#stages). BentoML adds its own counts of the calls "
            "to the process that owns the model.\n",
            "## Logs\n",
            "A log line is one JSON object on standard output. The line `request` holds "
            "`request_id`, `method`, `path`, `status`, `code` (empty without an error), `seconds` "
            "and, where the request is traced, `trace_id`. No line holds a prompt or a key.\n",
            "## Traces\n",
            "Traces are sent by OpenTelemetry where `OTEL_EXPORTER_OTLP_ENDPOINT` names a "
            "collector that takes OTLP over HTTP, such as `http://collector:4318`. The SDK's other "
            "variables work too. One request is one trace, the caller's own where it sends "
            "`traceparent`; its spans are named after the stages.\n",
        ]
    )


def default_of(field: FieldInfo) -> str:
    """Return the default of a field as a table cell."""
    value = field.default
    if value in (None, ()):
        return "none"
    if isinstance(value, ByteSize):
        return f"`{size_text(int(value))}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{value}`" if value != "" else "empty"


def values_of(field: FieldInfo) -> str:
    """Return the choices or the range of a field as a table cell."""
    choices = choices_of(field.annotation)
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    lower = upper = ""
    for limit in field.metadata:
        if isinstance(limit, Gt):
            lower = f"over {number_text(limit.gt, field)}"
        elif isinstance(limit, Ge):
            lower = f"{number_text(limit.ge, field)}"
        elif isinstance(limit, Le):
            upper = f"{number_text(limit.le, field)}"
        elif isinstance(limit, MaxLen):
            unit = " characters" if str in members_of(field.annotation) else ""
            return f"up to {limit.max_length}{unit}"
    if lower and upper:
        return f"{lower} to {upper}"
    if lower:
        return lower if lower.startswith("over") else f"{lower} or more"
    return "`true`, `false`" if field.annotation is bool else type_of(field.annotation)


def number_text(value: Any, field: FieldInfo) -> str:
    """Return a bound of a field, with its unit where it is a size."""
    if field.annotation is ByteSize and value:
        return size_text(int(value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def type_of(annotation: Any) -> str:
    """Return the type of a field in plain words."""
    names = {str: "text", bool: "boolean", int: "integer", float: "number"}
    names |= {Path: "a path", ByteSize: "a size", SecretStr: "text", Cue: "cue", Layer: "layer"}
    names |= {AdapterUse: "adapter", Edit: "edit"}
    (kind,) = [kind for kind in members_of(annotation) if kind is not types.NoneType][:1]
    name = "text" if get_origin(kind) is Literal else names[kind]
    return f"list of {name}" if get_origin(annotation) is tuple else name


def choices_of(annotation: Any) -> tuple[Any, ...]:
    """Return the values of a literal type, or nothing."""
    return tuple(
        choice
        for kind in members_of(annotation)
        if get_origin(kind) is Literal
        for choice in get_args(kind)
    )


def members_of(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, the item type of a tuple, or the annotation itself."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return get_args(annotation)
    return get_args(annotation)[:1] if origin is tuple else (annotation,)


def size_text(num_bytes: int) -> str:
    """Return a size in bytes as text in the largest unit that divides it."""
    for unit, factor in UNITS.items():
        if num_bytes % factor == 0:
            return f"{num_bytes // factor}{unit}"
    return str(num_bytes)


def families(kind: type[FoleyError]) -> list[type[FoleyError]]:
    """Return the class and all its descendants."""
    return [kind, *(member for child in kind.__subclasses__() for member in families(child))]


def summary_of(kind: type) -> str:
    """Return the first paragraph of the docstring of a class, in one line."""
    return " ".join((kind.__doc__ or "").split("\n\n")[0].split())


def cell(text: str | None) -> str:
    """Return text as a table cell, in one line."""
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    main()

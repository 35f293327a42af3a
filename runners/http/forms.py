"""Read the form of POST /v1/generate: store its clip, if it has one, and validate its options."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from foley.errors import (
    CancelledRequestError,
    MediaTypeError,
    ParameterError,
    UploadTooLargeError,
)
from foley.request import describe_validation_error
from runners.handoff import CLIP, SOURCE
from runners.http.multipart import MAX_FIELD_BYTES, store_form
from runners.jobs.clip_url import MAX_DATA_URI_BYTES
from runners.jobs.intake import Upload
from runners.jobs.job import GenerationOptions

FORM_TYPE = "multipart/form-data"
CLIP_FIELD = "clip"
SOURCE_FIELD = "edit_source"
# These may hold a file, as a data: URI.
URL_FIELD = "clip_url"
EDIT_FIELD = "edit"
REPEATABLE_FIELDS = ("also",)
MAX_SHOWN = 80  # characters of a wrong value in a message


Options = TypeVar("Options", bound=GenerationOptions)


async def read_form(
    request: Request,
    folder: Path,
    kind: type[Options],
    *,
    max_bytes: int,
    upload: Upload,
    further_files: Mapping[str, str] | None = None,
) -> Options:
    """Store the clip of a form in `folder`, as `runners.handoff.CLIP`; return its options.

    The file that an edit starts from is stored as `runners.handoff.SOURCE`. A form with `clip_url`
    or `duration_seconds` has no clip.

    Args:
        request: its body has not been read.
        folder: of the request.
        kind: of the options.
        max_bytes: limit of the whole body, checked while it is read.
        upload: counts the bytes that have arrived.
        further_files: names of further fields that must be files, and of their files in `folder`.

    Raises:
        MediaTypeError: the body is not a multipart form.
        UploadTooLargeError: the body has more than `max_bytes`.
        BusyError: the uploads of all requests have too many bytes together.
        ParameterError: a field is missing, unknown, given twice or out of bounds.
        RequestError: the form is malformed.
        CancelledRequestError: the caller disconnected.
    """
    content_type = request.headers.get("content-type", "")
    if content_type.split(";")[0].strip().lower() != FORM_TYPE:
        raise MediaTypeError(f"send the clip and the options as {FORM_TYPE}")
    files = {CLIP_FIELD: CLIP, SOURCE_FIELD: SOURCE, **(further_files or {})}
    receive = limit_body(request.receive, request.headers.get("content-length"), max_bytes, upload)
    try:
        form = await store_form(
            Request(request.scope, receive).stream(),
            content_type,
            files={name: folder / file for name, file in files.items()},
            max_field_bytes={
                URL_FIELD: MAX_DATA_URI_BYTES,
                EDIT_FIELD: MAX_DATA_URI_BYTES + MAX_FIELD_BYTES,
            },
            max_fields=2 * len(kind.model_fields),
        )
        for name, value in form.fields:
            if name in files and value:
                raise ParameterError(
                    f"{name}: must be a file, got the text {value[:MAX_SHOWN]!r}; "
                    f"curl sends a file with @, as in -F {name}=@FILE"
                )
        options = kind.model_validate(_drop_empty(_merge_repeated(form.fields), kind, files))
    except ClientDisconnect as error:
        raise CancelledRequestError("the caller disconnected during the upload") from error
    except ValidationError as error:
        raise ParameterError(describe_validation_error(error, kind.model_fields)) from error
    options.check_clip(is_sent=CLIP_FIELD in form.files)
    options.check_source(is_sent=SOURCE_FIELD in form.files)
    for name in (further_files or {}).keys() - form.files:
        raise ParameterError(f"{name}: missing; send it as a file")
    return options


def limit_body(
    receive: Receive, declared_bytes: str | None, max_bytes: int, upload: Upload
) -> Receive:
    """Return a `receive` that refuses a body of more than `max_bytes`.

    Args:
        receive: of the ASGI connection.
        declared_bytes: value of the Content-Length header, if there is one.
        max_bytes: limit, checked against the declared length first and then as the body comes in.
        upload: counts the bytes that have arrived.

    Raises:
        UploadTooLargeError: (the returned function) the limit is passed.
        BusyError: (the returned function) the uploads have too many bytes together.
    """

    def check(num_bytes: int) -> None:
        if num_bytes > max_bytes:
            raise UploadTooLargeError(f"the request has more than {max_bytes} bytes, the limit")

    async def receive_within_limit() -> Message:
        check(int(declared_bytes or 0))
        message = await receive()
        num_bytes = len(message.get("body", b""))
        check(upload.num_bytes + num_bytes)
        upload.add(num_bytes)
        return message

    return receive_within_limit


def _merge_repeated(fields: list[tuple[str, str]]) -> dict[str, str]:
    """Return the fields by name; values of a field that may be repeated are joined by commas."""
    merged: dict[str, str] = {}
    for name, value in fields:
        if name not in merged:
            merged[name] = value
        elif name in REPEATABLE_FIELDS:
            merged[name] += f",{value}"
        else:
            raise ParameterError(f"{name}: given twice")
    return merged


def _drop_empty(
    fields: dict[str, str], kind: type[GenerationOptions], files: Iterable[str]
) -> dict[str, str]:
    """Return the fields without those that a browser sends empty; an empty text is kept.

    Swagger UI sends an empty text for a file that was not chosen.
    """
    known = kind.model_fields

    def is_text(name: str) -> bool:
        return name in known and known[name].annotation is str

    return {
        name: value
        for name, value in fields.items()
        if value or (name not in known and name not in files) or is_text(name)
    }

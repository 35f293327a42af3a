"""Read a request that comes as a JSON object, in place of a form: its clip is named, not sent."""

from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from foley.errors import CancelledRequestError, ParameterError, RequestError
from foley.request import describe_validation_error
from runners.http.forms import limit_body
from runners.jobs.clip_url import MAX_DATA_URI_BYTES
from runners.jobs.intake import Upload
from runners.jobs.job import GenerationOptions

JSON_TYPE = "application/json"
# It may hold a clip and the source of an edit, as data: URIs. It is held in memory.
MAX_JSON_BYTES = 2 * MAX_DATA_URI_BYTES + 1024 * 1024

Options = TypeVar("Options", bound=GenerationOptions)


def is_json(request: Request) -> bool:
    """Return whether the body of a request is JSON, by its type."""
    content_type = request.headers.get("content-type", "")
    return content_type.split(";")[0].strip().lower() == JSON_TYPE


async def read_json(
    request: Request, kind: type[Options], *, max_bytes: int, upload: Upload
) -> Options:
    """Return the options of a JSON object, which has the fields of the form but its files.

    Args:
        request: its body has not been read.
        kind: of the options.
        max_bytes: limit of the body, beside `MAX_JSON_BYTES`.
        upload: counts the bytes that have arrived.

    Raises:
        UploadTooLargeError: the body is too large.
        BusyError: the uploads of all requests have too many bytes together.
        RequestError: the body is no JSON object.
        ParameterError: a field is missing, unknown or out of bounds.
        CancelledRequestError: the caller disconnected.
    """
    declared = request.headers.get("content-length")
    receive = limit_body(request.receive, declared, min(max_bytes, MAX_JSON_BYTES), upload)
    try:
        body = await Request(request.scope, receive).body()
        fields = from_json(body, allow_inf_nan=False)
    except ClientDisconnect as error:
        raise CancelledRequestError("the caller disconnected during the upload") from error
    except ValueError as error:
        raise RequestError(f"the body is not JSON ({str(error)[:200]})") from error
    if not isinstance(fields, dict):
        raise RequestError("the body is JSON, but no object; send an object of options")
    try:
        options = kind.model_validate(fields)
    except ValidationError as error:
        raise ParameterError(describe_validation_error(error, kind.model_fields)) from error
    options.check_clip(is_sent=False)
    options.check_source(is_sent=False)
    return options

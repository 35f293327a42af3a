"""What the service answers, as objects and errors of this package.

Nothing here opens a connection: both clients use it.
"""

import contextlib
import json
import math
import time
from collections.abc import Mapping
from typing import Annotated, TypeVar

from pydantic import BaseModel, Field, ValidationError

from foley.client.events import Event, EventParser
from foley.client.request import OnSound, OnUpdate
from foley.client.results import (
    RemoteFile,
    RemoteGeneration,
    RemoteModel,
    RemotePiece,
    RemoteUpdate,
)
from foley.errors import (
    BusyError,
    ConnectionFailedError,
    FoleyError,
    NotFoundError,
    NotReadyError,
    RequestError,
    ServerError,
    UnauthorizedError,
    UploadTooLargeError,
    make_error,
)

# For error responses without a code of the service, as a proxy sends them.
_ERROR_OF_STATUS: dict[int, type[FoleyError]] = {
    401: UnauthorizedError,
    403: UnauthorizedError,
    404: NotFoundError,
    413: UploadTooLargeError,
    429: BusyError,
    503: NotReadyError,
}
ModelT = TypeVar("ModelT", bound=BaseModel)


class _ModelList(BaseModel):
    models: Annotated[list[RemoteModel], Field(min_length=1)]


class ResponseReader:
    """Reads the event stream that answers one generation request.

    Args:
        on_update: called with each progress event; None ignores them.
        timeout_seconds: how long the whole call may take, counted from now; None does not limit it.
        on_sound: called with each piece of a long sound; None ignores them.
    """

    def __init__(
        self,
        on_update: OnUpdate | None,
        timeout_seconds: float | None,
        on_sound: OnSound | None = None,
    ) -> None:
        self._on_update = on_update
        self._on_sound = on_sound
        self._parser = EventParser()
        self._deadline = time.monotonic() + (timeout_seconds or math.inf)

    def feed(self, chunk: bytes) -> RemoteGeneration | None:
        """Read the next bytes of the body; return the result if they complete it.

        Args:
            chunk: any number of bytes; an event may be cut anywhere.

        Raises:
            FoleyError: the stream holds an error event.
            ServerError: an event does not match the service's interface.
            ConnectionFailedError: the call has taken longer than `timeout_seconds`.
        """
        for event in self._parser.feed(chunk):
            if (result := self._handle(event)) is not None:
                return result
        if time.monotonic() > self._deadline:
            raise ConnectionFailedError("the result did not come within the time allowed")
        return None

    def _handle(self, event: Event) -> RemoteGeneration | None:
        if event.name == "progress" and self._on_update is not None:
            self._on_update(parse_body(RemoteUpdate, event.data))
        elif event.name == "sound" and self._on_sound is not None:
            self._on_sound(parse_body(RemotePiece, event.data))
        elif event.name == "error":
            raise parse_error(event.data, 500)
        elif event.name == "result":
            return parse_body(RemoteGeneration, event.data)
        return None


def parse_error_response(status: int, headers: Mapping[str, str], body: bytes) -> FoleyError:
    """Return the error that an HTTP response describes.

    Args:
        status: the HTTP status, other than 200.
        headers: the response's headers; `Retry-After` sets `retry_after_seconds`.
        body: the response's body, of any content type.
    """
    error = parse_error(body, status)
    with contextlib.suppress(KeyError, ValueError):  # HTTP allows a date; the service sends seconds
        error.retry_after_seconds = float(headers["retry-after"])
    return error


def parse_error(body: str | bytes, status: int) -> FoleyError:
    """Return the error that a JSON object describes.

    Args:
        body: `{"error": {"code": ..., "message": ...}}`. Any other content gives the error that
            belongs to the status.
        status: the HTTP status. It also decides between `RequestError` and `ServerError` for a
            code that this version does not know.
    """
    try:
        fields = json.loads(body)["error"]
        code, message = str(fields["code"]), str(fields["message"])
    except (ValueError, KeyError, TypeError):
        default = RequestError if 400 <= status < 500 else ServerError
        kind = _ERROR_OF_STATUS.get(status, default)
        return kind(f"the service answered {status} without saying why")
    try:
        error = make_error(code, message)
    except KeyError:  # a newer service has codes that this version does not know
        error = (RequestError if status < 500 else ServerError)(f"{message} ({code})")
    error.request_id = str(fields.get("request_id") or "")
    with contextlib.suppress(KeyError, TypeError, ValueError):
        error.retry_after_seconds = float(fields["retry_after_seconds"])
    return error


def parse_body(kind: type[ModelT], data: str | bytes) -> ModelT:
    """Return the object that a JSON text describes.

    Args:
        kind: the class of the object.
        data: the JSON text.

    Raises:
        ServerError: the text does not match the class, so another program answered.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise ServerError(
            f"the answer is not that of this service's interface ({kind.__name__}, "
            f"{error.error_count()} errors); check the address"
        ) from error


def parse_models(data: bytes) -> list[RemoteModel]:
    """Return the models that `GET /v1/models` lists, at least one.

    Args:
        data: the JSON text.

    Raises:
        ServerError: the text does not match the service's interface.
    """
    return parse_body(_ModelList, data).models


def check_size(file: RemoteFile | RemotePiece, num_bytes: int) -> None:
    """Check that a file was received completely.

    Args:
        file: with the size that the service stated.
        num_bytes: size of what was received.

    Raises:
        ConnectionFailedError: the sizes differ.
    """
    if num_bytes != file.num_bytes:
        raise ConnectionFailedError(
            f"{file.url} came with {num_bytes} of {file.num_bytes} bytes; try again"
        )

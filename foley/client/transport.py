"""What both clients do between sending and receiving: no input or output happens here."""

import contextlib
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, Field, ValidationError

from foley.client.events import Event, EventParser
from foley.client.results import RemoteFile, RemoteGeneration, RemoteModel, RemoteUpdate
from foley.errors import (
    BusyError,
    ConnectionFailedError,
    FoleyError,
    NotFoundError,
    NotReadyError,
    OutputError,
    ParameterError,
    RequestError,
    RunnerLostError,
    ServerError,
    UnauthorizedError,
    UploadTooLargeError,
    VideoDecodeError,
    error_of,
)
from foley.request import GenerationRequest, Solver
from foley.version import __version__

Clip = Path | str | bytes
Format = Literal["mp4", "mov", "mkv", "webm", "wav", "flac"]
OnUpdate = Callable[[RemoteUpdate], None]

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 60.0  # the service says something every 10 s, even if nothing is new
DEFAULT_RETRY_SECONDS = 2.0
PASSING = (BusyError, NotReadyError, RunnerLostError)  # the same request may succeed later
EVENT_STREAM = "text/event-stream"
# Answers that carry no code of ours: those of a proxy, say.
_BY_STATUS: dict[int, type[FoleyError]] = {
    401: UnauthorizedError,
    403: UnauthorizedError,
    404: NotFoundError,
    413: UploadTooLargeError,
    429: BusyError,
    503: NotReadyError,
}
_KEY = re.compile(r"[!-~]+")
Answer = TypeVar("Answer", bound=BaseModel)


class _Models(BaseModel):
    models: Annotated[list[RemoteModel], Field(min_length=1)]


class Options(TypedDict, total=False):
    """What `generate` takes beside the clip; `foley.GenerationRequest` has ranges and defaults."""

    prompt: str
    negative_prompt: str
    guidance_scale: float | None
    num_inference_steps: int | None
    solver: Solver
    seed: int | None
    num_variations: int
    trim: bool  # cut a clip that is too long, instead of refusing it
    format: Format  # of the files; mp4 by default
    priority: Literal["interactive", "bulk"]  # bulk lets others go first


def connection(base_url: str, api_key: str | None, timeout_seconds: float | None) -> dict[str, Any]:
    """Arguments of `httpx.Client`.

    Raises:
        ParameterError: the address or the key is none.
    """
    if not re.match(r"https?://[^/]", base_url):
        raise ParameterError(
            f"base_url: {base_url!r} is not an address; give one such as http://127.0.0.1:3000"
        )
    headers = {"User-Agent": f"foley/{__version__}"}
    if api_key:
        if not _KEY.fullmatch(api_key):
            raise ParameterError("api_key: holds spaces or characters outside ASCII")
        headers["Authorization"] = f"Bearer {api_key}"
    silence_seconds = min(SILENCE_SECONDS, timeout_seconds or math.inf)
    timeout = httpx.Timeout(silence_seconds, connect=min(CONNECT_SECONDS, silence_seconds))
    return {"base_url": base_url, "headers": headers, "timeout": timeout}


class Call:
    """One request to make sound: what is sent, and what comes of the events that answer it."""

    def __init__(
        self,
        clip: Clip,
        options: Mapping[str, Any],
        *,
        request_id: str | None,
        on_update: OnUpdate | None,
    ) -> None:
        known = GenerationRequest.model_fields
        # Refused here rather than after the upload.
        GenerationRequest.parse(**{k: v for k, v in options.items() if k in known})
        unknown = sorted(options.keys() - Options.__annotations__.keys())
        if unknown:
            raise ParameterError(f"{unknown[0]}: no such option")
        self.clip = clip if isinstance(clip, bytes) else Path(clip)
        self.fields = {k: _plain(v) for k, v in options.items() if v is not None}
        self.format: str = options.get("format") or "mp4"
        self.headers = {"Accept": EVENT_STREAM}
        if request_id is not None:
            self.headers["X-Request-Id"] = request_id
        self._on_update = on_update or (lambda update: None)

    @contextlib.contextmanager
    def form(self) -> Iterator[dict[str, Any]]:
        """The request's body and headers, as arguments of httpx; the clip is read as it is sent."""
        with contextlib.ExitStack() as stack:
            try:
                content = (
                    self.clip
                    if isinstance(self.clip, bytes)
                    else stack.enter_context(self.clip.open("rb"))
                )
            except OSError as error:
                raise VideoDecodeError(
                    f"{self.clip!s} cannot be read ({error.strerror}); check the path"
                ) from error
            clip = ("clip", content, "application/octet-stream")
            yield {"data": self.fields, "files": {"clip": clip}, "headers": self.headers}

    def read(self, event: Event) -> RemoteGeneration | None:
        """The result, when this event is it."""
        if event.name == "progress":
            self._on_update(parse(RemoteUpdate, event.data))
        elif event.name == "error":
            raise error_in(event.data, 500)
        elif event.name == "result":
            return parse(RemoteGeneration, event.data)
        return None

    def destinations(self, made: RemoteGeneration, folder: Path) -> list[tuple[RemoteFile, Path]]:
        """The files asked for, and the path of each in a folder."""
        stem = "clip" if isinstance(self.clip, bytes) else self.clip.stem
        files = made.files_of(self.format)
        return [
            (
                file,
                folder
                / (f"{stem}.foley" + (f"-{file.variation}" * (len(files) > 1)) + f".{file.format}"),
            )
            for file in files
        ]


class Stream:
    """The events of one answer."""

    def __init__(self, call: Call, timeout_seconds: float | None) -> None:
        self._call = call
        self._parser = EventParser()
        self._deadline = time.monotonic() + (timeout_seconds or math.inf)

    def feed(self, chunk: bytes) -> RemoteGeneration | None:
        """The result, when it came with this chunk."""
        for event in self._parser.feed(chunk):
            if (made := self._call.read(event)) is not None:
                return made
        if time.monotonic() > self._deadline:
            raise ConnectionFailedError("the result did not come within the time allowed")
        return None


class Patience:
    """How long a call is tried again while the service says that it cannot serve it now."""

    def __init__(self, max_wait_seconds: float) -> None:
        self._deadline = time.monotonic() + max_wait_seconds

    def wait_after(self, error: FoleyError) -> float:
        """Seconds to wait before the next try; raises the error when they would be too many."""
        seconds = error.retry_after_seconds or DEFAULT_RETRY_SECONDS
        if time.monotonic() + seconds > self._deadline:
            raise error
        return seconds


@contextlib.contextmanager
def connection_errors(base_url: object) -> Iterator[None]:
    """Tells httpx's errors as ours."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise ConnectionFailedError(
            f"{base_url} did not answer in time; try again later"
        ) from error
    except httpx.ConnectError as error:
        raise ConnectionFailedError(
            f"{base_url} cannot be reached ({error}); check the address, and that a service runs"
        ) from error
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise ConnectionFailedError(f"{base_url} broke off ({reason}); try again") from error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tells errors in writing a result as ours."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror or error}); "
            "check the folder, its permissions and the space left"
        ) from error


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> FoleyError:
    """The error that an answer tells."""
    error = error_in(body, status)
    with contextlib.suppress(KeyError, ValueError):  # a date is allowed too; ours are seconds
        error.retry_after_seconds = float(headers["retry-after"])
    return error


def error_in(body: str | bytes, status: int) -> FoleyError:
    """The error that a JSON object describes, or of an HTTP status where it describes none."""
    try:
        told = json.loads(body)["error"]
        code, message = str(told["code"]), str(told["message"])
    except (ValueError, KeyError, TypeError):
        kind = _BY_STATUS.get(status, RequestError if 400 <= status < 500 else ServerError)
        return kind(f"the service answered {status} without saying why")
    try:
        error = error_of(code, message)
    except KeyError:  # of a newer service
        error = (RequestError if status < 500 else ServerError)(f"{message} ({code})")
    error.request_id = str(told.get("request_id") or "")
    with contextlib.suppress(KeyError, TypeError, ValueError):
        error.retry_after_seconds = float(told["retry_after_seconds"])
    return error


def parse(kind: type[Answer], data: str | bytes) -> Answer:
    """The object that a JSON text describes.

    Raises:
        ServerError: it describes none: no service of ours wrote it.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise ServerError(
            f"the answer is not that of this service's interface ({kind.__name__}, "
            f"{error.error_count()} errors); check the address"
        ) from error


def models_in(data: bytes) -> list[RemoteModel]:
    """The models that `GET /v1/models` lists."""
    return parse(_Models, data).models


def result_path(file: RemoteFile) -> str:
    """Where a file is, below the service's address: the API key goes nowhere else.

    Raises:
        ServerError: somewhere else.
    """
    if not file.url.startswith("/") or file.url.startswith("//"):
        raise ServerError(f"the service names the file {file.url!r}, which is not its own")
    return file.url


def cancel_path(request_id: str) -> str:
    """What to post to when a request is given up."""
    return f"/v1/requests/{quote(request_id, safe='')}/cancel"


def check_size(file: RemoteFile, num_bytes: int) -> None:
    """Refuse a file that came in part.

    Raises:
        ConnectionFailedError: its size is not the one stated.
    """
    if num_bytes != file.num_bytes:
        raise ConnectionFailedError(
            f"{file.url} came with {num_bytes} of {file.num_bytes} bytes; try again"
        )


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

"""What a caller sends to /v1/generate: a multipart form, read with limits and checked."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import anyio.to_thread
from pydantic import Field, ValidationError, field_validator
from pydantic_core import PydanticKnownError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from foley.errors import ParameterError, RequestError
from foley.request import GenerationRequest, describe_validation_error
from runners import events
from runners.errors import (
    CancelledRequestError,
    MediaTypeError,
    NotAcceptableError,
    UploadTooLargeError,
)
from runners.exchange import CLIP
from runners.messages import Priority

Format = Literal["mp4", "mov", "mkv", "webm", "wav", "flac"]
MEDIA_TYPES = {
    "mp4": "video/mp4",
    "mov": "video/quicktime",
    "mkv": "video/x-matroska",
    "webm": "video/webm",
    "wav": "audio/wav",
    "flac": "audio/flac",
}
AUDIO_FORMATS: tuple[Format, ...] = ("wav", "flac")
ZIP = "application/zip"
# What `Accept` may name, in the order of our preference where it leaves a choice.
ACCEPTED: dict[str, Format] = {
    "video/mp4": "mp4",
    "video/quicktime": "mov",
    "video/x-matroska": "mkv",
    "video/webm": "webm",
    "audio/wav": "wav",
    "audio/flac": "flac",
    ZIP: "mp4",
}
OTHER_NAMES = {
    "audio/x-wav": "audio/wav",
    "audio/wave": "audio/wav",
    "audio/x-flac": "audio/flac",
}
WEIGHT = re.compile(r"0(\.\d*)?|1(\.0*)?", re.ASCII)
INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
NUMBER = re.compile(r"[+-]?(\d*\.?\d+(e[+-]?\d+)?|nan|inf)", re.ASCII | re.IGNORECASE)
MAX_FIELD_BYTES = 64 * 1024


class GenerationForm(GenerationRequest):
    """The fields of the form beside the clip: all generation options, and how to answer."""

    trim: Annotated[
        bool,
        Field(description="Whether to cut a clip that is too long, instead of refusing it."),
    ] = False
    format: Annotated[
        Format | None,
        Field(
            description="Container of the answer. The video ones hold the clip's own picture, "
            "untouched, with the new sound; wav and flac hold the sound alone. "
            "Absent: what the `Accept` header asks for, else mp4."
        ),
    ] = None
    priority: Annotated[
        Priority,
        Field(
            description="bulk lets interactive requests go first, but is never passed over for "
            "good: for work that nobody waits for."
        ),
    ] = "interactive"

    @field_validator("num_inference_steps", "seed", "num_variations", mode="before")
    @classmethod
    def _plain_integer(cls, value: object) -> object:
        # Pydantic reads 1_0 and 1.0 too: what looks like a slip is told instead.
        if isinstance(value, str) and not INTEGER.fullmatch(value):
            raise PydanticKnownError("int_parsing")
        return value

    @field_validator("guidance_scale", mode="before")
    @classmethod
    def _plain_number(cls, value: object) -> object:
        if isinstance(value, str) and not NUMBER.fullmatch(value):
            raise PydanticKnownError("float_parsing")
        return value

    def generation_request(self) -> GenerationRequest:
        """The options that the model sees."""
        return GenerationRequest(
            **{name: getattr(self, name) for name in GenerationRequest.model_fields}
        )


@dataclass(frozen=True, kw_only=True)
class Order:
    """A request that was read and found well-formed."""

    clip: Path
    request: GenerationRequest
    trim: bool
    format: Format
    zipped: bool  # several sounds, or the caller asked for a zip
    also: tuple[Format, ...] = ()  # formats in which each sound is written too
    priority: Priority = "interactive"
    streamed: bool = False  # answered with events

    @property
    def formats(self) -> tuple[Format, ...]:
        """All formats in which each sound is written, the one asked for first."""
        return tuple(dict.fromkeys((self.format, *self.also)))


async def read_order(request: Request, folder: Path, *, max_bytes: int) -> Order:
    """Read the form, storing its clip in `folder`.

    Raises:
        MediaTypeError: not a multipart form.
        UploadTooLargeError: more than `max_bytes`, noticed before the rest is read.
        NotAcceptableError: `Accept` allows nothing that we make, or no zip of several sounds.
        ParameterError: a field is missing, unknown or out of bounds.
        RequestError: the form is malformed.
        CancelledRequestError: the caller left.
    """
    content_type = request.headers.get("content-type", "")
    if content_type.split(";")[0].strip().lower() != "multipart/form-data":
        raise MediaTypeError("send the clip and the options as multipart/form-data")
    receive = limited(request.receive, request.headers.get("content-length"), max_bytes)
    limits = {"max_files": 1, "max_fields": 2 * len(GenerationForm.model_fields)}
    try:
        async with Request(request.scope, receive).form(
            **limits, max_part_size=MAX_FIELD_BYTES
        ) as form:
            fields, clip = _sort(form)
            options = GenerationForm.model_validate(_given(fields))
            path = folder / CLIP
            await anyio.to_thread.run_sync(_store, clip, path)
    except HTTPException as error:
        raise RequestError(f"the form cannot be read: {error.detail}") from error
    except ClientDisconnect as error:
        raise CancelledRequestError("the caller left while sending") from error
    except ValidationError as error:
        raise ParameterError(describe_validation_error(error)) from error
    accept = ", ".join(request.headers.getlist("accept"))
    weights = accept_weights(accept)
    accepted = acceptable(weights)
    if wants_events(accept):
        return Order(
            clip=path,
            request=options.generation_request(),
            trim=options.trim,
            format=options.format or ACCEPTED[(accepted or ["video/mp4"])[0]],
            zipped=False,
            also=AUDIO_FORMATS,
            priority=options.priority,
            streamed=True,
        )
    if options.format is None and not accepted:
        raise NotAcceptableError(f"Accept allows none of {', '.join(ACCEPTED)}, which we make")
    if options.format is None and options.num_variations > 1 and weights.get(ZIP) == 0:
        raise NotAcceptableError(f"Accept forbids {ZIP}, in which several sounds come")
    return Order(
        clip=path,
        request=options.generation_request(),
        trim=options.trim,
        format=options.format or ACCEPTED[accepted[0]],
        zipped=options.num_variations > 1 or accepted[:1] == [ZIP],
        priority=options.priority,
    )


def limited(receive: Receive, declared_bytes: str | None, max_bytes: int) -> Receive:
    """`receive`, raising UploadTooLargeError once more than `max_bytes` are declared or come in."""
    received_bytes = 0

    def check(num_bytes: int) -> None:
        if num_bytes > max_bytes:
            raise UploadTooLargeError(f"the request has more than {max_bytes} bytes, the limit")

    async def counting() -> Message:
        nonlocal received_bytes
        check(int(declared_bytes or 0))
        message = await receive()
        received_bytes += len(message.get("body", b""))
        check(received_bytes)
        return message

    return counting


def accept_weights(accept: str) -> dict[str, float]:
    """How much an `Accept` header wants each media type that we make; absent: it names none.

    Of the ranges that a type falls under, the most specific one counts. An empty header is none.
    """
    given = _ranges(accept) or {"*/*": 1.0}
    weights: dict[str, float] = {}
    for media_type in ACCEPTED:
        for media_range in ("*/*", media_type.split("/")[0] + "/*", media_type):
            if media_range in given:
                weights[media_type] = given[media_range]
    return weights


def wants_events(accept: str) -> bool:
    """Whether an `Accept` header names the stream of events, and wants no file more."""
    given = _ranges(accept)
    weight = given.get(events.MEDIA_TYPE, 0.0)
    return weight > 0 and all(given.get(media_type, 0.0) <= weight for media_type in ACCEPTED)


def _ranges(accept: str) -> dict[str, float]:
    """How much each media range of an `Accept` header is wanted."""
    given: dict[str, float] = {}
    for entry in filter(None, (entry.strip().lower() for entry in accept.split(","))):
        media_range, *parameters = (part.strip() for part in entry.split(";"))
        stated = [part[2:] for part in parameters if part.startswith("q=")]
        weight = float(stated[0]) if stated and WEIGHT.fullmatch(stated[0]) else float(not stated)
        media_range = OTHER_NAMES.get(media_range, media_range)
        given[media_range] = max(weight, given.get(media_range, 0.0))
    return given


def acceptable(weights: dict[str, float]) -> list[str]:
    """The media types that may be answered, the most wanted first."""
    allowed = [media_type for media_type, weight in weights.items() if weight > 0]
    return sorted(allowed, key=lambda media_type: -weights[media_type])  # stable: ours break ties


def _given(fields: dict[str, str]) -> dict[str, str]:
    """The fields without those that were left empty, as browsers send them.

    An empty text is a text.
    """
    known = GenerationForm.model_fields
    return {
        name: value
        for name, value in fields.items()
        if value or name not in known or known[name].annotation is str
    }


def _sort(form: FormData) -> tuple[dict[str, str], UploadFile]:
    """The text fields, and the clip."""
    fields: dict[str, str] = {}
    clip: UploadFile | None = None
    for name, value in form.multi_items():
        if name in fields:
            raise ParameterError(f"{name}: given twice")
        if isinstance(value, str):
            fields[name] = value
        elif name == "clip":
            clip = value
        else:
            raise ParameterError(f"{name}: only clip may be a file")
    if clip is None:
        raise ParameterError("clip: missing; send the video as a file part of this name")
    return fields, clip


def _store(clip: UploadFile, path: Path) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(clip.file, file, 1024 * 1024)

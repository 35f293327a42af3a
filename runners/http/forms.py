"""What a caller sends to /v1/generate: a multipart form, read with limits and checked."""

import shutil
from pathlib import Path

import anyio.to_thread
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from foley.errors import (
    CancelledRequestError,
    MediaTypeError,
    NotAcceptableError,
    ParameterError,
    RequestError,
    UploadTooLargeError,
)
from foley.request import describe_validation_error
from runners.http.negotiation import ACCEPTED, accept_weights, acceptable, wants_events
from runners.jobs.job import AUDIO_FORMATS, ZIP, GenerationJob, GenerationOptions
from runners.jobs.scratch import CLIP

MAX_FIELD_BYTES = 64 * 1024


async def read_order(request: Request, folder: Path, *, max_bytes: int) -> GenerationJob:
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
    limits = {"max_files": 1, "max_fields": 2 * len(GenerationOptions.model_fields)}
    try:
        async with Request(request.scope, receive).form(
            **limits, max_part_size=MAX_FIELD_BYTES
        ) as form:
            fields, clip = _sort(form)
            options = GenerationOptions.model_validate(_given(fields))
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
        return GenerationJob(
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
    return GenerationJob(
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


def _given(fields: dict[str, str]) -> dict[str, str]:
    """The fields without those that were left empty, as browsers send them.

    An empty text is a text.
    """
    known = GenerationOptions.model_fields
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

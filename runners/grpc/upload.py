"""What a caller streams to `Generate`: the options, then the clip; read with limits and checked."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from pydantic import ValidationError

from foley.errors import ParameterError, UploadTooLargeError
from foley.request import describe_validation_error
from foley.v1.foley_pb2 import GenerateOptions, GenerateRequest
from runners.jobs.job import GenerationJob, GenerationOptions


async def read_order(
    requests: AsyncIterator[GenerateRequest], folder: Path, *, max_bytes: int
) -> GenerationJob:
    """Read the call's messages, storing the clip in `folder`.

    Raises:
        ParameterError: an option is out of bounds, or the messages come in another order.
        UploadTooLargeError: more than `max_bytes`, noticed before the rest is read.
    """
    form: GenerationOptions | None = None
    clip: Path | None = None
    num_bytes = 0
    async for message in requests:
        part = message.WhichOneof("part")
        if part == "options":
            if form is not None:
                raise ParameterError("options: given twice")
            form = _form(message.options)
        elif form is None:
            raise ParameterError("options: missing; send them in the first message")
        elif part == "chunk":
            num_bytes += len(message.chunk)
            if num_bytes > max_bytes:
                raise UploadTooLargeError(f"the clip has more than {max_bytes} bytes, the limit")
            clip = folder / "clip"
            await asyncio.to_thread(_append, clip, message.chunk)
        else:
            raise ParameterError("a message holds neither options nor a chunk of the clip")
    if form is None:
        raise ParameterError("options: missing; send them in the first message")
    if clip is None:
        raise ParameterError("clip: missing; send the video in chunks after the options")
    return GenerationJob(
        clip=clip,
        request=form.generation_request(),
        trim=form.trim,
        format=form.format or "mp4",
        zipped=False,
        priority=form.priority,
    )


def _form(options: GenerateOptions) -> GenerationOptions:
    given = {field.name: value for field, value in options.ListFields()}
    try:
        return GenerationOptions.model_validate(given)
    except ValidationError as error:
        raise ParameterError(describe_validation_error(error)) from error


def _append(path: Path, chunk: bytes) -> None:
    with path.open("ab") as file:
        file.write(chunk)

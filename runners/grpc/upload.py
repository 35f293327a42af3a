"""Read the upload of a `Generate` call: the options, then the clip in chunks."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydantic import ValidationError

from foley.errors import ParameterError, UploadTooLargeError
from foley.request import describe_validation_error
from foley.v1.foley_pb2 import Cue, GenerateOptions, GenerateRequest
from runners.handoff import CLIP, SOURCE
from runners.jobs.intake import Upload
from runners.jobs.job import GenerationOptions

Options = TypeVar("Options", bound=GenerationOptions)
_FILES = {"chunk": CLIP, "source_chunk": SOURCE}


async def read_upload(
    requests: AsyncIterator[GenerateRequest], folder: Path, *, max_bytes: int, upload: Upload
) -> GenerationOptions:
    """Store the clip of a `Generate` call and return its options; see `read_clip`.

    Args:
        requests: the messages of the call.
        folder: of the request.
        max_bytes: limit of the clip.
        upload: counts the bytes that have arrived.
    """

    def parse(options: GenerateOptions) -> GenerationOptions:
        return parse_options(options, GenerationOptions, {})

    return await read_clip(requests, folder, parse, max_bytes=max_bytes, upload=upload)


async def read_clip(
    requests: AsyncIterator[Any],
    folder: Path,
    parse: Callable[[Any], Options],
    *,
    max_bytes: int,
    upload: Upload,
    admit: Callable[[], Awaitable[None]] | None = None,
) -> Options:
    """Store the clip of a call in `folder`, as `runners.handoff.CLIP`; return its options.

    The file that an edit starts from is stored as `runners.handoff.SOURCE`. A call with `clip_url`
    or `duration_seconds` has no clip. The next message is read only after the last chunk was
    written, which is backpressure for the sender.

    Args:
        requests: the messages of the call, with a part `options`, `chunk` or `source_chunk` each.
        folder: of the request.
        parse: returns the options of the part `options`.
        max_bytes: limit of the clip, checked while it is read.
        upload: counts the bytes that have arrived.
        admit: called when the options were read, before the first chunk.

    Raises:
        ParameterError: an option is out of bounds, or the messages are in another order.
        UploadTooLargeError: the clip has more than `max_bytes`.
        BusyError: the uploads of all requests have too many bytes together.
    """
    options: Options | None = None
    opened: dict[str, BinaryIO] = {}
    with contextlib.ExitStack() as stack:
        async for message in requests:
            part = message.WhichOneof("part")
            if part == "options":
                if options is not None:
                    raise ParameterError("options: given twice")
                options = parse(message.options)
                if admit is not None:
                    await admit()
            elif options is None:
                raise ParameterError("options: missing; send them in the first message")
            elif part in _FILES:
                if part not in opened:
                    opened[part] = stack.enter_context((folder / _FILES[part]).open("xb"))
                chunk: bytes = getattr(message, part)
                if upload.num_bytes + len(chunk) > max_bytes:
                    raise UploadTooLargeError(
                        f"the files have more than {max_bytes} bytes, the limit"
                    )
                upload.add(len(chunk))
                await asyncio.to_thread(opened[part].write, chunk)
            else:
                raise ParameterError("a message holds neither options nor a chunk of a file")
    if options is None:
        raise ParameterError("options: missing; send them in the first message")
    options.check_clip(is_sent="chunk" in opened)
    options.check_source(is_sent="source_chunk" in opened)
    return options


def _list_cues(cues: Iterable[Cue]) -> list[dict[str, Any]]:
    names = ("start_seconds", "stop_seconds", "prompt")
    return [
        {
            **{name: getattr(cue, name) for name in names},
            **{field.name: value for field, value in cue.ListFields()},
        }
        for cue in cues
    ]


def parse_options(
    options: GenerateOptions, kind: type[Options], more: dict[str, object]
) -> Options:
    """Return the options of a message, checked.

    Args:
        options: of the message.
        kind: what to return.
        more: further options of that kind.

    Raises:
        ParameterError: one is out of bounds.
    """
    fields = {field.name: value for field, value in options.ListFields()}
    fields["also"] = tuple(options.also)  # as a list of protobuf's own kind it would be refused
    fields["cues"] = _list_cues(options.cues)
    fields["layers"] = [
        {
            **{field.name: value for field, value in layer.ListFields()},
            "prompt": layer.prompt,
            "cues": _list_cues(layer.cues),
        }
        for layer in options.layers
    ]
    fields["adapters"] = [
        {field.name: value for field, value in use.ListFields()} for use in options.adapters
    ]
    if options.HasField("edit"):
        edit = options.edit
        fields["edit"] = {
            "source": edit.source,
            "ranges": [
                {"start_seconds": part.start_seconds, "stop_seconds": part.stop_seconds}
                for part in edit.ranges
            ],
            "strength": edit.strength if edit.HasField("strength") else None,
        }
    try:
        return kind.model_validate({**fields, **more})
    except ValidationError as error:
        raise ParameterError(describe_validation_error(error)) from error

"""The outcome of a request as JSON or files: the same in HTTP responses and in events."""

import json
from pathlib import Path
from typing import Any

import structlog
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from foley.errors import NotFoundError
from runners import metrics
from runners.http.archive import lay_out_zip
from runners.http.negotiation import ZIP
from runners.jobs.job import MEDIA_TYPES
from runners.jobs.outputs import JobResult, OutputFile, PieceFile
from runners.status import public_error

log = structlog.get_logger(__name__)

MANIFEST = "manifest.json"


def result_event(result: JobResult, url: str, kept_seconds: float) -> dict[str, Any]:
    """Return the data of the last event: the metadata, and where the files are.

    Args:
        result: of the job.
        url: path of the folder that holds the files, without a slash at the end.
        kept_seconds: for how long they can be fetched.
    """
    return {
        **result.summary(),
        "kept_seconds": kept_seconds,
        "seeds": list(result.seeds),
        "files": [
            {**describe_file(file), "url": f"{url}/{file.path.name}"} for file in result.files
        ],
    }


def sound_event(file: PieceFile, url: str) -> dict[str, Any]:
    """Return the data of an event that hands out a piece of a long sound.

    Args:
        file: of the piece, on the disk.
        url: path of the folder that will hold it, without a slash at the end.
    """
    return {
        "variation": file.piece.variation,
        "number": file.piece.number,
        "start_seconds": file.piece.start_seconds,
        "duration_seconds": file.piece.duration_seconds,
        "media_type": MEDIA_TYPES["wav"],
        "bytes": file.path.stat().st_size,
        "url": f"{url}/{file.path.name}",
    }


def describe_file(file: OutputFile) -> dict[str, Any]:
    """Return the metadata of a file as a JSON object.

    Args:
        file: on the disk, where its size is read.
    """
    return {
        "variation": file.variation,
        **({"layer": file.layer} if file.layer else {}),
        "seed": file.seed,
        "format": file.container,
        "media_type": MEDIA_TYPES[file.container],
        **({} if file.speech_seconds is None else {"speech_seconds": file.speech_seconds}),
        "bytes": file.path.stat().st_size,
        **({"loudness": file.loudness.model_dump(exclude_none=True)} if file.loudness else {}),
    }


def error_body(
    code: str, message: str, request_id: str, retry_after_seconds: int | None = None
) -> dict[str, Any]:
    """Return the JSON object that every error has, as a response and as an event.

    Args:
        code: stable name of the error.
        message: for the caller.
        request_id: of the request.
        retry_after_seconds: when the same request may succeed; None where waiting does not help.
    """
    error: dict[str, str | int] = {"code": code, "message": message, "request_id": request_id}
    if retry_after_seconds is not None:
        error["retry_after_seconds"] = retry_after_seconds
    return {"error": error}


def tell_error(scope: Scope, error: Exception) -> dict[str, Any]:
    """Return the data of an event that ends a stream, and note the error for log and metrics.

    Args:
        scope: of the request; `ErrorMiddleware` logs the code that is put into it.
        error: why the stream ends.
    """
    public = public_error(error)
    if public.redacted:
        log.error("request_failed", code=public.code, exc_info=error)
    metrics.ERRORS.labels(public.code).inc()
    scope["foley.code"] = public.code
    request_id: str = scope["foley.request_id"]
    return error_body(public.code, public.message, request_id, public.retry_after_seconds)


def file_response(result: JobResult, *, zipped: bool) -> Response:
    """Return the response with the files of a result; reads the disk.

    Args:
        result: of the job; has one file where it is not zipped.
        zipped: whether to send a zip of all files with a manifest.
    """
    if not zipped:
        path = result.files[0].path
        return _ResultFile(
            path,
            media_type=MEDIA_TYPES[result.files[0].container],
            filename=f"foley{path.suffix}",
            headers=result.headers(),
        )
    manifest = {
        **result.summary(),
        "files": [{"file": file.path.name, **describe_file(file)} for file in result.files],
    }
    layout = lay_out_zip(
        [file.path for file in result.files], {MANIFEST: json.dumps(manifest, indent=2)}
    )
    headers = {
        **result.headers(),
        "Content-Disposition": 'attachment; filename="foley.zip"',
        "Content-Length": str(layout.num_bytes),
    }
    return StreamingResponse(layout.read(), media_type=ZIP, headers=headers)


class _ResultFile(FileResponse):
    # Each piece is read by another thread, which takes longer than to read 64 KiB, the default.
    chunk_size = 1 << 20


class KeptFile(_ResultFile):
    """A file of a result that is kept, or a range of it. It may expire before it is sent.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(
            path,
            media_type=MEDIA_TYPES[path.suffix[1:]],
            filename=path.name,
            content_disposition_type="inline",
            headers={"Cache-Control": "private", "X-Content-Type-Options": "nosniff"},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file.

        Raises:
            NotFoundError: it is gone.
        """
        try:
            await super().__call__(scope, receive, send)
        except RuntimeError as error:  # Starlette's, before anything is sent
            raise NotFoundError("this result is no longer kept") from error

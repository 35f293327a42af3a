"""How the files of a result are returned: as base64 in the job's output, or in an S3 bucket."""

import asyncio
import base64
from pathlib import Path
from typing import Any

import structlog
from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]
from runpod.serverless.utils import rp_upload

from foley.client import AsyncFoleyClient, RemoteFile, RemoteGeneration
from foley.errors import OutputError, ServerError

log = structlog.get_logger(__name__)

BASE64_RATIO = 4 / 3
URL_SECONDS = 7 * 24 * 3600  # the longest validity that S3 signs


def check_bucket(bucket: str | None) -> None:
    """Check that a bucket's address and keys are set.

    Args:
        bucket: name of the bucket; None needs nothing.

    Raises:
        OutputError: a variable is missing. The SDK would write to a local folder without an error.
    """
    if bucket is not None and rp_upload.get_boto_client()[0] is None:
        raise OutputError(
            "FOLEY_BUCKET is set, but not all of BUCKET_ENDPOINT_URL, BUCKET_ACCESS_KEY_ID and "
            "BUCKET_SECRET_ACCESS_KEY"
        )


async def embed_files(
    client: AsyncFoleyClient, generation: RemoteGeneration, max_bytes: int
) -> list[dict[str, Any]]:
    """Return the description of each file with its content as base64.

    Args:
        client: where the files are.
        generation: the result.
        max_bytes: limit of the base64 text of all files together.

    Raises:
        OutputError: the files are larger than the limit.
        FoleyError: a file cannot be downloaded.
    """
    num_bytes = int(sum(file.num_bytes for file in generation.files) * BASE64_RATIO)
    if num_bytes > max_bytes:
        raise OutputError(
            f"the result would take {num_bytes} bytes as base64, the limit is {max_bytes}; ask for "
            "fewer variations or for flac, have a bucket set up, or raise "
            "FOLEY_MAX_RESULT_BYTES to 20MB where jobs come by /runsync"
        )
    files = []
    for file in generation.files:
        content = await client.read(file)
        files.append({**_describe_file(file), "base64": base64.b64encode(content).decode()})
    return files


async def upload_files(
    client: AsyncFoleyClient,
    generation: RemoteGeneration,
    *,
    bucket: str,
    prefix: str,
    folder: Path,
) -> list[dict[str, Any]]:
    """Store the files in a bucket; return the description of each with its signed URL.

    Args:
        client: where the files are.
        generation: the result.
        bucket: name of the bucket.
        prefix: first part of the objects' keys.
        folder: receives the files on the way.

    Raises:
        FoleyError: a file cannot be downloaded, or the bucket refuses it.
    """
    files = []
    for file in generation.files:
        path = await client.download(file, folder / file.name)
        key = f"{prefix}/{file.name}"
        url = await asyncio.to_thread(_upload, path, bucket, key, file.media_type)
        files.append({**_describe_file(file), "url": url})
    return files


def _describe_file(file: RemoteFile) -> dict[str, Any]:
    return file.model_dump(exclude={"url"}, exclude_none=True, mode="json")


def _upload(path: Path, bucket: str, key: str, media_type: str) -> str:
    """Store a file as an object; return its URL, which is valid for `URL_SECONDS`."""
    client, _ = rp_upload.get_boto_client()
    where = {"Bucket": bucket, "Key": key}
    try:
        with path.open("rb") as content:
            client.put_object(**where, Body=content, ContentType=media_type)
        url: str = client.generate_presigned_url("get_object", Params=where, ExpiresIn=URL_SECONDS)
    except (BotoCoreError, ClientError) as error:
        log.exception("upload_failed", key=key)
        raise ServerError("the result was made, but its bucket did not take it") from error
    return url

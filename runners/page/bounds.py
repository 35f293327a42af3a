"""The limits of the service that the page needs to know."""

import asyncio
import contextlib
from dataclasses import dataclass

import httpx

from foley.client.transport import make_client_settings

POLL_SECONDS = 1.0
REQUEST_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class PageBounds:
    """What the service accepts of a clip.

    Attributes:
        max_seconds: the longest clip.
        max_bytes: the largest upload.
        needs_key: whether the service asks for an API key.
        has_jobs: whether the service takes durable jobs.
    """

    max_seconds: float
    max_bytes: int
    needs_key: bool
    has_jobs: bool


async def fetch_bounds(server_url: str) -> PageBounds:
    """Return the service's limits; wait until the service can be reached.

    Args:
        server_url: address of the service, whose OpenAPI document states the limits.
    """
    settings = make_client_settings(server_url, None, REQUEST_TIMEOUT_SECONDS)
    async with httpx.AsyncClient(**settings) as client:
        while True:
            with contextlib.suppress(httpx.HTTPError, ValueError, KeyError):
                document = (await client.get("/docs.json")).json()
                form = document["components"]["schemas"]["GenerationOptions"]
                clip = form["properties"]["clip"]
                return PageBounds(
                    max_seconds=float(clip["x-max-seconds"]),
                    max_bytes=int(clip["x-max-request-bytes"]),
                    needs_key=bool(document["security"]),
                    has_jobs="/v1/jobs" in document["paths"],
                )
            await asyncio.sleep(POLL_SECONDS)

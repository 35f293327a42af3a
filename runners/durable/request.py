"""What is accepted as a job: the options of a generation, with nothing left to chance."""

import hashlib
import re
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from foley.errors import ParameterError
from foley.request import MAX_SEED
from runners.jobs.job import GenerationOptions

# A seed that JavaScript reads exactly; the variations count up from it.
MAX_DRAWN_SEED = min(MAX_SEED, 2**53) - 8
IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,255}", re.ASCII)
OF_THE_JOB = {"webhook_url", "start_by", "upload", "output"}


def check_key(key: str, name: str) -> None:
    """Check an idempotency key.

    Args:
        key: as the caller sent it; any text.
        name: of the field that held it.

    Raises:
        ParameterError: it is no key.
    """
    if not IDEMPOTENCY_KEY.fullmatch(key):
        raise ParameterError(
            f"{name}: {key[:80]!r} is no key; use 1 to 255 visible ASCII characters"
        )


def find_output(job_id: str, output: str | None) -> str | None:
    """Return the address of the folder of a job's files in a bucket; None without an output.

    Args:
        job_id: of the job.
        output: of its request.
    """
    return None if output is None else f"{output.rstrip('/')}/{job_id}"


class JobOptions(GenerationOptions):
    """The options of a job: those of a generation, and of what becomes of the job itself."""

    webhook_url: Annotated[
        str | None,
        Field(
            description="Where the service tells that the job has ended: an https or http address, "
            "which gets a signed POST (Standard Webhooks)."
        ),
    ] = None
    start_by: Annotated[
        AwareDatetime | None,
        Field(
            description="The job fails with `not_started` if it is not begun by this time: ISO "
            "8601 with its zone, such as 2026-12-01T18:00:00+01:00."
        ),
    ] = None

    upload: Annotated[
        str | None,
        Field(description="Id of a complete upload to `/v1/uploads`, in place of the clip."),
    ] = None
    output: Annotated[
        str | None,
        Field(
            description="Where the files of the result are written, in place of the service: "
            "s3://BUCKET/PREFIX, where the service has `FOLEY_OUTPUT_BUCKETS`. They are "
            "PREFIX/ID/foley-1.mp4 and so on, by the id of the job."
        ),
    ] = None

    @field_validator("start_by")
    @classmethod
    def _check_time(cls, value: datetime | None) -> datetime | None:
        try:
            _ = value and value.astimezone(UTC)
        except OverflowError as error:
            raise PydanticCustomError(
                "time_range", "must lie between the years 1 and 9999 in UTC"
            ) from error
        return value

    @field_validator("pieces")
    @classmethod
    def _refuse_pieces(cls, value: bool) -> bool:
        if value:
            raise PydanticCustomError(
                "no_pieces",
                "are for a caller who waits, and a job keeps none; send the request to "
                "/v1/generate/events, or leave the option out",
            )
        return value

    def check_clip(self, *, is_sent: bool) -> None:
        """See `GenerationOptions.check_clip`; an upload is a clip."""
        if self.upload is not None and (is_sent or self.clip_url is not None):
            raise ParameterError("upload: got an upload and a clip; leave one of them out")
        super().check_clip(is_sent=is_sent or self.upload is not None)


class JobRequest(BaseModel):
    """A request whose repetition gives the same bytes.

    Attributes:
        options: with a seed and a format, of which only those that were given are stored.
        has_clip: whether there is a clip.
        digest: of what the caller sent; equal for equal requests.
        upload_digest: the same by the id of an upload, which is gone once a job has taken it; None
            without one.
        output: s3://bucket/prefix for the files of the result; None for the service's own keeping.
        webhook_url: of the receiver; None for none.
        start_by: when it must have begun; None for any time.
    """

    model_config = ConfigDict(frozen=True)

    options: GenerationOptions
    has_clip: bool
    digest: str
    upload_digest: str | None = None
    output: str | None = None
    webhook_url: str | None = None
    start_by: AwareDatetime | None = None

    @classmethod
    def settle(
        cls, options: JobOptions, clip: Path | None, source: Path | None = None
    ) -> "JobRequest":
        """Return the request of a caller, with a seed, a format and a priority.

        Args:
            options: as the caller gave them.
            clip: that was received, or is the upload that the options name; None without one, and
                where the upload is gone.
            source: the file that an edit starts from; None without one.
        """
        given = options.model_dump_json(exclude_unset=True, exclude={"upload"})
        hashed = hashlib.sha256(given.encode())
        upload_digest = None
        if options.upload is not None:
            named = options.model_dump_json(exclude_unset=True)
            upload_digest = hashlib.sha256(named.encode()).hexdigest()
        for path in filter(None, (clip, source)):
            with path.open("rb") as file:
                hashed.update(hashlib.file_digest(file, "sha256").digest())
        has_clip = clip is not None or options.upload is not None
        settled: dict[str, Any] = {}
        if options.seed is None:
            settled["seed"] = secrets.randbelow(MAX_DRAWN_SEED)
        if options.format is None:
            settled["format"] = options.choose_default_format(has_clip=has_clip)
        if "priority" not in options.model_fields_set:
            settled["priority"] = "bulk"  # nobody waits on a connection for it
        kept = options.model_dump(exclude=OF_THE_JOB, exclude_unset=True)
        return cls(
            options=GenerationOptions.model_validate({**kept, **settled}),
            has_clip=has_clip,
            digest=hashed.hexdigest(),
            upload_digest=upload_digest,
            output=options.output,
            webhook_url=options.webhook_url,
            start_by=options.start_by,
        )

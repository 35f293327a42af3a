"""The `input` of a queue job: the clip, and the options of the generation."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from foley.errors import ParameterError
from foley.request import describe_validation_error
from runners.jobs.job import GenerationOptions

_WORKER_FIELDS = {"clip_url", "clip_base64", "output"}


class JobInput(GenerationOptions):
    """The fields of a job: the clip by its URL or as base64, and the service's options."""

    clip_url: Annotated[str | None, Field(description="https:// URL of the clip.")] = None
    clip_base64: Annotated[
        str | None, Field(description="The clip itself; a data: URI is accepted too.")
    ] = None
    output: Annotated[
        Literal["auto", "base64", "bucket"],
        Field(description="How files are returned. auto is bucket if the worker has one."),
    ] = "auto"

    @model_validator(mode="after")
    def _check_clip(self) -> "JobInput":
        num_clips = (self.clip_url is not None) + (self.clip_base64 is not None)
        if num_clips == 2 or (num_clips == 0 and self.duration_seconds is None):
            raise ValueError(
                "give the clip as clip_url or as clip_base64, and not as both; or "
                "duration_seconds and a prompt for a sound without a clip"
            )
        self.check_clip(is_sent=self.clip_base64 is not None)
        self.check_source(is_sent=False)
        return self

    @property
    def has_clip(self) -> bool:
        """Whether the job is about a clip, and not about a prompt alone."""
        return self.clip_url is not None or self.clip_base64 is not None

    def get_service_options(self) -> dict[str, Any]:
        """Return the options that are sent to the service."""
        return self.model_dump(exclude=_WORKER_FIELDS, exclude_none=True)


def parse_job_input(value: object) -> JobInput:
    """Return the validated input of a job.

    Args:
        value: the JSON value of the job's field `input`.

    Raises:
        ParameterError: the value is no object, or a field is unknown, missing or out of bounds.
    """
    if not isinstance(value, dict):
        raise ParameterError(f"input: must be an object, got {type(value).__name__}")
    try:
        return JobInput.model_validate(value)
    except ValidationError as error:
        known = JobInput.model_fields
        raise ParameterError(describe_validation_error(error, known)) from error

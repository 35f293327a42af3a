"""One generation job: the options that a caller gives, and the validated job made of them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticKnownError

from foley.request import GenerationRequest
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
INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
NUMBER = re.compile(r"[+-]?(\d*\.?\d+(e[+-]?\d+)?|nan|inf)", re.ASCII | re.IGNORECASE)


class GenerationOptions(GenerationRequest):
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
class GenerationJob:
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

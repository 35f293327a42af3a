"""The options of a generation as callers send them, and the job that is made of them."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_core import PydanticKnownError

from foley.configs import SAMPLE_RATE
from foley.errors import ParameterError
from foley.mix import MixOptions
from foley.request import (
    AUDIO_FORMATS,
    MAX_FRAME_RATE,
    MAX_START_SECONDS,
    MIN_FRAME_RATE,
    AudioFormat,
    Format,
    GenerationRequest,
    check_part,
)
from runners.handoff import CLIP
from runners.messages import Priority

MEDIA_TYPES = {
    "mp4": "video/mp4",
    "mov": "video/quicktime",
    "mkv": "video/x-matroska",
    "webm": "video/webm",
    "wav": "audio/wav",
    "flac": "audio/flac",
}
INTEGER_TEXT = re.compile(r"[+-]?\d+", re.ASCII)
_MIX_NUMBERS = tuple(
    name
    for name, field in MixOptions.model_fields.items()
    if field.annotation in (float, float | None)
)
NUMBER_TEXT = re.compile(r"[+-]?(\d*\.?\d+(e[+-]?\d+)?|nan|inf)", re.ASCII | re.IGNORECASE)


class GenerationOptions(MixOptions, GenerationRequest):
    """All options of a request beside the clip: those of the model, the mix, and the files.

    HTTP forms, gRPC messages and queue jobs are validated by this class.
    """

    clip_url: Annotated[
        str | None,
        Field(
            description="Where the clip is, in place of the clip itself: an https or http address "
            "on the open internet, a data: URI of at most 4 MB, or s3://BUCKET/KEY in a bucket of "
            "`FOLEY_CLIP_BUCKETS`."
        ),
    ] = None
    trim: Annotated[
        bool,
        Field(description="Whether to cut a clip that is too long, instead of refusing it."),
    ] = False
    start_seconds: Annotated[
        float,
        Field(
            ge=0,
            le=MAX_START_SECONDS,
            description="Where the used part of the clip begins; what is before is left out. With "
            "trim, the part ends at the limit of clips.",
        ),
    ] = 0.0
    frame_rate: Annotated[
        float | None,
        Field(
            ge=MIN_FRAME_RATE,
            le=MAX_FRAME_RATE,
            description="Pictures per second of a clip that is a zip of numbered pictures (PNG, "
            "JPEG, WebP, BMP or TIFF). Only for such a zip, which needs it.",
        ),
    ] = None
    format: Annotated[
        Format | None,
        Field(
            description="Container of the result. The video ones hold the clip's own picture, "
            "untouched, with the sound; wav and flac hold the sound alone. "
            "Absent: what the `Accept` header asks for, else mp4, or wav without a clip."
        ),
    ] = None
    also: Annotated[
        tuple[AudioFormat, ...],
        Field(
            max_length=8,
            description="Formats of the sound alone in which each variation is written too: "
            "wav, flac or both. The field may be repeated, or hold several separated by commas.",
        ),
    ] = ()
    pieces: Annotated[
        bool,
        Field(
            description="Whether the sound of a clip of over 15 s is handed out in pieces of about "
            "8 s while the rest is made: as events `sound` of a stream, each with the address of "
            "a wav file. On a CPU the first 2.56 s of a sound of over 5.12 s come ahead too. "
            "The pieces are the new sound before the options of the mix. "
            "There are none with layers, nor with avoid_speech retry."
        ),
    ] = False
    priority: Annotated[
        Priority,
        Field(
            description="bulk lets interactive requests go first, but always gets a share of the "
            "device: for work that nobody waits for."
        ),
    ] = "interactive"

    @field_validator("num_inference_steps", "seed", "num_variations", "max_retries", mode="before")
    @classmethod
    def _check_integer(cls, value: object) -> object:
        # Pydantic reads 1_0, 1.0 and true too. They look like slips, so they are refused.
        if isinstance(value, bool):
            raise PydanticKnownError("int_type")
        if isinstance(value, str) and not INTEGER_TEXT.fullmatch(value):
            raise PydanticKnownError("int_parsing")
        return value

    @field_validator(
        "guidance_scale",
        "schedule_shift",
        "guidance_interval",
        "duration_seconds",
        "start_seconds",
        "frame_rate",
        *_MIX_NUMBERS,
        mode="before",
    )
    @classmethod
    def _check_number(cls, value: object) -> object:
        if isinstance(value, bool):
            raise PydanticKnownError("float_type")
        if isinstance(value, str) and not NUMBER_TEXT.fullmatch(value):
            raise PydanticKnownError("float_parsing")
        return value

    @field_validator("also", mode="before")
    @classmethod
    def _split_formats(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return [name.strip() for name in value.split(",")]

    @field_validator("also")
    @classmethod
    def _drop_repeats(cls, value: tuple[AudioFormat, ...]) -> tuple[AudioFormat, ...]:
        return tuple(dict.fromkeys(value))

    def choose_default_format(self, *, has_clip: bool) -> Format:
        """Return the container of the result where the caller named none.

        Args:
            has_clip: whether there is one, or its address.
        """
        return "mp4" if has_clip else "wav"

    def check_clip(self, *, is_sent: bool) -> None:
        """Check that there is a clip, a `clip_url` or a `duration_seconds` with a prompt.

        Whether a clip is a still picture, which takes a `duration_seconds` too, shows when it is
        read.

        Args:
            is_sent: whether the caller sent the clip itself.

        Raises:
            ParameterError: there is none of them, or two clips, or an option of a clip without one.
        """
        if is_sent and self.clip_url is not None:
            raise ParameterError("clip_url: got an address and a clip; leave one of them out")
        check_part(self.start_seconds, self.frame_rate, self.duration_seconds)
        if is_sent or self.clip_url is not None:
            return
        if self.duration_seconds is None:
            raise ParameterError(
                "clip: missing; send a video or its clip_url, or duration_seconds and a prompt for "
                "a sound without one"
            )
        self.check_without_clip()
        if self.format is not None and self.format not in AUDIO_FORMATS:
            raise ParameterError(
                f"format: {self.format} holds a clip's picture, and there is no clip; use wav or "
                "flac, or send a still picture"
            )

    def check_source(self, *, is_sent: bool) -> None:
        """Check that the file of an edit is sent if, and only if, the edit names it.

        Args:
            is_sent: whether the caller sent a file `edit_source`.

        Raises:
            ParameterError: it is not so.
        """
        is_named = self.edit is not None and self.edit.is_sent
        if is_named and not is_sent:
            raise ParameterError(
                "edit.source: is file, and no file edit_source was sent; send one, or use another "
                "source"
            )
        if is_sent and not is_named:
            raise ParameterError(
                "edit_source: a file was sent, and edit has not the source file; set edit to "
                '{"source": "file"} with its ranges or strength, or leave the file out'
            )

    @property
    def has_references(self) -> bool:
        """Whether the clip or the source of an edit is named, and has yet to be found."""
        has_named_source = self.edit is not None and not (
            self.edit.is_original or self.edit.is_sent
        )
        return self.clip_url is not None or has_named_source

    def generation_request(self) -> GenerationRequest:
        """Return the options that the model needs, without those of the files."""
        return GenerationRequest(
            **{name: getattr(self, name) for name in GenerationRequest.model_fields}
        )


@dataclass(frozen=True, kw_only=True)
class GenerationJob:
    """One generation: a clip that was received, or none, and validated options.

    Attributes:
        owner: of the request; see `runners.auth.ApiKeys.owner_of`.
        caller: takes turns with others; see `runners.auth.caller_of`.
        request_id: of the caller; need not be unique.
        folder: holds the clip as `runners.handoff.CLIP`, if there is one, and receives all other
            files.
        options: as the caller gave them.
        format: container of the result, agreed with the caller.
        measures: whether loudness and speech are measured although no option asks for it.
    """

    owner: str
    caller: str
    request_id: str
    folder: Path
    options: GenerationOptions
    format: Format
    measures: bool = False

    @property
    def formats(self) -> tuple[Format, ...]:
        """All formats in which each variation is written, without repeats, `format` first."""
        return tuple(dict.fromkeys((self.format, *self.options.also)))

    @property
    def has_clip(self) -> bool:
        """Whether a clip was received, which may be a still picture."""
        return (self.folder / CLIP).exists()

    def generation_request(self) -> GenerationRequest:
        """Return the options that the model needs; a picture is as long as its frames."""
        request = self.options.generation_request()
        return request.of_clip() if self.has_clip else request

    def measure_least_result(self) -> int:
        """Return a lower bound of the bytes of the files: the clip's picture in each variation."""
        if self.format in AUDIO_FORMATS:
            return 0
        return self.options.num_variations * (self.folder / CLIP).stat().st_size

    def measure_result(self, seconds: float) -> int:
        """Return how many bytes the waveforms and all files of the result may have.

        Args:
            seconds: length of the sound.
        """
        clip_bytes = (self.folder / CLIP).stat().st_size if self.has_clip else 0
        num_variations, num_layers = self.options.num_variations, len(self.options.layers)
        num_samples = math.ceil(seconds * SAMPLE_RATE)
        channels = 2 if self.options.is_stereo else 1
        waveform_bytes = 4 * channels * num_samples  # float32
        sound_bytes = 2 * 3 * num_samples  # two channels of 24 bits, in the largest format
        # Each variation once more, of one channel.
        pieces_bytes = self.options.pieces * num_variations * sound_bytes // 2
        num_videos = sum(name not in AUDIO_FORMATS for name in self.formats)
        return (
            (num_variations + num_layers) * waveform_bytes
            + (num_variations * len(self.formats) + num_layers) * sound_bytes
            + pieces_bytes
            # The picture is copied into each, and before into its used part.
            + (num_variations * num_videos + bool(self.options.start_seconds)) * clip_bytes
        )

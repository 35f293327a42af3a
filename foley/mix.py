"""The options of the finished sound: what becomes of the clip's own sound, levels and tracks."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from foley.configs import MAX_CLIP_SECONDS
from foley.errors import ParameterError
from foley.request import AUDIO_FORMATS, describe_validation_error

OriginalSound = Literal["drop", "keep", "mix", "duck"]
Channels = Literal["mono", "stereo"]
Placement = Literal["front", "center", "surround", "all"]

MAX_PEAK_DBTP = -1.0  # where no ceiling is asked for: the largest that EBU R 128 allows


class MixOptions(BaseModel):
    """How the new sound becomes the sound of the result, in every interface.

    Its defaults leave the new sound as it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    original_sound: Annotated[
        OriginalSound,
        Field(
            description="What becomes of the clip's own sound. drop leaves it out. keep copies it "
            "into a second track. mix adds it to the new sound. duck does too, and lowers it while "
            "the new sound is heard. Channels stay as they are in the clip: 5.1 stays 5.1, with "
            "the new sound in front, or where placement says."
        ),
    ] = "drop"
    original_gain_db: Annotated[
        float,
        Field(ge=-60, le=24, description="Gain of the clip's own sound, with mix or duck."),
    ] = 0.0
    duck_depth_db: Annotated[
        float,
        Field(gt=0, le=40, description="By how much duck lowers the clip's own sound at most."),
    ] = 12.0
    duck_release_ms: Annotated[
        float,
        Field(
            ge=10,
            le=5000,
            description="How long the clip's own sound takes to come back after duck has lowered "
            "it.",
        ),
    ] = 300.0
    gain_db: Annotated[float, Field(ge=-60, le=24, description="Gain of the new sound.")] = 0.0
    fade_in_seconds: Annotated[
        float, Field(ge=0, le=MAX_CLIP_SECONDS, description="Fades the new sound in.")
    ] = 0.0
    fade_out_seconds: Annotated[
        float, Field(ge=0, le=MAX_CLIP_SECONDS, description="Fades the new sound out, to its end.")
    ] = 0.0
    channels: Annotated[
        Channels | None,
        Field(
            description="Channels of the result. Absent: those of the clip's own sound with mix "
            "or duck, else stereo beside a picture and mono in wav and flac."
        ),
    ] = None
    pan: Annotated[
        float,
        Field(
            ge=-1,
            le=1,
            description="Where the new sound is heard, from -1 (left) to 1 (right). It lowers the "
            "other side and raises nothing.",
        ),
    ] = 0.0
    placement: Annotated[
        Placement,
        Field(
            description="On which channels of a clip's own sound of 5.1 or more the new sound is "
            "heard, with mix or duck: front (left and right), center, surround (left and right, at "
            "the sides and behind), or all of these, each as loud as those in front. Where the "
            "clip lacks them, it is heard in front, and a notice says so."
        ),
    ] = "front"
    loudness_lufs: Annotated[
        float | None,
        Field(
            ge=-50,
            le=-5,
            description="Integrated loudness of the result by EBU R 128, reached by one gain for "
            "the whole sound. Peaks limit it: see true_peak_dbtp. Absent: as it is.",
        ),
    ] = None
    true_peak_dbtp: Annotated[
        float | None,
        Field(
            ge=-20,
            le=0,
            description="The highest true peak of the result, held by lowering the whole sound. "
            f"Absent: {MAX_PEAK_DBTP:g} where a gain, a mix or a loudness is asked for.",
        ),
    ] = None
    limiter: Annotated[
        bool,
        Field(
            description="Whether peaks over true_peak_dbtp are limited by themselves, so that "
            "loudness_lufs is reached. The sound then loses some of its attack."
        ),
    ] = False
    stems: Annotated[
        bool,
        Field(
            description="Whether a video holds, after its mix, the new sound alone and the clip's "
            "own sound as further tracks. For mix and duck."
        ),
    ] = False
    broadcast_wave: Annotated[
        bool,
        Field(
            description="Whether wav files are Broadcast Wave, with the clip's timecode as their "
            "time reference."
        ),
    ] = False

    @field_validator("original_gain_db", "stems")
    @classmethod
    def _check_mixed(cls, value: float, info: ValidationInfo) -> float:
        _check_needs(value, info, "original_sound", ("mix", "duck"))
        return value

    @field_validator("duck_depth_db", "duck_release_ms")
    @classmethod
    def _check_ducked(cls, value: float, info: ValidationInfo) -> float:
        _check_needs(value, info, "original_sound", ("duck",))
        return value

    @field_validator("pan")
    @classmethod
    def _check_pan(cls, value: float, info: ValidationInfo) -> float:
        if value and info.data.get("channels") == "mono":
            raise PydanticCustomError(
                "conflict", "cannot be combined with channels mono; leave out one of them"
            )
        return value

    @field_validator("placement")
    @classmethod
    def _check_placement(cls, value: Placement, info: ValidationInfo) -> Placement:
        _check_needs(value, info, "original_sound", ("mix", "duck"))
        if value != "front" and (channels := info.data.get("channels")):
            raise PydanticCustomError(
                "conflict",
                "cannot be combined with channels {channels}, which has no others than those in "
                "front; leave out one of them",
                {"channels": channels},
            )
        if value == "center" and info.data.get("pan"):
            raise PydanticCustomError(
                "conflict", "center cannot be combined with a pan; leave out one of them"
            )
        return value

    @field_validator("limiter")
    @classmethod
    def _check_limiter(cls, value: bool, info: ValidationInfo) -> bool:
        goals = ("loudness_lufs", "true_peak_dbtp")
        if value and all(info.data.get(name, 0) is None for name in goals):
            raise PydanticCustomError(
                "conflict", "needs loudness_lufs or true_peak_dbtp; give one of them"
            )
        return value

    @property
    def is_default(self) -> bool:
        """Whether the new sound stays as it is."""
        return self.mix_options() == MixOptions()

    @property
    def is_mixed(self) -> bool:
        """Whether the result's sound holds the clip's own."""
        return self.original_sound in ("mix", "duck")

    @property
    def has_level(self) -> bool:
        """Whether an option may raise peaks, or states a loudness or a peak."""
        return (
            self.is_mixed
            or self.gain_db != 0
            or self.loudness_lufs is not None
            or self.true_peak_dbtp is not None
        )

    def changed(self) -> dict[str, Any]:
        """Return the options that differ from their defaults, by name."""
        return self.mix_options().model_dump(exclude_defaults=True)

    def mix_options(self) -> "MixOptions":
        """Return these options alone, without those that a subclass adds."""
        return MixOptions.model_construct(
            **{name: getattr(self, name) for name in MixOptions.model_fields}
        )

    def check_files(
        self,
        formats: tuple[str, ...],
        *,
        has_clip: bool,
        is_stereo: bool = False,
        has_original: bool = False,
    ) -> None:
        """Check that the options fit the files that will be written.

        Args:
            formats: mp4, mov, mkv, webm, wav or flac; the result's own format is the first.
            has_clip: whether there is a clip, and not a prompt alone.
            is_stereo: whether a layer has a pan.
            has_original: whether the new sound holds the clip's own, as an edit of it does.

        Raises:
            ParameterError: two options do not fit; the message names both.
        """
        if is_stereo and self.channels == "mono":
            raise ParameterError(
                "channels: mono cannot be combined with the pan of layers; leave out one of them"
            )
        if self.original_sound != "drop" and not has_clip:
            raise ParameterError(
                f"original_sound: {self.original_sound} is about a clip's own sound, and with "
                "duration_seconds there is no clip; leave one of them out"
            )
        if self.is_mixed and has_original:
            raise ParameterError(
                f"original_sound: {self.original_sound} adds the clip's own sound, which an edit "
                "of source original holds already; leave one of them out"
            )
        if self.original_sound == "keep" and formats[0] in AUDIO_FORMATS:
            raise ParameterError(
                f"original_sound: keep writes a second track, and format {formats[0]} holds one; "
                "use mix, or a video format"
            )
        if self.stems and formats[0] in AUDIO_FORMATS:
            raise ParameterError(
                f"stems: are tracks of a video, and format {formats[0]} holds one track; "
                "use a video format, or leave stems out"
            )
        if self.broadcast_wave and "wav" not in formats:
            raise ParameterError(
                f"broadcast_wave: is about wav files, and the format is {formats[0]}; "
                "use the format wav, or leave broadcast_wave out"
            )

    @classmethod
    def parse(cls, **options: Any) -> Self:
        """Return the options.

        Args:
            options: by field name; the others have their defaults.

        Raises:
            ParameterError: options are unknown, out of range or contradict one another; the
                message names each of them with its value.
        """
        try:
            return cls(**options)
        except ValidationError as error:
            raise ParameterError(describe_validation_error(error)) from error


def _check_needs(value: object, info: ValidationInfo, other: str, wanted: tuple[str, ...]) -> None:
    """Refuse a value other than the default, unless the other option has one of these values."""
    assert info.field_name is not None
    given = info.data.get(other)  # absent where it was refused itself
    if (
        given is None
        or given in wanted
        or value == MixOptions.model_fields[info.field_name].default
    ):
        return
    raise PydanticCustomError(
        "conflict",
        "cannot be combined with {other} {given}; use {other} {wanted}, or leave it out",
        {"other": other, "given": given, "wanted": " or ".join(wanted)},
    )


def choose_stem_path(path: Path, number: int) -> Path:
    """Return the path of a layer beside its mix: OUT-layer-1.wav, or .flac beside a .flac.

    Args:
        path: of the mix.
        number: of the layer, from 1.
    """
    suffix = path.suffix.lower()
    suffix = suffix if suffix.removeprefix(".") in AUDIO_FORMATS else ".wav"
    return path.with_name(f"{path.stem}-layer-{number}{suffix}")


class Loudness(BaseModel):
    """A sound as a meter reads it.

    Attributes:
        integrated_lufs: by EBU R 128; None under -70 LUFS, and for less than 0.4 s.
        true_peak_dbtp: the highest of all channels; None for digital silence.
    """

    model_config = ConfigDict(frozen=True)

    integrated_lufs: float | None = None
    true_peak_dbtp: float | None = None


class LoudnessReport(BaseModel):
    """What was measured and done on the way to a result's sound.

    Attributes:
        before: of the sound or the mix, after the gains that were asked for.
        after: of the sound that was encoded.
        gain_db: of the whole sound between them, apart from a limiter.
    """

    model_config = ConfigDict(frozen=True)

    before: Loudness
    after: Loudness
    gain_db: float

"""The options of a generation: the only definition of their meaning, range and default."""

import difflib
import itertools
import json
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from foley.configs import (
    MAX_CLIP_SECONDS,
    MIN_SOUND_SECONDS,
    OFFICIAL_GUIDANCE,
    TINY_GUIDANCE,
    Preset,
)
from foley.errors import ParameterError
from foley.plans import OFFICIAL_PLAN, QUALITIES, TINY_PLAN, Quality, SamplingPlan, Solver

AvoidSpeech = Literal["off", "report", "retry"]
CueMode = Literal["replace", "add"]
AudioFormat = Literal["wav", "flac"]  # the sound alone
AUDIO_FORMATS: tuple[AudioFormat, ...] = get_args(AudioFormat)
Format = Literal["mp4", "mov", "mkv", "webm", "wav", "flac"]

MAX_SEED = 2**63 - 1
MAX_START_SECONDS = 86_400.0  # of the part of a clip that is used
MIN_FRAME_RATE, MAX_FRAME_RATE = 1.0, 240.0  # of numbered pictures
MIN_CUE_SECONDS = 0.1
MAX_CUES = 32
MAX_LAYERS = 8
MIN_RANGE_SECONDS = 0.1
MAX_RANGES = 32
MAX_ADAPTERS = 8  # of one request
MAX_ADAPTER_SCALE = 2.0
MAX_ADDRESS_CHARACTERS = 4 * 1000 * 1000  # of a data: URI; gRPC takes no larger message
_ADDRESS = re.compile("(https?|data|s3):", re.IGNORECASE)
# An id of a request or a job, and one of its files.
_RESULT = re.compile(
    r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}(/foley-\d+(-layer-\d+)?\.[a-z0-9]+)?", re.ASCII
)


_StartSeconds = Annotated[
    float, Field(ge=0, le=MAX_CLIP_SECONDS, description="From the start of the clip.")
]


class Cue(BaseModel):
    """A prompt for a range of the sound's time, in place of the request's own or beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    start_seconds: _StartSeconds
    stop_seconds: Annotated[
        float,
        Field(
            ge=0,
            le=MAX_CLIP_SECONDS,
            description=f"At least {MIN_CUE_SECONDS:g} s after start_seconds. A cue that lasts "
            "longer than the sound ends with it.",
        ),
    ]
    prompt: Annotated[
        str, Field(min_length=1, max_length=2000, description="What should be heard, in words.")
    ]
    negative_prompt: Annotated[
        str | None,
        Field(
            max_length=2000,
            description="What should not be heard in it. Absent: the request's negative prompt.",
        ),
    ] = None
    gain_db: Annotated[
        float,
        Field(ge=-60, le=24, description="Gain of the sound in its range, with soft edges."),
    ] = 0.0
    mode: Annotated[
        CueMode,
        Field(
            description="replace: its prompt takes the place of the request's. add: it is heard "
            "together with that."
        ),
    ] = "replace"

    @field_validator("stop_seconds")
    @classmethod
    def _check_length(cls, value: float, info: ValidationInfo) -> float:
        return _check_span(value, info, MIN_CUE_SECONDS)


class EditRange(BaseModel):
    """A range of a sound's time that is made anew."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    start_seconds: _StartSeconds
    stop_seconds: Annotated[
        float,
        Field(
            ge=0,
            le=MAX_CLIP_SECONDS,
            description=f"At least {MIN_RANGE_SECONDS:g} s after start_seconds. A range that lasts "
            "longer than the sound ends with it.",
        ),
    ]

    @field_validator("stop_seconds")
    @classmethod
    def _check_length(cls, value: float, info: ValidationInfo) -> float:
        return _check_span(value, info, MIN_RANGE_SECONDS)


class Edit(BaseModel):
    """A sound to start from, and what of it is made anew."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    source: Annotated[
        str,
        Field(
            min_length=1,
            max_length=MAX_ADDRESS_CHARACTERS,
            description="The sound to start from. `original` is the clip's own sound. `file` is "
            "the file `edit_source` of the request. The id of an earlier request or job is its "
            "result, or ID/FILE one of its files, such as ID/foley-2.wav. An https, http "
            "or s3 address, or a data: URI of at most 4 MB, works as for `clip_url`.",
        ),
    ]
    ranges: Annotated[
        tuple[EditRange, ...],
        Field(
            max_length=MAX_RANGES,
            description="What is made anew: objects with `start_seconds` and `stop_seconds`. "
            "Outside of them the sound is that of the source; inside, it begins and ends with a "
            "crossfade. Absent: the whole sound with `strength`, else what follows a source that "
            "is shorter than the sound.",
        ),
    ] = ()
    strength: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="How far the new sound may go from the source: 0 gives the source back, as "
            "the model's autoencoder hears it, and 1 takes nothing from it. Absent: 1.",
        ),
    ] = None

    @field_validator("source")
    @classmethod
    def _check_source(cls, value: str) -> str:
        if not is_address(value) and not _RESULT.fullmatch(value):
            raise PydanticCustomError(
                "source",
                "must be original, file, the id of an earlier request or job with or without one "
                "of its files, such as ID/foley-2.wav, or an address",
            )
        return value

    @property
    def is_original(self) -> bool:
        """Whether the source is the clip's own sound."""
        return self.source == "original"

    @property
    def is_sent(self) -> bool:
        """Whether the source is a file of the request."""
        return self.source == "file"


class Layer(BaseModel):
    """One of several sounds for the same clip, and its place in their mix."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    prompt: Annotated[
        str,
        Field(min_length=1, max_length=2000, description="What this layer should be, in words."),
    ]
    negative_prompt: Annotated[
        str | None,
        Field(
            max_length=2000,
            description="What should not be heard in it. Absent: the request's negative prompt.",
        ),
    ] = None
    cues: Annotated[
        tuple[Cue, ...],
        Field(max_length=MAX_CUES, description="Prompts for ranges of time, in this layer."),
    ] = ()
    seed: Annotated[
        int | None,
        Field(
            ge=0,
            le=MAX_SEED,
            description="Repeats this layer. Absent: the request's seed for the first layer, and "
            "the next ones count up from it.",
        ),
    ] = None
    gain_db: Annotated[
        float, Field(ge=-60, le=24, description="Gain of this layer in the mix.")
    ] = 0.0
    pan: Annotated[
        float,
        Field(
            ge=-1,
            le=1,
            description="Where this layer is heard, from -1 (left) to 1 (right). It lowers the "
            "other side and raises nothing.",
        ),
    ] = 0.0
    mute: Annotated[
        bool, Field(description="Whether the mix is without this layer; its file is made.")
    ] = False
    solo: Annotated[
        bool,
        Field(description="Whether the mix has only the layers with solo; all files are made."),
    ] = False

    @field_validator("cues")
    @classmethod
    def _check_cues(cls, value: tuple[Cue, ...]) -> tuple[Cue, ...]:
        return _sort_cues(value)

    @field_validator("solo")
    @classmethod
    def _check_mute(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("mute"):
            raise PydanticCustomError(
                "conflict", "cannot be combined with mute; leave out one of them"
            )
        return value


class Prompts(NamedTuple):
    """What one sound is told.

    Attributes:
        prompt: what should be heard.
        negative_prompt: what should not be heard.
        cues: prompts for ranges of time, in order.
    """

    prompt: str
    negative_prompt: str
    cues: tuple[Cue, ...] = ()

    def list_texts(self) -> dict[str, str]:
        """Return all texts by what errors call them: the rows of the conditions' text tokens.

        These are the negative prompt, the prompt, what is heard in each cue, and the negative
        prompts that cues have of their own.
        """
        texts = {"negative_prompt": self.negative_prompt, "prompt": self.prompt}
        for number, cue in enumerate(self.cues, start=1):
            is_added = cue.mode == "add" and self.prompt.strip()
            texts[f"cue {number}"] = f"{self.prompt}, {cue.prompt}" if is_added else cue.prompt
        for number, cue in enumerate(self.cues, start=1):
            if cue.negative_prompt is not None:
                texts[f"the negative_prompt of cue {number}"] = cue.negative_prompt
        return texts


# What layers take the place of, and what to do instead.
_WITHOUT_LAYERS = {
    "prompt": "give each layer its prompt",
    "cues": "give them to a layer",
    "num_variations": "send a request for each variation",
}
_EXAMPLES = {
    "cues": '[{"start_seconds": 1, "stop_seconds": 2, "prompt": "rain"}]',
    "adapters": '[{"name": "glass", "scale": 0.8}]',
    "layers": '[{"prompt": "rain"}, {"prompt": "footsteps", "gain_db": -6}]',
    "edit": '{"source": "original", "ranges": [{"start_seconds": 1, "stop_seconds": 2}]}',
}


class AdapterUse(BaseModel):
    """An adapter that changes the model for one request, and how strongly."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Annotated[
        str, Field(min_length=1, max_length=64, description="One of those that the model lists.")
    ]
    scale: Annotated[
        float,
        Field(
            ge=0,
            le=MAX_ADAPTER_SCALE,
            description="0 for the model as it is, 1 for the adapter as it was trained.",
        ),
    ] = 1.0


class GenerationRequest(BaseModel):
    """The options of one generation, in Python and in every interface of the service."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    prompt: Annotated[
        str,
        Field(
            max_length=2000,
            description="What should be heard, in words. Where empty, the picture alone decides.",
        ),
    ] = ""
    negative_prompt: Annotated[
        str, Field(max_length=2000, description="What should not be heard, in words.")
    ] = "noisy, harsh"
    guidance_scale: Annotated[
        float | None,
        Field(
            ge=1.0,
            le=20.0,
            description="How strongly the sound follows prompt and picture. "
            "1 switches guidance off, and the negative prompt with it. Absent: what the model's "
            f"weights want, {TINY_GUIDANCE:g} for tiny and {OFFICIAL_GUIDANCE:g} for the official "
            "ones.",
        ),
    ] = None
    num_inference_steps: Annotated[
        int | None,
        Field(
            ge=1,
            le=200,
            description="Solver steps from noise to sound. Absent: as many as the model's "
            f"weights want, {TINY_PLAN.num_inference_steps} for tiny and "
            f"{OFFICIAL_PLAN.num_inference_steps} for the official ones.",
        ),
    ] = None
    solver: Annotated[
        Solver | None,
        Field(
            description="ODE solver. Absent: euler. A step of heun or midpoint costs two model "
            "evaluations, one of rk4 four, one of euler or ab2 one. ab2 (two-step "
            "Adams-Bashforth) is more exact than euler from about eight steps on."
        ),
    ] = None
    schedule_shift: Annotated[
        float | None,
        Field(
            ge=1.0,
            le=20.0,
            description="How many of the steps lie near pure noise, where the sound takes shape. "
            "1: all steps are equal. Absent: what the model's weights want, "
            f"{TINY_PLAN.schedule_shift:g} for tiny and {OFFICIAL_PLAN.schedule_shift:g} for the "
            "official ones.",
        ),
    ] = None
    guidance_interval: Annotated[
        float | None,
        Field(
            ge=0.0,
            le=1.0,
            description="Lowest noise level, from 1 (noise) to 0 (sound), at which a step is "
            "guided. The steps below cost half. 0: all steps are guided. Absent: what the model's "
            f"weights want, {TINY_PLAN.guidance_interval:g} for tiny and "
            f"{OFFICIAL_PLAN.guidance_interval:g} for the official ones.",
        ),
    ] = None
    quality: Annotated[
        Quality | None,
        Field(
            description="Chooses num_inference_steps, solver, schedule_shift and "
            "guidance_interval together, and cannot be combined with them. "
            f"reference is {QUALITIES['reference'].num_inference_steps} equal steps of euler. "
            "balanced is "
            f"{QUALITIES['balanced'].num_inference_steps} steps of ab2 and fast "
            f"{QUALITIES['fast'].num_inference_steps} of euler, both with a schedule_shift of "
            f"{QUALITIES['balanced'].schedule_shift:g} and a guidance_interval of "
            f"{QUALITIES['balanced'].guidance_interval:g}. Nobody has compared these two by ear "
            "with the official weights."
        ),
    ] = None
    seed: Annotated[
        int | None,
        Field(
            ge=0,
            le=MAX_SEED,
            description="Seed of the first variation; the next ones count up from it. "
            "Drawn at random when absent, and always returned.",
        ),
    ] = None
    num_variations: Annotated[
        int, Field(ge=1, le=8, description="How many different sounds to make for the clip.")
    ] = 1
    cues: Annotated[
        tuple[Cue, ...],
        Field(
            max_length=MAX_CUES,
            description="Prompts for ranges of time, in place of `prompt`: objects with "
            "`start_seconds`, `stop_seconds` and `prompt`, and optionally `negative_prompt`, "
            "`gain_db` and `mode`. They may touch and must not overlap. In a form, a JSON list.",
        ),
    ] = ()
    layers: Annotated[
        tuple[Layer, ...],
        Field(
            max_length=MAX_LAYERS,
            description="Sounds for the same clip that are made side by side and mixed: objects "
            "with `prompt`, and optionally `negative_prompt`, `cues`, `seed`, `gain_db`, `pan`, "
            "`mute` and `solo`. The result is the mix, and each layer as a wav or flac beside it. "
            "They take the place of `prompt`, `cues` and `num_variations`. In a form, a JSON list.",
        ),
    ] = ()
    duration_seconds: Annotated[
        float | None,
        Field(
            ge=MIN_SOUND_SECONDS,
            le=MAX_CLIP_SECONDS,
            description="Length of a sound without a clip, for which the prompt alone decides and "
            "which needs a prompt or layers. Or how long a still picture is shown, which is sent "
            "as the clip (PNG, JPEG, WebP, BMP or TIFF). A video decides its own length.",
        ),
    ] = None
    edit: Annotated[
        Edit | None,
        Field(
            description="A sound to start from, of which a part is made anew, or all of it is "
            "varied: an object with `source`, and optionally `ranges` and `strength`. It cannot be "
            "combined with `layers`. In a form, a JSON object."
        ),
    ] = None

    @field_validator("edit", mode="before")
    @classmethod
    def _read_edit(cls, value: object) -> object:
        return _read_json(value, _EXAMPLES["edit"], "object")

    @field_validator("edit")
    @classmethod
    def _check_edit(cls, value: Edit | None, info: ValidationInfo) -> Edit | None:
        if value is None:
            return value
        if info.data.get("layers"):
            raise PydanticCustomError(
                "conflict",
                "cannot be combined with layers; leave one of them out, or edit a layer's file",
            )
        if value.is_original and info.data.get("duration_seconds") is not None:
            raise PydanticCustomError(
                "conflict",
                "has source original, which is a clip's own sound, and with duration_seconds there "
                "is none; use another source, or a clip",
            )
        return value

    adapters: Annotated[
        tuple[AdapterUse, ...],
        Field(
            max_length=MAX_ADAPTERS,
            description="Adapters that change the model for this request: objects with `name` and "
            "`scale`. `GET /v1/models` lists those of the service. In a form, a JSON list, or "
            "`name:scale` for each, separated by commas.",
        ),
    ] = ()

    @field_validator("adapters", mode="before")
    @classmethod
    def _read_adapters(cls, value: object) -> object:
        if not isinstance(value, str) or value.lstrip().startswith("["):
            return _read_json(value, _EXAMPLES["adapters"])
        parts = [part.strip() for part in value.split(",")]
        return [parse_adapter_use(part) for part in parts if part]

    @field_validator("adapters")
    @classmethod
    def _check_repeats(cls, value: tuple[AdapterUse, ...]) -> tuple[AdapterUse, ...]:
        names = [use.name for use in value]
        for name in names:
            if names.count(name) > 1:
                raise PydanticCustomError(
                    "repeat", "{name} is given twice; give it once", {"name": name}
                )
        return value

    avoid_speech: Annotated[
        AvoidSpeech,
        Field(
            description="What becomes of speech that nobody asked for. report measures its seconds "
            "in each sound. retry also draws other seeds while there is some, and returns the "
            "cleanest sounds; `max_retries` limits it."
        ),
    ] = "off"
    max_retries: Annotated[
        int,
        Field(
            ge=1,
            le=8,
            description="How often other seeds are drawn at most, with avoid_speech retry. Each "
            "retry takes as long as the first attempt.",
        ),
    ] = 2

    @field_validator("cues", "layers", mode="before")
    @classmethod
    def _read_lists(cls, value: object, info: ValidationInfo) -> object:
        assert info.field_name is not None
        return _read_json(value, _EXAMPLES[info.field_name])

    @field_validator("cues")
    @classmethod
    def _check_cues(cls, value: tuple[Cue, ...]) -> tuple[Cue, ...]:
        return _sort_cues(value)

    @field_validator("layers")
    @classmethod
    def _check_layers(cls, value: tuple[Layer, ...], info: ValidationInfo) -> tuple[Layer, ...]:
        if not value:
            return value
        for name, remedy in _WITHOUT_LAYERS.items():
            given = info.data.get(name)  # absent where it was refused itself
            if given is not None and given != cls.model_fields[name].default:
                raise PydanticCustomError(
                    "conflict",
                    "cannot be combined with {name}; leave {name} out, and {remedy}",
                    {"name": name, "remedy": remedy},
                )
        if all(layer.mute for layer in value):
            raise PydanticCustomError(
                "silent", "have mute in each of them; leave it out of at least one"
            )
        return value

    @field_validator("max_retries")
    @classmethod
    def _check_retries(cls, value: int, info: ValidationInfo) -> int:
        given = info.data.get("avoid_speech", "retry")  # absent where it was refused itself
        if given != "retry" and value != cls.model_fields["max_retries"].default:
            raise PydanticCustomError(
                "conflict",
                "cannot be combined with avoid_speech {given}; use avoid_speech retry, or leave "
                "it out",
                {"given": given},
            )
        return value

    @field_validator("quality")
    @classmethod
    def _check_conflicts(cls, value: Quality | None, info: ValidationInfo) -> Quality | None:
        given = [name for name in SamplingPlan._fields if info.data.get(name) is not None]
        if value is not None and given:
            raise PydanticCustomError(
                "conflict",
                "cannot be combined with {names}; leave out quality or {names}",
                {"names": " and ".join(given)},
            )
        return value

    def check_without_clip(self) -> None:
        """Check the options of a sound without a clip.

        Raises:
            ParameterError: there is no length, or nothing says what is heard.
        """
        if self.duration_seconds is None:
            raise ParameterError(
                "duration_seconds: missing; give it and a prompt for a sound without a clip"
            )
        if not self.layers and not self.prompt.strip():
            raise ParameterError(
                "duration_seconds: needs a prompt or layers, which without a clip alone decide "
                f"what is heard, got {self.duration_seconds:g}"
            )

    def of_clip(self) -> "GenerationRequest":
        """Return the options as the model takes them for a clip, whose frames are its length."""
        return self.model_copy(update={"duration_seconds": None})

    @property
    def num_sounds(self) -> int:
        """How many sounds are sampled: variations, or layers."""
        return len(self.layers) or self.num_variations

    @property
    def is_stereo(self) -> bool:
        """Whether a layer has a pan."""
        return any(layer.pan for layer in self.layers)

    @property
    def has_original(self) -> bool:
        """Whether the new sound holds the clip's own."""
        return self.edit is not None and self.edit.is_original

    def list_prompts(self) -> tuple[Prompts, ...]:
        """Return the words of each layer; without layers, those of all variations."""
        if not self.layers:
            return (Prompts(self.prompt, self.negative_prompt, self.cues),)
        return tuple(
            Prompts(
                layer.prompt,
                self.negative_prompt if layer.negative_prompt is None else layer.negative_prompt,
                layer.cues,
            )
            for layer in self.layers
        )

    def choose_sampling(self, preset: Preset) -> SamplingPlan:
        """Return the sampler's options with `preset`; no quality and no option: its defaults."""
        if self.quality is not None:
            return QUALITIES[self.quality]
        given = {name: getattr(self, name) for name in SamplingPlan._fields}
        return preset.default_plan._replace(**{k: v for k, v in given.items() if v is not None})

    def choose_guidance(self, preset: Preset) -> float:
        """Return the guidance scale, 1 to 20, with `preset`."""
        return preset.default_guidance if self.guidance_scale is None else self.guidance_scale

    @classmethod
    def parse(cls, **options: Any) -> Self:
        """Return the request with these options.

        Args:
            options: by field name; the others have their defaults.

        Raises:
            ParameterError: options are unknown or out of range; the message names each of them with
                its value.
        """
        try:
            return cls(**options)
        except ValidationError as error:
            known = cls.model_fields
            raise ParameterError(describe_validation_error(error, known)) from error


def _sort_cues(value: tuple[Cue, ...]) -> tuple[Cue, ...]:
    """Return cues in order; two of them must not overlap."""
    cues = tuple(sorted(value, key=lambda cue: cue.start_seconds))
    for first, second in itertools.pairwise(cues):
        if second.start_seconds < first.stop_seconds:
            raise PydanticCustomError(
                "overlap",
                "{first} and {second} overlap; end the first one where the second one starts",
                {"first": _describe_cue(first), "second": _describe_cue(second)},
            )
    return cues


def _check_span(stop: float, info: ValidationInfo, least_seconds: float) -> float:
    """Return the end of a range, which must be so many seconds after its start."""
    start = info.data.get("start_seconds", stop - 1)
    if stop < start + least_seconds - 1e-9:
        raise PydanticCustomError(
            "too_short",
            "must be at least {least} s after start_seconds, which is {start}",
            {"least": f"{least_seconds:g}", "start": f"{start:g}"},
        )
    return stop


def is_address(text: str) -> bool:
    """Whether a text is meant as an address: https, http, s3 or a data: URI.

    Args:
        text: any.
    """
    return _ADDRESS.match(text) is not None


def _read_json(value: object, example: str, kind: str = "list") -> object:
    """Return the content of a text of JSON; another value as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise PydanticCustomError(
            "json", "must be a JSON {kind} such as {example}", {"kind": kind, "example": example}
        ) from error


def parse_adapter_use(text: str) -> dict[str, str]:
    """Return the fields of an `AdapterUse`, not yet checked, from `name` or `name:scale`.

    Args:
        text: of a command line or a form.
    """
    name, colon, scale = text.partition(":")
    return {"name": name.strip(), "scale": scale.strip()} if colon else {"name": name.strip()}


def check_part(
    start_seconds: float, frame_rate: float | None, duration_seconds: float | None = None
) -> None:
    """Check the options that say which part of a clip is used, and how fast pictures follow.

    Args:
        start_seconds: of the part.
        frame_rate: of numbered pictures; None for a video.
        duration_seconds: of a still picture, or a sound without a clip; None for other clips.

    Raises:
        ParameterError: one is out of bounds, or does not fit a `duration_seconds`.
    """
    for name, value in (("start_seconds", start_seconds), ("frame_rate", frame_rate)):
        if duration_seconds is not None and value:
            raise ParameterError(
                f"{name}: got {value:g} and duration_seconds {duration_seconds:g}, which is the "
                "length of a sound without a clip or of a still picture; leave one of them out"
            )
    if not 0 <= start_seconds <= MAX_START_SECONDS:
        raise ParameterError(
            f"start_seconds: must be from 0 to {MAX_START_SECONDS:g}, got {start_seconds:g}"
        )
    if frame_rate is not None and not MIN_FRAME_RATE <= frame_rate <= MAX_FRAME_RATE:
        raise ParameterError(
            f"frame_rate: must be from {MIN_FRAME_RATE:g} to {MAX_FRAME_RATE:g}, got {frame_rate:g}"
        )


def check_adapter_names(names: Iterable[str], known: Iterable[str]) -> None:
    """Check that all adapters of a request exist.

    Args:
        names: that the request asks for.
        known: of the model.

    Raises:
        ParameterError: one does not; the message lists those that do.
    """
    known = sorted(known)
    for name in names:
        if name not in known:
            offer = f"there are {', '.join(known)}" if known else "the model has none"
            raise ParameterError(f"adapters: no adapter is called {name!r}; {offer}")


def _describe_cue(cue: Cue) -> str:
    return f"{cue.start_seconds:g}-{cue.stop_seconds:g} s ({cue.prompt[:40]})"


# Objects in options, by the name of the field that holds them.
_PARTS: dict[str, type[BaseModel]] = {
    "cues": Cue,
    "layers": Layer,
    "edit": Edit,
    "ranges": EditRange,
    "adapters": AdapterUse,
}


def describe_validation_error(error: ValidationError, known: Iterable[str] = ()) -> str:
    """Return a line that names each refused field, its rule, and its value cut to 80 characters.

    Args:
        error: of a model whose fields are options of a caller.
        known: names of all fields, of which a similar one is proposed for an unknown one.
    """
    lines = []
    for item in error.errors(include_url=False):
        name = ".".join(str(part) for part in item["loc"]) or "request"
        given = repr(item["input"])
        given = given if len(given) <= 80 else given[:77] + "..."
        rule = item["msg"][0].lower() + item["msg"][1:]
        # Pydantic's words for these are Python's.
        if item["type"] == "too_long":
            limits = item["ctx"]
            rule, given = f"at most {limits['max_length']} are possible", limits["actual_length"]
        elif item["type"] == "tuple_type":
            rule = "input should be a list"
        elif item["type"] == "string_too_short" and item["ctx"]["min_length"] == 1:
            rule = "must not be empty"
        elif item["type"] == "byte_size":
            rule = "must be a number of bytes, such as 1048576, 512MiB or 2GB"
        elif item["type"] == "extra_forbidden":
            rule = "there is no such option"
            *place, unknown = map(str, item["loc"])
            parts = [_PARTS[part] for part in place if part in _PARTS]
            names = parts[-1].model_fields if parts else known
            nearest = difflib.get_close_matches(unknown, names, n=1)
            rule += f" (did you mean {nearest[0]}?)" if nearest else ""
        lines.append(f"{name}: {rule}, got {given}")
    return "; ".join(lines)

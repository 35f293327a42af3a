"""The options of a generation: the only definition of their meaning, range and default."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from foley.configs import OFFICIAL_GUIDANCE, OFFICIAL_STEPS, TINY_GUIDANCE, TINY_STEPS, Preset
from foley.errors import ParameterError

Solver = Literal["euler", "heun", "midpoint", "rk4", "ab2"]
SOLVERS: tuple[Solver, ...] = get_args(Solver)
AudioFormat = Literal["wav", "flac"]  # the sound alone
AUDIO_FORMATS: tuple[AudioFormat, ...] = get_args(AudioFormat)
Format = Literal["mp4", "mov", "mkv", "webm", "wav", "flac"]

MAX_SEED = 2**63 - 1


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
            f"weights want, {TINY_STEPS} for tiny and {OFFICIAL_STEPS} for the official ones.",
        ),
    ] = None
    solver: Annotated[
        Solver,
        Field(
            description="ODE solver. A step of heun or midpoint costs two model evaluations, "
            "one of rk4 four, one of euler or ab2 one. ab2 (two-step Adams-Bashforth) is more "
            "exact than euler from about eight steps on."
        ),
    ] = "euler"
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

    def choose_steps(self, preset: Preset) -> int:
        """Return the number of solver steps, 1 to 200, with `preset`."""
        return self.num_inference_steps or preset.default_steps

    def choose_guidance(self, preset: Preset) -> float:
        """Return the guidance scale, 1 to 20, with `preset`."""
        return preset.default_guidance if self.guidance_scale is None else self.guidance_scale

    @classmethod
    def parse(cls, **options: Any) -> "GenerationRequest":
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
            raise ParameterError(describe_validation_error(error)) from error


def describe_validation_error(error: ValidationError) -> str:
    """Return a line that names each refused field, its rule, and its value cut to 80 characters.

    Args:
        error: of a model whose fields are options of a caller.
    """
    lines = []
    for item in error.errors(include_url=False):
        name = ".".join(str(part) for part in item["loc"]) or "request"
        given = repr(item["input"])
        given = given if len(given) <= 80 else given[:77] + "..."
        rule = item["msg"][0].lower() + item["msg"][1:]
        lines.append(f"{name}: {rule}, got {given}")
    return "; ".join(lines)

"""The messages between the API's processes and the GPU runner.

API ── RunnerRequest ──────────────────────────────────────────► runner
    ◄── RunnerEvent: admitted, progress and pieces *, result or an error ──
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from foley.errors import FoleyError, make_error
from foley.request import GenerationRequest
from foley.types import Stage

Priority = Literal["interactive", "bulk"]


class RunnerRequest(BaseModel):
    """One request, as the API sends it to the runner before it decodes the clip.

    Attributes:
        id: unique among all requests of the server; the caller's request id need not be.
        owner: who takes turns with others; see `runners.auth.caller_of`.
        priority: interactive or bulk.
        folder: of the request. The API leaves the frames there, and the runner the waveforms.
        options: of the generation.
        timeout_seconds: the time that is left for the request.
        early: whether the beginning of a short sound is wanted ahead of the rest.
        trace: the span that the runner's spans belong to; see `runners.tracing`.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    owner: str = ""
    priority: Priority = "interactive"
    folder: str
    options: GenerationRequest
    timeout_seconds: float
    early: bool = False
    trace: dict[str, str] = {}

    @property
    def path(self) -> Path:
        """The folder as a path. BentoML would take a field of this type for an upload."""
        return Path(self.folder)


class ProgressUpdate(BaseModel):
    """The progress of a request.

    Attributes:
        stage: the current one.
        queue_position: in the stage `QUEUE`, the number of requests before it.
        step: in the stage `SAMPLE`, the solver steps that are done.
        num_steps: in the stage `SAMPLE`, all solver steps.
    """

    model_config = ConfigDict(frozen=True)

    stage: Stage
    queue_position: int | None = None
    step: int | None = None
    num_steps: int | None = None


OnProgressUpdate = Callable[[ProgressUpdate], None]


class FinishedPiece(BaseModel):
    """A piece of a sound that is final, and lies in the file of the sound.

    Attributes:
        variation: counted from 1.
        number: of the piece, counted from 1; each begins where the one before it ends.
        seed: of the variation.
        start_seconds: from the start of the sound.
        duration_seconds: of the piece.
        sample_rate: Hz.
        is_beginning: whether it is that of a short sound, in a file of its own; the result has the
            rest.
    """

    model_config = ConfigDict(frozen=True)

    variation: int
    number: int
    seed: int
    start_seconds: float
    duration_seconds: float
    sample_rate: int
    is_beginning: bool = False


OnPiece = Callable[[FinishedPiece], None]


class RunnerResult(BaseModel):
    """The description of the waveforms that the runner left in the request's folder.

    Attributes:
        seeds: one for each waveform.
        layer_seeds: one for each layer.
        speech_seconds: in each waveform, where it was asked for.
        layer_speech_seconds: in each layer, where it was asked for.
        sample_rate: Hz.
        duration_seconds: of each waveform.
        timings: seconds of each stage in the runner, in order.
        device_seconds: that the model's devices have worked on the request; of an evaluation that
            it shared with others, its part.
        notices: sentences for the caller.
    """

    model_config = ConfigDict(frozen=True)

    seeds: tuple[int, ...]
    layer_seeds: tuple[int, ...] = ()
    speech_seconds: tuple[float, ...] = ()
    layer_speech_seconds: tuple[float, ...] = ()
    sample_rate: int
    duration_seconds: float
    timings: dict[str, float]
    device_seconds: float = 0.0
    notices: tuple[str, ...]


class RunnerEvent(BaseModel):
    """One event in the life of a request, as a line of JSON: exactly one of the first five.

    The first event is `admitted`, or an error that refuses the request. The last one is the result
    or an error. An error travels as its code and message, because an exception would lose its class
    between processes.

    Attributes:
        admitted: whether the request has got a place.
        progress: of the request.
        piece: of its sound that is final.
        result: its description, when it is finished.
        error: its code and message, when it has failed.
        retry_after_seconds: of an error, when to try again.
    """

    model_config = ConfigDict(frozen=True)

    admitted: bool = False
    progress: ProgressUpdate | None = None
    piece: FinishedPiece | None = None
    result: RunnerResult | None = None
    error: tuple[str, str] | None = None
    retry_after_seconds: float | None = None

    @classmethod
    def from_error(cls, error: FoleyError) -> "RunnerEvent":
        """Return the event that reports an error."""
        return cls(error=(error.code, str(error)), retry_after_seconds=error.retry_after_seconds)

    def to_error(self) -> FoleyError:
        """Return the error that the event reports."""
        assert self.error is not None
        error = make_error(*self.error)
        error.retry_after_seconds = self.retry_after_seconds
        return error

    def to_line(self) -> str:
        """Return the event as a line of JSON."""
        return self.model_dump_json(exclude_none=True) + "\n"


class AdapterStatus(BaseModel):
    """An adapter that a request may ask for.

    Attributes:
        name: by which a request asks for it.
        rank: of its largest layer.
        about: a line for people; may be empty.
        trigger: a prompt that suits it; may be empty.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    rank: int
    about: str = ""
    trigger: str = ""


class ModelStatus(BaseModel):
    """The state and the description of the runner's model.

    Attributes:
        state: loading, ready or failed.
        error_code: why loading failed.
        preset: its name, as the fields below once the model is ready.
        about: what it can do; empty for the official models.
        prompts: that suit it, to start from.
        num_inference_steps: of a request that gives none.
        guidance_scale: of a request that gives none.
        description: for the log; it may name a folder.
        revision: of the weights' repository; empty if unknown.
        licence: of the weights.
        territory: where the licence applies.
        adapters: that a request may ask for, by name.
    """

    model_config = ConfigDict(frozen=True)

    state: Literal["loading", "ready", "failed"]
    error_code: str = ""
    preset: str = ""
    about: str = ""
    prompts: tuple[str, ...] = ()
    num_inference_steps: int = 0
    guidance_scale: float = 0.0
    description: str = ""
    revision: str = ""
    licence: str = ""
    territory: str = ""
    adapters: tuple[AdapterStatus, ...] = ()

    def to_public(self) -> dict[str, Any]:
        """Return what callers may know of a ready model."""
        return self.model_dump(exclude={"error_code", "description"})

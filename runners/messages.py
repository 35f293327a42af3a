"""What the API and the runner say to each other."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from foley.errors import FoleyError, error_of
from foley.request import GenerationRequest
from foley.types import Stage

Priority = Literal["interactive", "bulk"]


class RunnerRequest(BaseModel):
    """One request, as the API hands it to the runner."""

    model_config = ConfigDict(frozen=True)

    id: str  # unique among all jobs; the caller's request id need not be
    priority: Priority = "interactive"
    folder: str  # holds the frames, and receives the waveforms
    request: GenerationRequest
    timeout_seconds: float  # what is left of the caller's time
    trace: dict[str, str] = {}  # the span that it is part of; see runners.tracing

    @property
    def path(self) -> Path:
        """The folder; sent as text, since BentoML takes a Path for an upload."""
        return Path(self.folder)


class ProgressUpdate(BaseModel):
    """How far a job has come."""

    model_config = ConfigDict(frozen=True)

    stage: Stage
    queue_position: int | None = None  # while queued: how many go before it
    step: int | None = None  # while sampling: solver steps done
    num_steps: int | None = None


class RunnerResult(BaseModel):
    """What the runner says about the waveforms that it left in the job's folder."""

    model_config = ConfigDict(frozen=True)

    seeds: tuple[int, ...]
    sample_rate: int  # Hz
    duration_seconds: float
    timings: dict[str, float]  # seconds in each stage, in order
    notices: tuple[str, ...]
    next_place_seconds: float | None = None  # after how long the next request is done, as measured


class RunnerEvent(BaseModel):
    """One line of what the runner tells about a job: exactly one of the three.

    Updates come first; the last line is what came of the job. Exceptions lose their class between
    processes, so an error travels as its code and message.
    """

    model_config = ConfigDict(frozen=True)

    update: ProgressUpdate | None = None
    made: RunnerResult | None = None
    error: tuple[str, str] | None = None  # code, message
    retry_after_seconds: float | None = None  # of an error, when to come again

    @classmethod
    def of(cls, error: FoleyError) -> "RunnerEvent":
        """What an error is told as."""
        return cls(error=(error.code, str(error)), retry_after_seconds=error.retry_after_seconds)

    def failure(self) -> FoleyError:
        """The error that is told."""
        assert self.error is not None
        error = error_of(*self.error)
        error.retry_after_seconds = self.retry_after_seconds
        return error

    def line(self) -> str:
        """The report as it travels."""
        return self.model_dump_json(exclude_none=True) + "\n"


class ModelStatus(BaseModel):
    """What is loaded, and whether it is warm."""

    model_config = ConfigDict(frozen=True)

    state: Literal["loading", "ready", "failed"]
    error_code: str = ""  # why it failed
    preset: str = ""
    about: str = ""  # what it is and is not; empty where its publisher tells
    num_inference_steps: int = 0  # where a request names none
    guidance_scale: float = 0.0  # likewise
    description: str = ""
    revision: str = ""  # of the weights' repository; empty where it is not known
    licence: str = ""
    territory: str = ""  # where the licence applies

    def public(self) -> dict[str, str | float]:
        """What callers are told of a warm model; the description may name a folder."""
        return self.model_dump(exclude={"error_code", "description"})

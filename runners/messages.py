"""What the API and the runner say to each other."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from foley.request import GenerationRequest


class Job(BaseModel):
    """One request, as the API hands it to the runner."""

    model_config = ConfigDict(frozen=True)

    id: str  # unique among all jobs; the caller's request id need not be
    folder: str  # holds the frames, and receives the waveforms
    request: GenerationRequest
    timeout_seconds: float  # what is left of the caller's time

    @property
    def path(self) -> Path:
        """The folder; sent as text, since BentoML takes a Path for an upload."""
        return Path(self.folder)


class Made(BaseModel):
    """What the runner says about the waveforms that it left in the job's folder."""

    model_config = ConfigDict(frozen=True)

    seeds: tuple[int, ...]
    sample_rate: int  # Hz
    duration_seconds: float
    timings: dict[str, float]  # seconds in each stage, in order
    notices: tuple[str, ...]


class Outcome(BaseModel):
    """What came of a job: exactly one of the two. Exceptions lose their class between processes."""

    model_config = ConfigDict(frozen=True)

    made: Made | None = None
    error: tuple[str, str] | None = None  # code, message


class ModelStatus(BaseModel):
    """What is loaded, and whether it is warm."""

    model_config = ConfigDict(frozen=True)

    state: Literal["loading", "ready", "failed"]
    error_code: str = ""  # why it failed
    preset: str = ""
    trained: bool = False
    description: str = ""
    revision: str = ""  # of the weights' repository; empty where it is not known
    licence: str = ""
    territory: str = ""  # where the licence applies

    def public(self) -> dict[str, str | bool]:
        """What callers are told of a warm model; the description may name a folder."""
        return self.model_dump(exclude={"error_code", "description"})

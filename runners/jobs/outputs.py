"""What one finished job is: its files, and what the caller is told beside them."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runners.jobs.job import GenerationJob
from runners.messages import ModelStatus, RunnerResult


@dataclass(frozen=True, kw_only=True)
class SoundFile:
    """A file with one sound, beside the clip's picture or alone."""

    path: Path
    container: str  # mkv where the one asked for cannot hold the picture
    notices: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ResultMetadata:
    """What the caller is told beside the sound."""

    request_id: str
    model: ModelStatus
    made: RunnerResult
    timings: dict[str, float]  # seconds in each stage, in order
    notices: list[str] = field(default_factory=list)

    def headers(self) -> dict[str, str]:
        """The facts as headers; sentences as JSON, since headers are ASCII."""
        durations = (f"{stage};dur={1000 * seconds:.1f}" for stage, seconds in self.timings.items())
        return {
            "X-Foley-Seed": ", ".join(str(seed) for seed in self.made.seeds),
            "X-Foley-Duration-Seconds": f"{self.made.duration_seconds:.6f}",
            "X-Foley-Timings": json.dumps(rounded(self.timings)),
            "Server-Timing": ", ".join(durations),
            "X-Foley-Model": self.model.preset,
            "X-Foley-Notices": json.dumps(self.notices),
        }

    def summary(self) -> dict[str, Any]:
        """The facts as JSON."""
        return {
            "request_id": self.request_id,
            "model": self.model.preset,
            "duration_seconds": self.made.duration_seconds,
            "sample_rate_hz": self.made.sample_rate,
            "timings_seconds": rounded(self.timings),
            "notices": self.notices,
        }

    def manifest(self, sounds: list[SoundFile]) -> dict[str, Any]:
        """The facts as the JSON file of a zip."""
        variations = [
            {"file": sound.path.name, "seed": seed}
            for sound, seed in zip(sounds, self.made.seeds, strict=True)
        ]
        return {**self.summary(), "variations": variations}


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What came of an order."""

    order: GenerationJob
    variations: list[tuple[SoundFile, ...]]  # of each, its files in the order's formats
    facts: ResultMetadata

    @property
    def sounds(self) -> list[SoundFile]:
        """One file for each variation, in the format asked for."""
        return [copies[0] for copies in self.variations]


def rounded(timings: dict[str, float]) -> dict[str, float]:
    """Seconds to the tenth of a millisecond."""
    return {stage: round(seconds, 4) for stage, seconds in timings.items()}

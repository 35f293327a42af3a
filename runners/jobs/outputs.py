"""The result of a job: its files, and what callers learn about them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foley.mix import LoudnessReport
from runners.messages import FinishedPiece


@dataclass(frozen=True, kw_only=True)
class OutputFile:
    """A file with one variation of the sound, together with the clip's picture or alone.

    Attributes:
        variation: counted from 1.
        layer: of which it is the stem, counted from 1; None for the mix, or without layers.
        seed: gives this variation or layer again.
        path: in the job's folder.
        container: mp4, mov, mkv, webm, wav or flac; mkv or mov where the one asked for cannot
            hold the clip's picture.
        loudness: as measured, where an option of the mix was given, or the job measures.
        speech_seconds: in the sound, where `avoid_speech` asked for it, or the job measures.
    """

    variation: int
    seed: int
    path: Path
    container: str
    loudness: LoudnessReport | None = None
    layer: int | None = None
    speech_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class PieceFile:
    """A piece of a long sound as a wav file, while the rest is being made.

    Attributes:
        piece: which one it is.
        path: in the job's folder.
    """

    piece: FinishedPiece
    path: Path


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """The result of one job.

    Attributes:
        request_id: of the request.
        preset: name of the model.
        seeds: of each variation.
        duration_seconds: of each variation.
        sample_rate: Hz.
        timings: seconds in each stage, by the names of `foley.types.Stage`, in the order in which
            they ended; "total" is the last.
        device_seconds: that the model's devices have worked on it; 0 where no model was needed.
        notices: sentences for the caller about what was done to the clip and to the prompts.
        files: by variation, then in the order of the job's formats; the layers come last.
    """

    request_id: str
    preset: str
    seeds: tuple[int, ...]
    duration_seconds: float
    sample_rate: int
    timings: dict[str, float]
    device_seconds: float
    notices: tuple[str, ...]
    files: tuple[OutputFile, ...]

    def headers(self) -> dict[str, str]:
        """Return the metadata as HTTP headers; sentences as JSON, since headers are ASCII."""
        measured = [
            file.loudness.model_dump(exclude_none=True) for file in self.files if file.loudness
        ]
        speech = [
            f"{file.speech_seconds:g}" for file in self.files if file.speech_seconds is not None
        ]
        durations = (f"{stage};dur={1000 * seconds:.1f}" for stage, seconds in self.timings.items())
        return {
            "X-Foley-Seed": ", ".join(str(seed) for seed in self.seeds),
            "X-Foley-Duration-Seconds": f"{self.duration_seconds:.6f}",
            "X-Foley-Timings": json.dumps(self.rounded_timings()),
            "Server-Timing": ", ".join(durations),
            "X-Foley-Model": self.preset,
            "X-Foley-Notices": json.dumps(self.notices),
            **({"X-Foley-Speech-Seconds": ", ".join(speech)} if speech else {}),
            **({"X-Foley-Loudness": json.dumps(measured)} if measured else {}),
        }

    def summary(self) -> dict[str, Any]:
        """Return the metadata as a JSON object, without the files."""
        return {
            "request_id": self.request_id,
            "model": self.preset,
            "duration_seconds": self.duration_seconds,
            "sample_rate_hz": self.sample_rate,
            "timings_seconds": self.rounded_timings(),
            "device_seconds": round(self.device_seconds, 4),
            "notices": list(self.notices),
        }

    def rounded_timings(self) -> dict[str, float]:
        """Return the timings to a tenth of a millisecond."""
        return {stage: round(seconds, 4) for stage, seconds in self.timings.items()}

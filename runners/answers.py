"""The files of an order and the facts about them -> one HTTP answer, or the data of an event."""

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.responses import FileResponse

from runners.messages import Made, ModelStatus
from runners.orders import MEDIA_TYPES, ZIP, Order

MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class SoundFile:
    """A file with one sound, beside the clip's picture or alone."""

    path: Path
    container: str  # mkv where the one asked for cannot hold the picture
    notices: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the caller is told beside the sound."""

    request_id: str
    model: ModelStatus
    made: Made
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
class Filled:
    """What came of an order."""

    order: Order
    variations: list[tuple[SoundFile, ...]]  # of each, its files in the order's formats
    facts: Facts

    @property
    def sounds(self) -> list[SoundFile]:
        """One file for each variation, in the format asked for."""
        return [copies[0] for copies in self.variations]


def result(filled: Filled, url: str, kept_seconds: float) -> dict[str, Any]:
    """What the last event tells: the facts, and where the files are.

    Args:
        filled: the order.
        url: of the folder that the files are in.
        kept_seconds: for how long they are.
    """
    seeds = filled.facts.made.seeds
    files = [
        {
            "variation": variation,
            "seed": seed,
            "format": file.container,
            "media_type": MEDIA_TYPES[file.container],
            "bytes": file.path.stat().st_size,
            "url": f"{url}/{file.path.name}",
        }
        for variation, (seed, copies) in enumerate(zip(seeds, filled.variations, strict=True), 1)
        for file in copies
    ]
    return {
        **filled.facts.summary(),
        "kept_seconds": kept_seconds,
        "seeds": list(seeds),
        "files": files,
    }


def answer(filled: Filled) -> FileResponse:
    """The one file, or a zip of several with a manifest."""
    order, sounds, facts = filled.order, filled.sounds, filled.facts
    path = sounds[0].path
    media_type = MEDIA_TYPES[sounds[0].container]
    if order.zipped:
        path, media_type = path.with_name("foley.zip"), ZIP
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:  # media does not shrink
            for sound in sounds:
                archive.write(sound.path, sound.path.name)
            archive.writestr(MANIFEST, json.dumps(facts.manifest(sounds), indent=2))
    return FileResponse(
        path, media_type=media_type, filename=f"foley{path.suffix}", headers=facts.headers()
    )


def rounded(timings: dict[str, float]) -> dict[str, float]:
    """Seconds to the tenth of a millisecond."""
    return {stage: round(seconds, 4) for stage, seconds in timings.items()}

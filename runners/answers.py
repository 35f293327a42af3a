"""Waveforms -> the files that the caller asked for -> one HTTP answer with the facts about them."""

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.responses import FileResponse
from torch import Tensor

from foley.media.mux import Written, write_audio, write_video
from foley.media.source import MediaLimits
from runners.desk import Filled
from runners.exchange import load_waveforms
from runners.messages import Made, ModelStatus
from runners.orders import AUDIO_FORMATS, MEDIA_TYPES, ZIP, Order

MANIFEST = "manifest.json"


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
            "X-Foley-Model": self.model.preset + ("" if self.model.trained else "; untrained"),
            "X-Foley-Notices": json.dumps(self.notices),
        }

    def summary(self) -> dict[str, Any]:
        """The facts as JSON."""
        return {
            "request_id": self.request_id,
            "model": self.model.preset,
            "trained": self.model.trained,
            "duration_seconds": self.made.duration_seconds,
            "sample_rate_hz": self.made.sample_rate,
            "timings_seconds": rounded(self.timings),
            "notices": self.notices,
        }

    def manifest(self, sounds: list[Written]) -> dict[str, Any]:
        """The facts as the JSON file of a zip."""
        variations = [
            {"file": sound.path.name, "seed": seed}
            for sound, seed in zip(sounds, self.made.seeds, strict=True)
        ]
        return {**self.summary(), "variations": variations}


def write_sounds(
    order: Order, folder: Path, made: Made, *, trimmed: bool, limits: MediaLimits
) -> list[tuple[Written, ...]]:
    """Write the files of each sound, in the order of the formats asked for."""
    stop_seconds = made.duration_seconds if trimmed else None

    def write(waveform: Tensor, destination: Path) -> Written:
        if destination.suffix[1:] in AUDIO_FORMATS:
            return write_audio(waveform, destination, sample_rate=made.sample_rate)
        return write_video(
            order.clip,
            waveform,
            destination,
            sample_rate=made.sample_rate,
            stop_seconds=stop_seconds,
            limits=limits,
        )

    return [
        tuple(write(waveform, folder / f"foley-{index}.{name}") for name in order.formats)
        for index, waveform in enumerate(load_waveforms(folder), start=1)
    ]


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
            "format": written.container,
            "media_type": MEDIA_TYPES[written.container],
            "bytes": written.path.stat().st_size,
            "url": f"{url}/{written.path.name}",
        }
        for variation, (seed, copies) in enumerate(zip(seeds, filled.variations, strict=True), 1)
        for written in copies
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
    media_type = MEDIA_TYPES[
        sounds[0].container
    ]  # mkv where the one asked for cannot hold the codec
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

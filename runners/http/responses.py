"""A finished job as one HTTP response, or as the data of the last event."""

import json
import zipfile
from typing import Any

from starlette.responses import FileResponse

from runners.jobs.job import MEDIA_TYPES, ZIP
from runners.jobs.outputs import JobResult

MANIFEST = "manifest.json"


def result(filled: JobResult, url: str, kept_seconds: float) -> dict[str, Any]:
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


def answer(filled: JobResult) -> FileResponse:
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

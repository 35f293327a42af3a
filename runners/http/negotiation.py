"""Content negotiation: which media type an `Accept` header asks for (RFC 9110, 12.5.1)."""

import re

from runners.http import sse
from runners.jobs.job import ZIP, Format

# What `Accept` may name, in the order of our preference where it leaves a choice.
ACCEPTED: dict[str, Format] = {
    "video/mp4": "mp4",
    "video/quicktime": "mov",
    "video/x-matroska": "mkv",
    "video/webm": "webm",
    "audio/wav": "wav",
    "audio/flac": "flac",
    ZIP: "mp4",
}
OTHER_NAMES = {
    "audio/x-wav": "audio/wav",
    "audio/wave": "audio/wav",
    "audio/x-flac": "audio/flac",
}
WEIGHT = re.compile(r"0(\.\d*)?|1(\.0*)?", re.ASCII)


def accept_weights(accept: str) -> dict[str, float]:
    """How much an `Accept` header wants each media type that we make; absent: it names none.

    Of the ranges that a type falls under, the most specific one counts. An empty header is none.
    """
    given = _ranges(accept) or {"*/*": 1.0}
    weights: dict[str, float] = {}
    for media_type in ACCEPTED:
        for media_range in ("*/*", media_type.split("/")[0] + "/*", media_type):
            if media_range in given:
                weights[media_type] = given[media_range]
    return weights


def wants_events(accept: str) -> bool:
    """Whether an `Accept` header names the stream of events, and wants no file more."""
    given = _ranges(accept)
    weight = given.get(sse.MEDIA_TYPE, 0.0)
    return weight > 0 and all(given.get(media_type, 0.0) <= weight for media_type in ACCEPTED)


def _ranges(accept: str) -> dict[str, float]:
    """How much each media range of an `Accept` header is wanted."""
    given: dict[str, float] = {}
    for entry in filter(None, (entry.strip().lower() for entry in accept.split(","))):
        media_range, *parameters = (part.strip() for part in entry.split(";"))
        stated = [part[2:] for part in parameters if part.startswith("q=")]
        weight = float(stated[0]) if stated and WEIGHT.fullmatch(stated[0]) else float(not stated)
        media_range = OTHER_NAMES.get(media_range, media_range)
        given[media_range] = max(weight, given.get(media_range, 0.0))
    return given


def acceptable(weights: dict[str, float]) -> list[str]:
    """The media types that may be answered, the most wanted first."""
    allowed = [media_type for media_type, weight in weights.items() if weight > 0]
    return sorted(allowed, key=lambda media_type: -weights[media_type])  # stable: ours break ties

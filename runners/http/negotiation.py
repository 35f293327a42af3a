"""Content negotiation: how a request is answered, by its `Accept` header (RFC 9110, 12.5.1)."""

import re
from dataclasses import dataclass

from foley.errors import NotAcceptableError
from foley.request import AUDIO_FORMATS, Format
from runners.http import sse
from runners.jobs.job import GenerationOptions

ZIP = "application/zip"
EVENTS_PATH = "/v1/generate/events"  # is answered with events, whatever `Accept` names
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


@dataclass(frozen=True, kw_only=True)
class ResponseFormat:
    """How a request is answered.

    Attributes:
        format: container of each variation.
        zipped: whether the response is a zip of all files.
        streamed: whether it is a stream of server-sent events.
    """

    format: Format
    zipped: bool = False
    streamed: bool = False


def negotiate(accept: str, options: GenerationOptions, *, has_clip: bool = True) -> ResponseFormat:
    """Choose how a request is answered.

    The option `format` decides the container, or else the most wanted media type. Several files
    come as a zip, unless the caller asks for events.

    Args:
        accept: value of the `Accept` header; empty: anything.
        options: of the request.
        has_clip: whether there is a clip.

    Raises:
        NotAcceptableError: `Accept` allows no format that exists here, or no zip of several files.
    """
    weights = accept_weights(accept)
    containers = dict(ACCEPTED)
    usual = options.choose_default_format(has_clip=has_clip)
    if not has_clip:
        containers = {k: v for k, v in ACCEPTED.items() if v in AUDIO_FORMATS}
        containers[ZIP] = usual
    media_types = [name for name in sort_acceptable(weights) if name in containers]
    if wants_events(accept):
        default = containers[media_types[0]] if media_types else usual
        return ResponseFormat(format=options.format or default, streamed=True)
    if options.format is None and not media_types:
        raise NotAcceptableError(f"Accept allows none of {', '.join(containers)}, which we make")
    chosen = options.format or containers[media_types[0]]
    is_several = (
        options.num_variations > 1
        or bool(options.layers)
        or any(name != chosen for name in options.also)
    )
    if options.format is None and is_several and weights.get(ZIP) == 0:
        raise NotAcceptableError(f"Accept forbids {ZIP}, in which several files come")
    return ResponseFormat(format=chosen, zipped=is_several or media_types[:1] == [ZIP])


def accept_weights(accept: str) -> dict[str, float]:
    """Return the weight of each media type of ours that an `Accept` header names, from 0 to 1.

    Of the ranges that match a type, the most specific one counts.

    Args:
        accept: value of the header; empty: all types.
    """
    ranges = _parse_ranges(accept) or {"*/*": 1.0}
    weights: dict[str, float] = {}
    for media_type in ACCEPTED:
        for media_range in ("*/*", media_type.split("/")[0] + "/*", media_type):
            if media_range in ranges:
                weights[media_type] = ranges[media_range]
    return weights


def sort_acceptable(weights: dict[str, float]) -> list[str]:
    """Return the media types whose weight is not 0, the most wanted first.

    Args:
        weights: from `accept_weights`.
    """
    allowed = [media_type for media_type, weight in weights.items() if weight > 0]
    return sorted(allowed, key=lambda media_type: -weights[media_type])  # stable: ours break ties


def wants_events(accept: str) -> bool:
    """Return whether an `Accept` header names server-sent events, and wants no file more.

    Args:
        accept: value of the header.
    """
    ranges = _parse_ranges(accept)
    weight = ranges.get(sse.MEDIA_TYPE, 0.0)
    return weight > 0 and all(ranges.get(media_type, 0.0) <= weight for media_type in ACCEPTED)


def _parse_ranges(accept: str) -> dict[str, float]:
    """Return the weight of each media range of an `Accept` header."""
    ranges: dict[str, float] = {}
    for entry in filter(None, (entry.strip().lower() for entry in accept.split(","))):
        media_range, *parameters = (part.strip() for part in entry.split(";"))
        stated = [part[2:] for part in parameters if part.startswith("q=")]
        weight = float(stated[0]) if stated and WEIGHT.fullmatch(stated[0]) else float(not stated)
        media_range = OTHER_NAMES.get(media_range, media_range)
        ranges[media_range] = max(weight, ranges.get(media_range, 0.0))
    return ranges

"""Content negotiation."""

import pytest

from foley.errors import NotAcceptableError
from runners.http.negotiation import (
    ResponseFormat,
    accept_weights,
    negotiate,
    sort_acceptable,
    wants_events,
)
from runners.jobs.job import GenerationOptions


@pytest.mark.parametrize(
    ("accept", "best"),
    [
        ("*/*", "video/mp4"),
        ("audio/*", "audio/wav"),
        ("audio/wav;q=0.1, video/webm;q=0.2", "video/webm"),
        ("AUDIO/FLAC", "audio/flac"),
        ("audio/flac;q=0.5, audio/x-wav", "audio/wav"),
        ("application/zip", "application/zip"),
        ("audio/wav;q=x", None),
        ("audio/wav;q=1_0", None),
        ("", "video/mp4"),
        (" , ", "video/mp4"),
        # The most specific range counts, whatever the order.
        ("video/mp4;q=0, */*", "video/quicktime"),
        ("*/*, video/mp4;q=0", "video/quicktime"),
        ("video/*;q=0, */*;q=0.1", "audio/wav"),
        ("*/*;q=0.9, audio/*;q=0.5, audio/flac;q=0.8, video/*;q=0.7", "application/zip"),
        ("*/*;q=0.1, video/*;q=0, audio/*;q=0, audio/flac;q=0.8", "audio/flac"),
        ("audio/x-wav;q=0, audio/*", "audio/flac"),
        ("*/*;q=0, video/webm;q=0.001", "video/webm"),
        ("*/*;q=0", None),
    ],
)
def test_accept_names_the_most_wanted(accept: str, best: str | None) -> None:
    assert next(iter(sort_acceptable(accept_weights(accept))), None) == best


@pytest.mark.parametrize(
    ("accept", "options", "expected"),
    [
        ("", {}, ResponseFormat(format="mp4")),
        ("audio/wav", {}, ResponseFormat(format="wav")),
        ("audio/wav", {"format": "mov"}, ResponseFormat(format="mov")),
        ("image/png", {"format": "mov"}, ResponseFormat(format="mov")),
        ("application/zip", {}, ResponseFormat(format="mp4", zipped=True)),
        ("audio/wav", {"num_variations": 2}, ResponseFormat(format="wav", zipped=True)),
        ("audio/wav", {"also": "flac"}, ResponseFormat(format="wav", zipped=True)),
        ("audio/wav", {"also": "wav"}, ResponseFormat(format="wav")),
        ("text/event-stream", {}, ResponseFormat(format="mp4", streamed=True)),
        (
            "text/event-stream, audio/flac;q=0.5",
            {"num_variations": 2, "also": "wav"},
            ResponseFormat(format="flac", streamed=True),
        ),
    ],
)
def test_the_response_follows_the_header_and_the_options(
    accept: str, options: dict[str, object], expected: ResponseFormat
) -> None:
    assert negotiate(accept, GenerationOptions.model_validate(options)) == expected


@pytest.mark.parametrize(
    ("accept", "options", "words"),
    [
        ("image/png", {}, "none of video/mp4"),
        ("audio/wav, */*;q=0", {"num_variations": 2}, "forbids application/zip"),
        ("audio/wav, */*;q=0", {"also": "flac"}, "forbids application/zip"),
    ],
)
def test_a_header_that_allows_no_response_is_refused(
    accept: str, options: dict[str, object], words: str
) -> None:
    with pytest.raises(NotAcceptableError, match=words):
        negotiate(accept, GenerationOptions.model_validate(options))


@pytest.mark.parametrize(
    ("accept", "events"),
    [
        ("text/event-stream", True),
        ("text/event-stream;q=0", False),
        ("text/event-stream;q=0.5, video/mp4", False),
        ("text/event-stream, */*;q=0.1", True),
        ("*/*", False),
    ],
)
def test_events_come_only_to_callers_who_want_nothing_more(accept: str, events: bool) -> None:
    assert wants_events(accept) is events


@pytest.mark.parametrize(
    ("accept", "answer"),
    [
        ("*/*", ResponseFormat(format="wav")),
        ("video/mp4, audio/flac;q=0.1", ResponseFormat(format="flac")),
        ("application/zip", ResponseFormat(format="wav", zipped=True)),
        ("text/event-stream", ResponseFormat(format="wav", streamed=True)),
        ("text/event-stream, video/mp4;q=0.5", ResponseFormat(format="wav", streamed=True)),
    ],
)
def test_without_a_clip_only_the_sound_can_be_accepted(accept: str, answer: ResponseFormat) -> None:
    options = GenerationOptions(prompt="rain", duration_seconds=1)
    assert negotiate(accept, options, has_clip=False) == answer
    with pytest.raises(NotAcceptableError, match="none of audio/wav, audio/flac, application/zip"):
        negotiate("video/*", options, has_clip=False)
    # A still picture has a length too.
    assert negotiate("*/*", options, has_clip=True) == ResponseFormat(format="mp4")

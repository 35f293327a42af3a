"""Both clients against a server that says what a service can say, and what it cannot."""

import asyncio
import inspect
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from foley.client import AsyncFoleyClient, FoleyClient, Options, RemoteUpdate
from foley.errors import (
    BusyError,
    ConnectionFailedError,
    FoleyError,
    ModelFailedError,
    NotFoundError,
    NotReadyError,
    OutputError,
    ParameterError,
    RequestError,
    RunnerLostError,
    ServerError,
    UnauthorizedError,
    VideoDecodeError,
    VideoTooLongError,
)
from foley.request import GenerationRequest
from tests.client.stub_server import Reply, Stand, stand

RESULT = {
    "request_id": "r-1",
    "kept_seconds": 600,
    "model": "tiny",
    "duration_seconds": 1.0,
    "sample_rate_hz": 48000,
    "timings_seconds": {"decode_video": 0.1, "total": 0.5},
    "notices": ["cut \u2028 here"],
    "seeds": [7, 8],
    "files": [
        {
            "variation": variation,
            "seed": 6 + variation,
            "format": name,
            "media_type": kind,
            "bytes": 4,
            "url": f"/v1/results/r-1/foley-{variation}.{name}",
            "new": "ignored",
        }
        for variation in (1, 2)
        for name, kind in (("wav", "audio/wav"), ("mkv", "video/x-matroska"))
    ],
}


def event(name: str, data: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


EVENTS = (
    event("accepted", {"request_id": "r-1"})
    + b": keep-alive\n\n"
    + event("progress", {"stage": "queue", "queue_position": 2})
    + event("progress", {"stage": "sample", "step": 1, "num_steps": 4, "seconds_left": 1.5})
    + event("something_new", {"a": 1})
    + event("result", RESULT)
)


def stream(*pieces: bytes, **more: Any) -> Reply:
    return Reply(headers={"Content-Type": "text/event-stream"}, pieces=pieces, **more)


def refused(status: int, code: str, **headers: str) -> Reply:
    body = json.dumps({"error": {"code": code, "message": "why", "request_id": "r-2"}})
    return Reply(status, headers, (body.encode(),))


@pytest.fixture
def service() -> Iterator[Stand]:
    with stand() as found:
        yield found


Do = Callable[..., Any]


@pytest.fixture(params=["blocking", "asyncio"])
def do(request: pytest.FixtureRequest, service: Stand) -> Do:
    """Calls a method of either client."""

    def call(method: str, *arguments: Any, **named: Any) -> Any:
        options = {
            key: named.pop(key)
            for key in ("base_url", "api_key", "timeout_seconds")
            if key in named
        }
        base_url = options.pop("base_url", service.url)
        if request.param == "blocking":
            with FoleyClient(base_url, **options) as client:
                return getattr(client, method)(*arguments, **named)

        async def awaited() -> Any:
            async with AsyncFoleyClient(base_url, **options) as client:
                return await getattr(client, method)(*arguments, **named)

        return asyncio.run(awaited())

    return call


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_events_may_be_cut_anywhere(service: Stand, do: Do, size: int) -> None:
    pieces = tuple(EVENTS[i : i + size] for i in range(0, len(EVENTS), size))
    service.replies = [stream(*pieces)]
    updates: list[RemoteUpdate] = []
    made = do("generate", b"clip", on_update=updates.append, request_id="r-1", prompt="rain")
    assert [(u.stage, u.queue_position, u.step, u.num_steps, u.seconds_left) for u in updates] == [
        ("queue", 2, None, None, None),
        ("sample", None, 1, 4, 1.5),
    ]
    assert made.seeds == (7, 8)
    assert made.notices == ("cut \u2028 here",)
    assert made.files[0].num_bytes == 4
    (sent,) = service.requests
    assert (sent.method, sent.path) == ("POST", "/v1/generate")
    assert sent.headers["accept"] == "text/event-stream"
    assert sent.headers["x-request-id"] == "r-1"
    assert b'name="clip"' in sent.body


def test_lines_may_end_in_any_of_the_three_ways(service: Stand, do: Do) -> None:
    mixed = EVENTS.replace(b"\n", b"\r\n", 5).replace(b"}\n\n", b"}\r\r", 1)
    service.replies = [stream(*(mixed[i : i + 1] for i in range(len(mixed))))]
    assert do("generate", b"clip").request_id == "r-1"


def test_the_form_holds_what_was_given_and_nothing_else(
    service: Stand, do: Do, tmp_path: Path
) -> None:
    clip = tmp_path / "secret name.mp4"
    clip.write_bytes(b"the clip's bytes")
    service.replies = [stream(EVENTS)]
    do("generate", clip, prompt="rain \u00e9", seed=None, trim=True, num_variations=2, format="wav")
    body = service.requests[0].body
    parts = {
        match[1]: match[2]
        for match in re.finditer(rb'; name="(\w+)".*?\r\n\r\n(.*?)\r\n--', body, re.DOTALL)
    }
    assert parts == {
        b"prompt": "rain \u00e9".encode(),
        b"trim": b"true",
        b"num_variations": b"2",
        b"format": b"wav",
        b"clip": b"the clip's bytes",
    }
    assert b"secret" not in body


def test_the_options_are_those_of_a_request() -> None:
    assert Options.__annotations__.keys() == {
        *GenerationRequest.model_fields, "trim", "format", "priority",
    }  # fmt: skip


def test_both_clients_take_the_same() -> None:
    for name, method in inspect.getmembers(FoleyClient, inspect.isfunction):
        if not name.startswith("_"):
            other = getattr(AsyncFoleyClient, name)
            assert inspect.signature(method) == inspect.signature(other), name


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (refused(422, "video_too_long"), VideoTooLongError, "why"),
        (refused(401, "unauthorized"), UnauthorizedError, "why"),
        (refused(429, "busy"), BusyError, "why"),
        (refused(503, "not_ready"), NotReadyError, "why"),
        (refused(500, "internal"), ServerError, r"why \(internal\)"),
        (refused(418, "teapot"), RequestError, r"why \(teapot\)"),
        (Reply(502, pieces=(b"<html>",)), ServerError, "502"),
        (Reply(404, pieces=(b"{}",)), NotFoundError, "404"),
        (Reply(307, {"Location": "http://elsewhere/"}), ServerError, "307"),
        (stream(event("error", {"error": {"code": "runner_lost", "message": "gone"}})),
         RunnerLostError, "gone"),
        (stream(event("result", {"request_id": "r"})), ServerError, "not that of"),
        (stream(EVENTS[:40], stated_length=1000), ConnectionFailedError, "broke off"),
        (stream(EVENTS[:-30]), ConnectionFailedError, "before the result"),
    ],
)  # fmt: skip
def test_what_goes_wrong_has_its_class(
    service: Stand, do: Do, reply: Reply, kind: type[FoleyError], words: str
) -> None:
    service.replies = [reply]
    with pytest.raises(kind, match=words) as caught:
        do("generate", b"clip")
    assert type(caught.value) is kind
    assert len(service.requests) == 1


def test_an_error_names_its_request(service: Stand, do: Do) -> None:
    service.replies = [refused(429, "busy", **{"Retry-After": "7"})]
    with pytest.raises(BusyError) as caught:
        do("generate", b"clip", max_wait_seconds=5)  # 7 s are more than the caller would wait
    assert caught.value.retry_after_seconds == 7
    assert caught.value.request_id == "r-2"
    assert len(service.requests) == 1


def test_a_busy_service_is_asked_again_when_it_says(service: Stand, do: Do, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"bytes")
    lost = event("error", {"error": {"code": "busy", "message": "", "retry_after_seconds": 0.1}})
    service.replies = [
        refused(503, "not_ready", **{"Retry-After": "1"}),
        stream(lost),
        stream(EVENTS),
    ]
    started = time.monotonic()
    do("generate", clip, max_wait_seconds=5)
    assert 1.1 < time.monotonic() - started < 3
    assert [b"bytes" in request.body for request in service.requests] == [True] * 3


def test_a_failed_model_is_not_waited_for(service: Stand, do: Do) -> None:
    service.replies = [refused(503, "model_failed", **{"Retry-After": "0"})]
    with pytest.raises(ModelFailedError):
        do("generate", b"clip", max_wait_seconds=60)


def test_a_silent_service_is_given_up(service: Stand, do: Do) -> None:
    end = threading.Event()
    service.replies = [stream(EVENTS[:40], EVENTS[40:], wait=lambda: end.wait(10))]
    started = time.monotonic()
    with pytest.raises(ConnectionFailedError, match="did not answer in time"):
        do("generate", b"clip", timeout_seconds=0.3)
    assert time.monotonic() - started < 3
    end.set()


def test_signs_of_life_do_not_prolong_the_time_allowed(service: Stand, do: Do) -> None:
    alive = (b": keep-alive\n\n",) * 20
    service.replies = [stream(*alive, EVENTS, wait=lambda: time.sleep(0.05))]
    with pytest.raises(ConnectionFailedError, match="time allowed"):
        do("generate", b"clip", timeout_seconds=0.3)


def test_nobody_there(do: Do) -> None:
    with pytest.raises(ConnectionFailedError, match="cannot be reached"):
        do("models", base_url="http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"base_url": "localhost:3000"}, "localhost:3000"),
        ({"api_key": "a b"}, "api_key"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"volume": 3}, "volume"),
    ],
)
def test_mistakes_are_told_before_anything_is_sent(
    service: Stand, do: Do, named: dict[str, Any], words: str
) -> None:
    with pytest.raises(ParameterError, match=words):
        do("generate", b"clip", **named)
    assert not service.requests


def test_a_missing_clip(service: Stand, do: Do, tmp_path: Path) -> None:
    with pytest.raises(VideoDecodeError, match=r"gone\.mp4"):
        do("generate", tmp_path / "gone.mp4")


def test_files_asked_for_are_saved(service: Stand, do: Do, tmp_path: Path) -> None:
    clip = tmp_path / "walk.mp4"
    clip.write_bytes(b"bytes")
    folder = tmp_path / "new" / "results"
    service.replies = [stream(EVENTS), Reply(pieces=(b"one.",)), Reply(pieces=(b"two.",))]
    # mp4, which the service gave as mkv.
    made = do("generate", clip, destination=folder, api_key="k-1")
    assert made.saved == (folder / "walk.foley-1.mkv", folder / "walk.foley-2.mkv")
    assert [path.read_bytes() for path in made.saved] == [b"one.", b"two."]
    assert [r.path for r in service.requests[1:]] == [
        "/v1/results/r-1/foley-1.mkv",
        "/v1/results/r-1/foley-2.mkv",
    ]
    assert {r.headers["authorization"] for r in service.requests} == {"Bearer k-1"}
    assert [file.format for file in made.files_of("wav")] == ["wav", "wav"]
    assert [file.format for file in made.files_of("mp4")] == ["mkv", "mkv"]


def test_nothing_partial_is_left(service: Stand, do: Do, tmp_path: Path) -> None:
    service.replies = [stream(EVENTS)]
    file = do("generate", b"clip").files[0]
    for reply in (Reply(pieces=(b"on",)), Reply(pieces=(b"on",), stated_length=4)):
        service.replies = [reply]
        with pytest.raises(ConnectionFailedError):
            do("download", file, tmp_path / "sound.wav")
        with pytest.raises(ConnectionFailedError):
            do("read", file)
    service.replies = [refused(404, "not_found")]
    with pytest.raises(NotFoundError):
        do("download", file, tmp_path / "sound.wav")
    assert list(tmp_path.iterdir()) == []
    service.replies = [Reply(pieces=(b"one.",))]
    (tmp_path / "taken").write_bytes(b"a file")
    with pytest.raises(OutputError, match="taken"):
        do("download", file, tmp_path / "taken" / "sound.wav")
    assert do("read", file) == b"one."


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x", "//127.0.0.1:9/x", "x"])
def test_the_key_goes_to_no_other_address(service: Stand, do: Do, url: str) -> None:
    elsewhere = {**RESULT, "files": [{**RESULT["files"][0], "url": url}]}  # type: ignore[index]
    service.replies = [stream(event("result", elsewhere))]
    made = do("generate", b"clip", api_key="k-1")
    with pytest.raises(ServerError, match="not its own"):
        do("read", made.files[0], api_key="k-1")


@pytest.mark.parametrize("name", ["../../mp4", "mp4/../../x", ""])
def test_the_service_cannot_choose_where_files_are_written(
    service: Stand, do: Do, tmp_path: Path, name: str
) -> None:
    hostile = {**RESULT, "files": [{**RESULT["files"][0], "format": name}]}  # type: ignore[index]
    service.replies = [stream(event("result", hostile)), Reply(pieces=(b"one.",))]
    with pytest.raises(ServerError, match="not that of"):
        do("generate", b"clip", destination=tmp_path / "in" / "here")
    assert list(tmp_path.iterdir()) == []


def test_an_address_may_have_a_path(service: Stand, do: Do) -> None:
    service.replies = [Reply(pieces=(b"{}",))]
    assert do("ready", base_url=service.url + "/foley/")
    assert service.requests[0].path == "/foley/readyz"


def test_short_calls(service: Stand, do: Do) -> None:
    model = {"state": "ready", "preset": "xxl", "about": "A", "licence": "L", "territory": "T"}
    own = {"num_inference_steps": 50, "guidance_scale": 4.5}
    service.replies = [Reply(pieces=(json.dumps({"models": [model, model | own]}).encode(),))]
    found, other = do("models")
    assert (found.preset, found.about, found.licence, found.territory) == ("xxl", "A", "L", "T")
    assert (found.num_inference_steps, found.guidance_scale) == (0, 0)  # an older service's
    assert (other.num_inference_steps, other.guidance_scale) == (50, 4.5)
    service.replies = [Reply(pieces=(b'{"cancelled": true}',))]
    assert do("cancel", "a/b") is True
    assert service.requests[-1].path == "/v1/requests/a%2Fb/cancel"
    assert service.requests[-1].method == "POST"
    service.replies = [refused(404, "not_found")]
    assert do("cancel", "r-1") is False
    service.replies = [refused(503, "not_ready")]
    assert do("ready") is False
    service.replies = [refused(503, "model_failed")]
    with pytest.raises(ModelFailedError):
        do("ready")


def test_importing_the_client_is_light() -> None:
    code = """
import sys, foley.client
heavy = {"torch", "av", "bentoml", "grpc", "numpy", "starlette", "runners"} & set(sys.modules)
sys.exit(", ".join(heavy) or 0)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

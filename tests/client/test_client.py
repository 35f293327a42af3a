"""Both clients against a stub server with correct and broken replies."""

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

from foley.client import AsyncFoleyClient, FoleyClient, RemoteUpdate, RequestOptions
from foley.client.jobs import get_job_path, get_resend_path
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
from foley.types import Stage
from runners.jobs.job import GenerationOptions
from tests.client.stub_server import (
    EVENTS,
    RESULT,
    Reply,
    StubServer,
    encode_event,
    error_reply,
    event_reply,
    run_stub_server,
)
from tests.patience import is_within, scale


@pytest.fixture
def service() -> Iterator[StubServer]:
    with run_stub_server() as stub:
        yield stub


CallClient = Callable[..., Any]


@pytest.fixture(params=["blocking", "asyncio"])
def call(request: pytest.FixtureRequest, service: StubServer) -> CallClient:
    """A function that calls a method of one of the two clients."""

    def call_method(method: str, *arguments: Any, **named: Any) -> Any:
        options = {
            key: named.pop(key)
            for key in ("base_url", "api_key", "timeout_seconds")
            if key in named
        }
        base_url = options.pop("base_url", service.url)
        if request.param == "blocking":
            with FoleyClient(base_url, **options) as client:
                return getattr(client, method)(*arguments, **named)

        async def call_async() -> Any:
            async with AsyncFoleyClient(base_url, **options) as client:
                return await getattr(client, method)(*arguments, **named)

        return asyncio.run(call_async())

    return call_method


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_events_are_parsed_wherever_the_stream_is_cut(
    service: StubServer, call: CallClient, size: int
) -> None:
    pieces = tuple(EVENTS[i : i + size] for i in range(0, len(EVENTS), size))
    service.replies = [event_reply(*pieces)]
    updates: list[RemoteUpdate] = []
    result = call("generate", b"clip", on_update=updates.append, request_id="r-1", prompt="rain")
    assert [(u.stage, u.queue_position, u.step, u.num_steps, u.seconds_left) for u in updates] == [
        ("queue", 2, None, None, None),
        ("sample", None, 1, 4, 1.5),
    ]
    assert result.seeds == (7, 8)
    assert result.notices == ("cut \u2028 here",)
    assert result.files[0].num_bytes == 4
    (sent,) = service.requests
    assert (sent.method, sent.path) == ("POST", "/v1/generate")
    assert sent.headers["accept"] == "text/event-stream"
    assert sent.headers["x-request-id"] == "r-1"
    assert b'name="clip"' in sent.body


def test_known_stages_are_members_of_stage_and_unknown_ones_are_kept() -> None:
    assert RemoteUpdate(stage="sample").stage is Stage.SAMPLE
    assert RemoteUpdate(stage="polish").stage == "polish"  # a newer service may add stages


def test_lines_may_end_in_lf_crlf_or_cr(service: StubServer, call: CallClient) -> None:
    mixed = EVENTS.replace(b"\n", b"\r\n", 5).replace(b"}\n\n", b"}\r\r", 1)
    service.replies = [event_reply(*(mixed[i : i + 1] for i in range(len(mixed))))]
    assert call("generate", b"clip").request_id == "r-1"


def test_the_form_holds_the_given_options_and_the_clip_only(
    service: StubServer, call: CallClient, tmp_path: Path
) -> None:
    clip = tmp_path / "secret name.mp4"
    clip.write_bytes(b"the clip's bytes")
    service.replies = [event_reply(EVENTS)]
    call(
        "generate", clip, prompt="rain \u00e9", seed=None, trim=True, num_variations=2, format="wav"
    )
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


def test_the_source_of_an_edit_is_sent_as_a_file_or_named(
    service: StubServer, call: CallClient, tmp_path: Path
) -> None:
    path = tmp_path / "secret.wav"
    path.write_bytes(b"RIFF")
    for source, sent in ((path, True), (b"RIFF", True), ("original", False)):
        service.replies = [event_reply(EVENTS)]
        call("generate", b"clip", edit={"source": source, "strength": 0.5})
        body = service.requests[-1].body
        assert (b'name="edit_source"' in body and b"RIFF" in body) == sent
        named = b"file" if sent else b"original"
        assert b'{"source": "' + named + b'", "strength": 0.5}' in body
        assert b"secret" not in body
    with pytest.raises(ParameterError, match="source: is file; give its path as a Path"):
        call("generate", b"clip", edit={"source": "file"})


def test_the_client_takes_every_option_of_the_service() -> None:
    assert RequestOptions.__annotations__.keys() == GenerationOptions.model_fields.keys()


def test_both_clients_have_the_same_methods_and_arguments() -> None:
    for name, method in inspect.getmembers(FoleyClient, inspect.isfunction):
        if not name.startswith("_"):
            other = getattr(AsyncFoleyClient, name)
            assert inspect.signature(method) == inspect.signature(other), name


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (error_reply(422, "video_too_long"), VideoTooLongError, "why"),
        (error_reply(401, "unauthorized"), UnauthorizedError, "why"),
        (error_reply(429, "busy"), BusyError, "why"),
        (error_reply(503, "not_ready"), NotReadyError, "why"),
        (error_reply(500, "internal"), ServerError, r"why \(internal\)"),
        (error_reply(418, "teapot"), RequestError, r"why \(teapot\)"),
        (Reply(502, pieces=(b"<html>",)), ServerError, "502"),
        (Reply(404, pieces=(b"{}",)), NotFoundError, "404"),
        (Reply(307, {"Location": "http://elsewhere/"}), ServerError, "307"),
        (event_reply(encode_event("error", {"error": {"code": "runner_lost", "message": "gone"}})),
         RunnerLostError, "gone"),
        (event_reply(encode_event("result", {"request_id": "r"})), ServerError, "not that of"),
        (event_reply(EVENTS[:40], stated_length=1000), ConnectionFailedError, "broke off"),
        (event_reply(EVENTS[:-30]), ConnectionFailedError, "before the result"),
    ],
)  # fmt: skip
def test_each_failure_raises_its_error_class(
    service: StubServer, call: CallClient, reply: Reply, kind: type[FoleyError], words: str
) -> None:
    service.replies = [reply]
    with pytest.raises(kind, match=words) as caught:
        call("generate", b"clip")
    assert type(caught.value) is kind
    assert len(service.requests) == 1


def test_an_error_carries_its_request_id_and_retry_delay(
    service: StubServer, call: CallClient
) -> None:
    service.replies = [error_reply(429, "busy", **{"Retry-After": "7"})]
    with pytest.raises(BusyError) as caught:
        call("generate", b"clip", max_wait_seconds=5)  # 7 s are more than the caller would wait
    assert caught.value.retry_after_seconds == 7
    assert caught.value.request_id == "r-2"
    assert len(service.requests) == 1


def test_a_busy_service_is_retried_after_the_stated_delay(
    service: StubServer, call: CallClient, tmp_path: Path
) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"bytes")
    lost = encode_event(
        "error", {"error": {"code": "busy", "message": "", "retry_after_seconds": 0.1}}
    )
    service.replies = [
        error_reply(503, "not_ready", **{"Retry-After": "1"}),
        event_reply(lost),
        event_reply(EVENTS),
    ]
    started = time.monotonic()
    call("generate", clip, max_wait_seconds=5)
    elapsed_seconds = time.monotonic() - started
    assert elapsed_seconds > 1.1
    assert is_within(elapsed_seconds, 3)
    assert [b"bytes" in request.body for request in service.requests] == [True] * 3


def test_a_failed_model_is_not_retried(service: StubServer, call: CallClient) -> None:
    service.replies = [error_reply(503, "model_failed", **{"Retry-After": "0"})]
    with pytest.raises(ModelFailedError):
        call("generate", b"clip", max_wait_seconds=60)


def test_a_silent_service_times_out(service: StubServer, call: CallClient) -> None:
    end = threading.Event()
    service.replies = [event_reply(EVENTS[:40], EVENTS[40:], wait=lambda: end.wait(scale(10)))]
    started = time.monotonic()
    with pytest.raises(ConnectionFailedError, match="did not answer in time"):
        call("generate", b"clip", timeout_seconds=0.3)
    assert is_within(time.monotonic() - started, 3)
    end.set()


def test_keep_alive_comments_do_not_extend_the_timeout(
    service: StubServer, call: CallClient
) -> None:
    alive = (b": keep-alive\n\n",) * 400  # 20 s, longer than the time allowed
    service.replies = [event_reply(*alive, EVENTS, wait=lambda: time.sleep(0.05))]
    with pytest.raises(ConnectionFailedError, match="time allowed"):
        call("generate", b"clip", timeout_seconds=scale(0.5))


def test_an_unreachable_service_raises_a_connection_error(call: CallClient) -> None:
    with pytest.raises(ConnectionFailedError, match="cannot be reached"):
        call("list_models", base_url="http://127.0.0.1:9")


def test_a_service_on_this_machine_is_reached_without_the_proxy(
    service: StubServer, call: CallClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    service.replies = [Reply(pieces=(b"{}",))]
    assert call("is_ready")


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"base_url": "localhost:3000"}, "localhost:3000"),
        ({"api_key": "a b"}, "api_key"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"volume": 3}, "volume"),
        ({"output": "x.avi"}, r"x\.avi ends in \.avi"),
        ({"output": "x.mp4", "num_variations": 2}, "one file, and several"),
        ({"output": "x.mp4", "destination": "folder"}, "not both"),
        ({"output": "x.mp4", "format": "wav"}, r"does not end in \.wav"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_sent(
    service: StubServer, call: CallClient, named: dict[str, Any], words: str
) -> None:
    with pytest.raises(ParameterError, match=words):
        call("generate", b"clip", **named)
    assert not service.requests


def test_a_missing_clip_is_refused(service: StubServer, call: CallClient, tmp_path: Path) -> None:
    with pytest.raises(VideoDecodeError, match=r"gone\.mp4"):
        call("generate", tmp_path / "gone.mp4")


def test_the_requested_files_are_saved(
    service: StubServer, call: CallClient, tmp_path: Path
) -> None:
    clip = tmp_path / "walk.mp4"
    clip.write_bytes(b"bytes")
    folder = tmp_path / "new" / "results"
    contents = [b"one.", b"two.", b"3rd.", b"4th."]
    service.replies = [event_reply(EVENTS), *(Reply(pieces=(content,)) for content in contents)]
    # mp4, which the service gave as mkv.
    result = call("generate", clip, also=["wav"], destination=folder, api_key="k-1")
    names = ["foley-1.wav", "foley-1.mkv", "foley-2.wav", "foley-2.mkv"]
    assert result.saved == tuple(folder / f"walk.{name}" for name in names)
    assert [path.read_bytes() for path in result.saved] == contents
    assert [r.path for r in service.requests[1:]] == [f"/v1/results/r-1/{name}" for name in names]
    assert {r.headers["authorization"] for r in service.requests} == {"Bearer k-1"}
    assert [file.format for file in result.select_files("wav")] == ["wav", "wav"]
    assert [file.format for file in result.select_files("mp4")] == ["mkv", "mkv"]


def test_an_output_is_the_file_of_the_sound_and_decides_its_format(
    service: StubServer, call: CallClient, tmp_path: Path
) -> None:
    service.replies = [event_reply(EVENTS), Reply(pieces=(b"one.",))]
    result = call("generate", b"clip", output=tmp_path / "new" / "x.wav")
    assert result.saved == (tmp_path / "new" / "x.wav",)
    assert result.saved[0].read_bytes() == b"one."
    assert b'name="format"\r\n\r\nwav' in service.requests[0].body
    service.replies = [event_reply(EVENTS)]
    with pytest.raises(OutputError, match=r"ends in \.mkv"):  # mp4 does not hold this picture
        call("generate", b"clip", output=tmp_path / "x.mp4")
    assert not (tmp_path / "x.mp4").exists()


def test_a_failed_download_leaves_no_file(
    service: StubServer, call: CallClient, tmp_path: Path
) -> None:
    service.replies = [event_reply(EVENTS)]
    file = call("generate", b"clip").files[0]
    for reply in (Reply(pieces=(b"on",)), Reply(pieces=(b"on",), stated_length=4)):
        service.replies = [reply]
        with pytest.raises(ConnectionFailedError):
            call("download", file, tmp_path / "sound.wav")
        with pytest.raises(ConnectionFailedError):
            call("read", file)
    service.replies = [error_reply(404, "not_found")]
    with pytest.raises(NotFoundError):
        call("download", file, tmp_path / "sound.wav")
    assert list(tmp_path.iterdir()) == []
    service.replies = [Reply(pieces=(b"one.",))]
    (tmp_path / "taken").write_bytes(b"a file")
    with pytest.raises(OutputError, match="taken"):
        call("download", file, tmp_path / "taken" / "sound.wav")
    assert call("read", file) == b"one."


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x", "//127.0.0.1:9/x", "x"])
def test_the_api_key_is_not_sent_to_another_host(
    service: StubServer, call: CallClient, url: str
) -> None:
    elsewhere = {**RESULT, "files": [{**RESULT["files"][0], "url": url}]}  # type: ignore[index]
    service.replies = [event_reply(encode_event("result", elsewhere))]
    result = call("generate", b"clip", api_key="k-1")
    with pytest.raises(ServerError, match="not its own"):
        call("read", result.files[0], api_key="k-1")


@pytest.mark.parametrize("name", ["../../mp4", "mp4/../../x", ""])
def test_the_service_cannot_choose_where_files_are_written(
    service: StubServer, call: CallClient, tmp_path: Path, name: str
) -> None:
    hostile = {**RESULT, "files": [{**RESULT["files"][0], "format": name}]}  # type: ignore[index]
    service.replies = [event_reply(encode_event("result", hostile)), Reply(pieces=(b"one.",))]
    with pytest.raises(ServerError, match="not that of"):
        call("generate", b"clip", destination=tmp_path / "in" / "here")
    assert list(tmp_path.iterdir()) == []


def test_the_base_url_may_have_a_path(service: StubServer, call: CallClient) -> None:
    service.replies = [Reply(pieces=(b"{}",))]
    assert call("is_ready", base_url=service.url + "/foley/")
    assert service.requests[0].path == "/foley/readyz"


def test_models_cancel_and_readiness(service: StubServer, call: CallClient) -> None:
    model = {"state": "ready", "preset": "xxl", "about": "A", "licence": "L", "territory": "T"}
    own = {"num_inference_steps": 50, "guidance_scale": 4.5}
    service.replies = [Reply(pieces=(json.dumps({"models": [model, model | own]}).encode(),))]
    found, other = call("list_models")
    assert (found.preset, found.about, found.licence, found.territory) == ("xxl", "A", "L", "T")
    assert (found.num_inference_steps, found.guidance_scale) == (0, 0)  # an older service's
    assert (other.num_inference_steps, other.guidance_scale) == (50, 4.5)
    service.replies = [Reply(pieces=(b'{"cancelled": true}',))]
    assert call("cancel", "a/b") is True
    assert service.requests[-1].path == "/v1/requests/a%2Fb/cancel"
    assert service.requests[-1].method == "POST"
    service.replies = [error_reply(404, "not_found")]
    assert call("cancel", "r-1") is False
    service.replies = [error_reply(503, "not_ready")]
    assert call("is_ready") is False
    service.replies = [error_reply(503, "model_failed")]
    with pytest.raises(ModelFailedError):
        call("is_ready")


def test_importing_the_client_imports_no_heavy_package() -> None:
    code = """
import sys, foley.client
heavy = {"torch", "av", "bentoml", "grpc", "numpy", "starlette", "runners"} & set(sys.modules)
sys.exit(", ".join(heavy) or 0)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_job_without_an_id_is_refused() -> None:
    for make_path in (get_job_path, get_resend_path):
        with pytest.raises(ParameterError, match="the job's id is empty"):
            make_path("")
    assert get_job_path("../models") == "/v1/jobs/..%2Fmodels"

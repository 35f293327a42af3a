"""The error boundary, around small applications that fail."""

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.testing import capture_logs

from foley.errors import BusyError, ConnectionFailedError, DeviceError, FoleyError, VideoEmptyError
from runners import metrics
from runners.auth import ApiKeys
from runners.http.middleware import ErrorMiddleware
from runners.status import status_of


def ask(app: ASGIApp, path: str = "/", **headers: str) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app=ErrorMiddleware(app, ApiKeys([])))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(run())


def raising(error: Exception) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    return app


def test_an_unforeseen_error_is_internal_and_its_message_is_not_sent(
    capsys: pytest.CaptureFixture[str],
) -> None:
    response = ask(raising(KeyError("/secret/path")))
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal"
    assert "secret" not in response.text
    assert "/secret/path" in capsys.readouterr().out  # the log has it


def test_a_device_error_is_sent_without_its_message(capsys: pytest.CaptureFixture[str]) -> None:
    response = ask(raising(DeviceError("/dev/nvidia0 ran out of memory")))
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "device_unavailable"
    assert "nvidia" not in response.text
    assert "/dev/nvidia0" in capsys.readouterr().out


def test_a_callers_mistake_is_sent_with_its_message() -> None:
    response = ask(raising(VideoEmptyError("clip has 0 bytes")))
    assert response.status_code == 422
    assert response.json()["error"]["message"] == "clip has 0 bytes"


def test_a_busy_service_sends_retry_after() -> None:
    assert ask(raising(BusyError("later"))).headers["retry-after"] == "5"


def test_an_error_response_of_the_application_is_replaced_by_ours() -> None:
    response = ask(PlainTextResponse("Too bad", status_code=415, headers={"X-Inner": "1"}))
    assert response.json()["error"]["code"] == "unsupported_media_type"
    assert "Too bad" not in response.text
    assert "x-inner" not in response.headers


@pytest.mark.parametrize("app", [raising(BusyError("later")), PlainTextResponse("", 404)])
def test_every_error_about_uploads_says_the_version_of_their_protocol(app: ASGIApp) -> None:
    for path in ("/v1/uploads", "/v1/uploads/1"):
        assert ask(app, path).headers["tus-resumable"] == "1.0.0"
    assert "tus-resumable" not in ask(app, "/v1/jobs").headers


def test_a_response_that_fails_halfway_gets_no_second_head() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        ask(app)


@pytest.mark.parametrize(
    ("given", "kept"), [("abc-1.2_3", True), ("a b", False), ("x" * 65, False), ("", False)]
)
def test_only_plain_request_ids_are_kept(given: str, kept: bool) -> None:
    response = ask(PlainTextResponse("fine"), **{"X-Request-Id": given})
    assert (response.headers["x-request-id"] == given) is kept
    assert len(response.headers.get_list("x-request-id")) == 1


def test_every_error_has_the_same_form() -> None:
    body = json.loads(ask(raising(VideoEmptyError("none")), **{"X-Request-Id": "me"}).content)
    assert body == {"error": {"code": "video_empty", "message": "none", "request_id": "me"}}
    body = json.loads(ask(raising(BusyError("later")), **{"X-Request-Id": "me"}).content)
    assert body["error"].pop("retry_after_seconds") == 5
    assert body == {"error": {"code": "busy", "message": "later", "request_id": "me"}}


def _family(kind: type[FoleyError]) -> list[type[FoleyError]]:
    return [kind, *(member for child in kind.__subclasses__() for member in _family(child))]


KINDS = [kind for kind in _family(FoleyError) if kind is not ConnectionFailedError]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.code)
def test_no_error_reveals_internals(
    kind: type[FoleyError], capsys: pytest.CaptureFixture[str]
) -> None:
    error = kind("words of the error")
    error.__cause__ = OSError("/secret/path: token")
    response = ask(raising(error), Authorization="Bearer token")
    assert response.status_code == status_of(kind).http
    (body,) = response.json().values()
    assert body["code"] == kind.code
    for inside in ("secret", "token", "Traceback", "OSError", ".py"):
        assert inside not in response.text + str(response.headers)
    hidden = kind.code in {
        "error", "server_error", "checkpoint_invalid", "download_failed", "config_invalid",
        "device_unavailable", "model_output_invalid",
    }  # fmt: skip
    assert ("words of the error" in response.text) is not hidden
    assert ("/secret/path" in capsys.readouterr().out) is hidden


def test_a_wrong_key_is_refused_before_the_application_runs() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("was let in")

    async def run(path: str, headers: dict[str, str]) -> httpx.Response:
        transport = httpx.ASGITransport(app=ErrorMiddleware(app, ApiKeys(["good"])))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path, headers=headers)

    for path in ("/v1/generate", "/metrics", "/docs/x", "/uix", "/livez/x"):
        response = asyncio.run(run(path, {"Authorization": "Bearer bad"}))
        assert response.status_code == 401, path
        assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "path",
    ["/static_content/index.html", "/assets/x", "/schema.json", "/x", "//", "*", "http://x/"],
)
def test_what_is_not_ours_does_not_reach_bentoml(path: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("was let in")

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "GET", "path": path, "headers": []}
    asyncio.run(ErrorMiddleware(app, ApiKeys([]))(scope, receive, send))
    assert sent[0]["status"] == 404


def test_retry_after_is_that_of_the_error() -> None:
    error = BusyError("later")
    error.retry_after_seconds = 11.2
    assert ask(raising(error)).headers["retry-after"] == "12"


def test_what_changes_something_on_the_page_is_counted_and_logged_and_what_reads_is_not() -> None:
    async def ask_page(method: str) -> list[MutableMapping[str, Any]]:
        app = ErrorMiddleware(PlainTextResponse("done"), ApiKeys([]))
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            with capture_logs() as logs:
                await client.request(method, "/ui/gradio_api/upload")
        return logs

    counted = metrics.REQUESTS.labels("/ui", 200)._value
    before = counted.get()
    assert asyncio.run(ask_page("GET")) == []
    assert counted.get() == before
    (line,) = asyncio.run(ask_page("POST"))
    assert (line["event"], line["path"]) == ("request", "/ui/gradio_api/upload")
    assert counted.get() == before + 1

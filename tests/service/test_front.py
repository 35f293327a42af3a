"""The outermost boundary, around small applications that fail in every way."""

import asyncio
import json

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from foley.errors import DeviceError, VideoEmptyError
from runners.errors import BusyError
from runners.front import Front
from runners.keys import Keys


def ask(app: ASGIApp, **headers: str) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app=Front(app, Keys([])))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get("/", headers=headers)

    return asyncio.run(run())


def raising(error: Exception) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    return app


def test_an_unforeseen_error_is_internal_and_its_words_stay_inside(
    capsys: pytest.CaptureFixture[str],
) -> None:
    response = ask(raising(KeyError("/secret/path")))
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal"
    assert "secret" not in response.text
    assert "/secret/path" in capsys.readouterr().out  # the log has it


def test_the_models_troubles_are_told_by_code_only(capsys: pytest.CaptureFixture[str]) -> None:
    response = ask(raising(DeviceError("/dev/nvidia0 ran out of memory")))
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "device_unavailable"
    assert "nvidia" not in response.text
    assert "/dev/nvidia0" in capsys.readouterr().out


def test_a_callers_mistake_is_told_in_full() -> None:
    response = ask(raising(VideoEmptyError("clip has 0 bytes")))
    assert response.status_code == 422
    assert response.json()["error"]["message"] == "clip has 0 bytes"


def test_a_busy_service_says_when_to_come_again() -> None:
    assert ask(raising(BusyError("later"))).headers["retry-after"] == "5"


def test_an_error_that_others_worded_is_told_in_our_form() -> None:
    response = ask(PlainTextResponse("Too bad", status_code=415, headers={"X-Inner": "1"}))
    assert response.json()["error"]["code"] == "unsupported_media_type"
    assert "Too bad" not in response.text
    assert "x-inner" not in response.headers


def test_an_answer_that_broke_off_is_not_given_a_second_head() -> None:
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


def test_the_form_of_an_error_is_one() -> None:
    body = json.loads(ask(raising(BusyError("later")), **{"X-Request-Id": "me"}).content)
    assert body == {"error": {"code": "busy", "message": "later", "request_id": "me"}}

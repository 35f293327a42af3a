"""Time limits, a lost runner, and the end of the service, each on a server of its own."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.http.test_refusals import check
from tests.server import Server, draw_clip
from tests.service.test_serving import ENDLESS, post, wait_until_in_house

TIMEOUT_SECONDS = 3


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with little patience and two API workers."""
    settings = {
        "FOLEY_REQUEST_TIMEOUT_SECONDS": str(TIMEOUT_SECONDS),
        "FOLEY_API_WORKERS": "2",
    }
    server = Server(tmp_path_factory.mktemp("hasty"), settings)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


def test_a_late_request_is_dropped_and_the_runner_is_free(hasty: Server, short_clip: bytes) -> None:
    started = time.monotonic()
    response = hasty.generate(short_clip, **ENDLESS)
    check(response, 504, "timeout", f"{TIMEOUT_SECONDS} s")
    assert time.monotonic() - started < TIMEOUT_SECONDS + 1.5  # measured: 0.1 s over
    assert hasty.generate(short_clip, num_inference_steps=1).status_code == 200
    assert hasty.metric("foley_running") == 0
    hasty.wait_until_scratch_is_empty()


def test_time_in_the_queue_counts(hasty: Server, short_clip: bytes) -> None:
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(post, hasty, short_clip, **ENDLESS) for _ in range(4)]
        started = time.monotonic()
        for call in calls:
            check(call.result(), 504, "timeout")
        assert time.monotonic() - started < TIMEOUT_SECONDS + 2
    assert hasty.generate(short_clip, num_inference_steps=1).status_code == 200


def test_a_killed_runner_is_told_and_replaced(hasty: Server, short_clip: bytes) -> None:
    (runner,) = [p for p in hasty.family() if "GpuRunner" in p.cmdline()]
    with ThreadPoolExecutor() as pool:
        call = pool.submit(post, hasty, short_clip, **ENDLESS)
        hasty.wait_for_metric("foley_running", 1)
        runner.kill()
        check(call.result(), 503, "runner_lost")
    assert hasty.probe("/readyz") == 503
    assert hasty.probe("/livez") == 200
    hasty.started = time.monotonic()
    hasty.wait_until_ready()  # the launcher looks every 10 s
    assert hasty.generate(short_clip, num_inference_steps=1).status_code == 200
    hasty.wait_until_scratch_is_empty()


def test_sigterm_drains_the_calls_in_flight_and_lets_no_other_in(
    hasty: Server, short_clip: bytes
) -> None:
    with ThreadPoolExecutor() as pool:
        calls = [pool.submit(post, hasty, short_clip, num_inference_steps=15) for _ in range(3)]
        wait_until_in_house(hasty, 3)
        started = time.monotonic()
        hasty.process.terminate()
        while hasty.probe("/livez") == 200:
            assert time.monotonic() - started < 5
        with contextlib.suppress(httpx.TransportError):  # refused by the port, or by the service
            assert post(hasty, short_clip).status_code == 503
        assert hasty.process.wait(20) == 0
        assert time.monotonic() - started < TIMEOUT_SECONDS + 5
        assert [call.result().status_code for call in calls] == [200, 200, 200]
    assert list(hasty.scratch.iterdir()) == []


def test_sigterm_while_loading_and_probed_exits_0_in_bounded_time(tmp_path: Path) -> None:
    server = Server(tmp_path)
    stopping = threading.Event()

    def probe() -> None:
        while not stopping.is_set():
            statuses.append(server.probe("/readyz"))
            time.sleep(0.02)

    statuses: list[int] = []
    with ThreadPoolExecutor() as pool:
        probing = pool.submit(probe)
        try:
            while 503 not in statuses:
                assert time.monotonic() - server.started < 60, server.log.read_text()
                time.sleep(0.02)
            started = time.monotonic()
            server.process.terminate()
            assert server.process.wait(30) == 0, server.log.read_text()
            assert time.monotonic() - started < 20
        finally:
            stopping.set()
            probing.result()
            server.stop()
    assert 200 not in statuses
    assert list(server.scratch.iterdir()) == []


def test_a_caller_who_stops_reading_cannot_hold_the_service(tmp_path: Path) -> None:
    server = Server(tmp_path, grace_seconds=2)
    clip = draw_clip(tmp_path / "clip.mp4", num_frames=15 * 25)
    fields = {"num_inference_steps": "1", "num_variations": "4", "format": "wav"}
    asked = httpx.Request("POST", "http://test/v1/generate", files={"clip": clip}, data=fields)
    body = asked.read()
    head = (
        f"POST /v1/generate HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: {asked.headers['content-type']}\r\n\r\n"
    )
    try:
        server.wait_until_ready()
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(head.encode() + body)
            assert connection.recv(12) == b"HTTP/1.1 200"  # 8.6 MB more than are read follow
            started = time.monotonic()
            assert server.stop() == 0
            assert 2 < time.monotonic() - started < 8
    finally:
        server.stop()
    assert list(server.scratch.iterdir()) == []


def test_a_model_that_cannot_be_loaded_is_told_by_the_probe(tmp_path: Path) -> None:
    server = Server(tmp_path, {"FOLEY_WEIGHTS": str(tmp_path / "nowhere")})
    try:
        with pytest.raises(AssertionError, match="CheckpointError"):
            server.wait_until_ready()  # the log's line, long before the wait's own end
        assert time.monotonic() - server.started < 60
        while (response := probe_body(server)).get("code") in (None, "not_ready"):
            assert time.monotonic() - server.started < 60, server.log.read_text()
            time.sleep(0.1)
        assert response["code"] == "model_failed"
        assert str(tmp_path) not in response["message"]
        check(server.generate(b"any"), 503, "model_failed")
        assert server.probe("/livez") == 200
    finally:
        assert server.stop() == 0


def probe_body(server: Server) -> dict[str, str]:
    if server.probe("/livez") != 200:
        return {}
    return server.client.get("/readyz").json()["error"]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("FOLEY_PRSET", "tiny", "did you mean FOLEY_PRESET?"),
        ("FOLEY_MAX_CONCURRENCY", "0", "max_concurrency"),
    ],
)
def test_a_wrong_setting_ends_the_start_with_one_line(
    tmp_path: Path, name: str, value: str, words: str
) -> None:
    server = Server(tmp_path, {name: value})
    assert server.process.wait(60) == 1
    (line,) = server.log.read_text().strip().splitlines()
    assert words in line
    server.client.close()

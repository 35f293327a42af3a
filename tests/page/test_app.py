"""What the page lets through to Gradio, by the page's own rule."""

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from foley.errors import ConnectionFailedError, UnauthorizedError
from runners.page import gate
from runners.page.app import PageApp
from runners.page.gate import (
    FORM_BYTES,
    KEEP_SECONDS,
    NUM_LARGEST,
    CheckKey,
    UploadGate,
    is_refused,
)
from runners.page.results import PageResult
from runners.page.sessions import NUM_LARGEST as NUM_LARGEST_KEPT
from runners.page.sessions import NUM_LARGEST_OF_SESSION, PageSessions
from runners.process import find_free_port
from runners.sandbox.fork_server import SandboxLimits
from runners.sandbox.pool import Sandbox
from tests.page.loops import run_apart
from tests.patience import scale, wait_until
from tests.server import ROOT


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/process_recording"),  # would run the system's FFmpeg
        ("POST", "/gradio_api/call/v2/generate"),
        ("POST", "/gradio_api/vibe-edit/"),
        ("POST", "/gradio_api/upload/../process_recording"),
        ("DELETE", "/gradio_api/file=/x"),
        ("POST", "/"),
        ("POST", "/x/gradio_api/upload"),
        ("GET", "/gradio_api/vibe-code"),
        ("GET", "/gradio_api/run-history/records"),
        ("GET", "/gradio_api/deep_link"),
        ("GET", "/monitoring"),
        ("GET", "/gradio_api/openapi.json"),
        ("GET", "/gradio_api/stream/a/b/c/playlist.m3u8"),
        ("GET", "/uix"),
        ("GET", "/modules/editor/index.html"),
        ("GET", "/gradio_api/file=http://127.0.0.1/x"),
        ("GET", "/gradio_api/file=HTTPS://127.0.0.1/x"),
        ("GET", "/gradio_api/file/http://127.0.0.1/x"),
        ("GET", "/gradio_api/proxy=http://127.0.0.1/x"),
        ("HEAD", "/gradio_api/proxy=http://127.0.0.1/x"),
    ],
)
def test_what_the_page_does_not_use_is_refused(method: str, path: str) -> None:
    assert is_refused(method, path)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", ""),
        ("HEAD", "/"),
        ("GET", "/config"),
        ("GET", "/assets/index-1.js"),
        ("GET", "/gradio_api/heartbeat/abc"),
        ("GET", "/gradio_api/file=/tmp/foley-page-1/clip.mp4"),
        ("GET", "/gradio_api/queue/data"),
        ("GET", "/results/a/1/foley-1.mp4"),
        ("GET", "/modules/editor/player.js"),
        ("POST", "/gradio_api/upload"),
        ("POST", "/gradio_api/queue/join"),
        ("POST", "/gradio_api/run/predict"),
        ("POST", "/gradio_api/cancel"),
    ],
)
def test_what_the_page_uses_is_passed_on(method: str, path: str) -> None:
    assert not is_refused(method, path)


def test_an_address_that_is_none_ends_the_page_with_one_line() -> None:
    command = [sys.executable, "-m", "runners.page", "--server", "nonsense", "--port", "0"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.startswith("page: --server: 'nonsense' is not an address")
    assert len(ended.stderr.splitlines()) == 1


def test_a_page_bounds_heads_and_what_a_killed_one_leaves_is_swept_by_the_next(
    tmp_path: Path,
) -> None:
    port = find_free_port()
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "runners.page", "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, env=environment) as page:
        try:
            address = ("127.0.0.1", port)
            connection = wait_until(lambda: connect(address), 30, what="the page never listened")
            with connection, contextlib.suppress(ConnectionError):  # it may break off meanwhile
                connection.sendall(b"GET / HTTP/1.1\r\nX: " + bytes([65]) * 1_000_000)
                assert connection.recv(12) == b"HTTP/1.1 400"
            assert len(list(tmp_path.glob("foley-*/results"))) == 1
        finally:
            page.kill()
    assert len(list(tmp_path.glob("foley-*/results"))) == 1
    command = [sys.executable, "-m", "runners.page", "--server", "nonsense", "--port", "0"]
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
    assert list(tmp_path.glob("foley-*")) == []


def connect(address: tuple[str, int]) -> socket.socket | None:
    """Return a connection, or None while nothing listens."""
    with contextlib.suppress(ConnectionRefusedError):
        return socket.create_connection(address, timeout=scale(30))
    return None


class Uploads:
    """An application that writes each upload, behind the page's gate."""

    def __init__(self, folder: Path, max_bytes: int, check_key: CheckKey | None = None) -> None:
        self.folder = folder
        self.gate = UploadGate(folder, max_bytes, check_key)
        self.num_written = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.gate.receive_upload(self.write, scope, receive, send)

    async def write(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.num_written += 1
        body = await Request(scope, receive).body()
        (self.folder / f"upload-{self.num_written}").write_bytes(body)
        await PlainTextResponse("ok")(scope, receive, send)

    def post(self, body: bytes | object, **headers: str) -> httpx.Response:
        async def run() -> httpx.Response:
            transport = httpx.ASGITransport(app=self)
            async with httpx.AsyncClient(transport=transport, base_url="http://page") as client:
                return await client.post("/gradio_api/upload", content=body, headers=headers)

        return run_apart(run())


def test_an_upload_is_refused_by_its_length_before_it_is_written(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, 1000)
    assert uploads.post(bytes(FORM_BYTES + 1000)).status_code == 200
    refused = uploads.post(bytes(FORM_BYTES + 1001))
    assert refused.status_code == 413
    assert "1000 bytes" in refused.text

    async def without_length() -> object:
        yield b"x"

    assert uploads.post(without_length()).status_code == 411
    assert uploads.num_written == 1


def test_an_upload_needs_a_key_where_the_service_does(tmp_path: Path) -> None:
    async def check(key: str) -> None:
        if key == "lost":
            raise ConnectionFailedError("nobody answers")
        if key != "right":
            raise UnauthorizedError("no")

    uploads = Uploads(tmp_path, 1000, check)
    for headers in ({}, {"X-Api-Key": "wrong"}):
        refused = uploads.post(b"x", **headers)
        assert (refused.status_code, "API key" in refused.text) == (401, True)
    assert uploads.post(b"x", **{"X-Api-Key": "lost"}).status_code == 503
    assert uploads.num_written == 0
    assert uploads.post(b"x", **{"X-Api-Key": "right"}).status_code == 200


def test_all_uploads_together_have_a_quota_and_old_ones_make_room(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, 1000)
    largest = bytes(FORM_BYTES + 1000)
    for _ in range(NUM_LARGEST):
        assert uploads.post(largest).status_code == 200
    refused = uploads.post(largest)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    an_hour_ago = time.time() - 3600
    os.utime(tmp_path / "upload-3", (an_hour_ago, an_hour_ago))
    assert uploads.post(largest).status_code == 200
    assert not (tmp_path / "upload-3").exists()
    assert len(list(tmp_path.iterdir())) == NUM_LARGEST


def test_an_upload_is_refused_while_the_disk_has_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = Uploads(tmp_path, 1000)
    monkeypatch.setattr(gate, "MIN_ROOM_BYTES", shutil.disk_usage(tmp_path).total)
    refused = uploads.post(b"x")
    assert (refused.status_code, "no room" in refused.text) == (503, True)
    assert int(refused.headers["retry-after"]) > 0
    assert uploads.num_written == 0


def test_uploads_that_are_kept_too_long_are_removed(tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(b"x")
    (tmp_path / "old").write_bytes(b"x")
    then = time.time() - KEEP_SECONDS - 10
    os.utime(tmp_path / "old", (then, then))

    async def run() -> None:
        sweeping = asyncio.create_task(UploadGate(tmp_path, 1000).sweep_forever())
        while (tmp_path / "old").exists():
            await asyncio.sleep(0.01)
        sweeping.cancel()

    run_apart(run())
    assert (tmp_path / "new").exists()


def make_sessions(folder: Path, max_clip_bytes: int = 1000) -> PageSessions:
    """Return sessions that draw nothing."""
    return PageSessions(
        folder,
        "http://127.0.0.1:9",
        sandbox=None,  # type: ignore[arg-type]
        max_clip_bytes=max_clip_bytes,
    )


def test_the_bytes_of_results_have_a_quota_for_each_session_and_for_all(tmp_path: Path) -> None:
    sessions = make_sessions(tmp_path, max_clip_bytes=100)
    of_session, of_all = 100 * NUM_LARGEST_OF_SESSION, 100 * NUM_LARGEST_KEPT

    async def add(session_id: str, num_bytes: int) -> Path:
        session = sessions.get(session_id)
        session.num_results += 1
        folder = session.folder / str(session.num_results)
        folder.mkdir()
        (folder / "original").write_bytes(bytes(num_bytes))
        result = PageResult(
            number=session.num_results,
            folder=folder,
            film_strip=folder,
            tracks=(),
            generation=None,  # type: ignore[arg-type]
            settings=None,  # type: ignore[arg-type]
        )
        await sessions._add_result(session, result)
        return folder

    async def run() -> None:
        first, second = [await add("a", of_session // 2) for _ in range(2)]
        third = await add("a", 1)
        assert [path.exists() for path in (first, second, third)] == [False, True, True]
        last = await add("a", 2 * of_session)  # larger than the quota: it is kept alone
        assert [result.folder for result in sessions.get("a").results] == [last]
        running = sessions.get("b")
        running.running = object()  # type: ignore[assignment]
        for number in range(of_all // of_session):
            await add(str(number), of_session)
        assert sessions.find("a") is None  # its results were used least recently
        assert sessions.find("b") is running
        assert sum(path.stat().st_size for path in tmp_path.rglob("original")) <= of_all

    run_apart(run())


def test_invented_sessions_end_and_idle_ones_make_room(tmp_path: Path) -> None:
    async def run() -> None:
        sessions = make_sessions(tmp_path)
        for number in range(5):
            sessions.get(str(number))
        sessions.get("0")  # used again
        await sessions.end_idle(3600, 3)
        assert [number for number in range(5) if sessions.find(str(number))] == [0, 3, 4]
        await sessions.cancel("invented")
        assert sessions.find("invented") is None
        await sessions.end_idle(-1, 3)
        assert list(tmp_path.iterdir()) == []

    run_apart(run())


def test_until_the_page_is_built_browsers_wait_and_programs_are_told(tmp_path: Path) -> None:
    sandbox = Sandbox(SandboxLimits(memory_bytes=2**30, cpu_seconds=10, file_bytes=2**20), {})
    page = PageApp("http://127.0.0.1:9", tmp_path, prefix="", same_origin=True, sandbox=sandbox)
    transport = httpx.ASGITransport(app=page)

    async def call() -> None:
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            html = await client.get("/", headers={"Accept": "text/html,*/*;q=0.8"})
            assert (html.status_code, "The page is starting" in html.text) == (200, True)
            for told in (
                await client.get("/config"),
                await client.post("/gradio_api/upload", files={"files": b"1"}),
            ):
                assert (told.status_code, "is starting" in told.text) == (503, True)
                assert int(told.headers["Retry-After"]) > 0

    run_apart(call())

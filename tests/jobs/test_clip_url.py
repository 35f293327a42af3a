"""Clips that a request names by `clip_url`, over HTTP and gRPC, from a real host on loopback."""

import asyncio
import base64
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from foley.v1.foley_pb2 import GenerateOptions, GenerateRequest
from foley.v1.foley_pb2_grpc import FoleyServiceStub
from runners.fetch import Fetcher
from runners.handoff import CLIP
from runners.jobs.clip_url import MAX_DATA_URI_BYTES, ClipLoader
from runners.jobs.job import GenerationJob
from runners.jobs.outputs import JobResult
from runners.jobs.scratch import Scratch
from runners.process import find_free_port
from runners.settings import Settings
from tests.fake_service import FakeService
from tests.grpc.test_servicer import make_server
from tests.http.test_forms import open_endpoint
from tests.patience import scale

CONTENT = bytes(range(256)) * 400
DATA_URI = "data:video/mp4;base64," + base64.b64encode(CONTENT).decode()
MAX_BYTES = 200_000


class Host(ThreadingHTTPServer):
    """An HTTP server on loopback with a list of what it was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.asked: list[str] = []

    def url(self, path: str, name: str = "127.0.0.1") -> str:
        return f"http://{name}:{self.server_port}{path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors: a client may close its connection."""


class Answers(BaseHTTPRequestHandler):
    server: Host

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        body = bytes(MAX_BYTES + 1) if self.path == "/large" else CONTENT
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    thread = threading.Thread(target=host.serve_forever, args=(0.01,))
    thread.start()
    yield host
    host.shutdown()
    thread.join()
    host.server_close()


class ReadingService(FakeService):
    """Keeps the clip of each job."""

    def __init__(self) -> None:
        super().__init__()
        self.clips: list[bytes] = []

    async def run(self, job: GenerationJob, *rest: Any) -> JobResult:
        self.clips.append((job.folder / CLIP).read_bytes())
        return await super().run(job, *rest)


def make_loader(settings: Settings) -> ClipLoader:
    """A loader that may reach 127.0.0.1, and no other address."""
    return ClipLoader(
        settings,
        Fetcher(
            max_bytes=MAX_BYTES,
            timeout_seconds=scale(10),
            schemes=("https", "http"),
            is_allowed=lambda address: str(address) == "127.0.0.1",
        ),
    )


def post(
    folder: Path,
    service: FakeService,
    fields: dict[str, str],
    *,
    clip: bytes | None = None,
    guarded: bool = False,
    settings: Settings | None = None,
) -> httpx.Response:
    """Send a form; the loader has its usual guard, or reaches this machine."""
    settings = settings or Settings(max_upload_bytes=MAX_BYTES)

    async def run() -> httpx.Response:
        loader = None if guarded else make_loader(settings)
        parts: Any = [(name, (None, value)) for name, value in fields.items()]
        if clip is not None:
            parts.append(("clip", ("a.mp4", clip)))
        with open_endpoint(folder, service, settings, loader) as (client, scratch):
            async with client:
                response = await client.post("/v1/generate", files=parts)
            assert list(scratch.folder.iterdir()) == []
        await asyncio.sleep(scale(0.05))  # broken connections close before the loop ends
        return response

    return asyncio.run(run())


def test_an_address_stands_for_the_clip(host: Host, tmp_path: Path) -> None:
    service = ReadingService()
    response = post(tmp_path, service, {"clip_url": host.url("/clip?a=1"), "prompt": "rain"})
    assert response.status_code == 200, response.text
    assert service.clips == [CONTENT]
    assert service.jobs[0].options.prompt == "rain"
    assert host.asked == ["/clip?a=1"]


@pytest.mark.parametrize(
    "uri",
    [
        DATA_URI,
        DATA_URI.replace("data:", "DATA:"),
        "data:," + "".join(f"%{byte:02x}" for byte in CONTENT[:256]),
    ],
    ids=["base64", "capitals", "percent"],
)
@pytest.mark.parametrize("is_fetching", [True, False])
def test_a_data_uri_holds_the_clip(tmp_path: Path, uri: str, is_fetching: bool) -> None:
    service = ReadingService()
    settings = Settings(max_upload_bytes=4 * MAX_BYTES, clip_urls=is_fetching)
    response = post(tmp_path, service, {"clip_url": uri}, settings=settings, guarded=True)
    assert response.status_code == 200, response.text
    assert service.clips == [CONTENT if "base64" in uri else CONTENT[:256]]
    assert service.jobs[0].options.clip_url is None  # it is not held in memory any more


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::1]", "2130706433"])
def test_this_machine_is_not_reached(host: Host, tmp_path: Path, name: str) -> None:
    service = ReadingService()
    response = post(tmp_path, service, {"clip_url": host.url("/clip", name)}, guarded=True)
    assert response.status_code == 422
    error = response.json()["error"]
    assert error["code"] == "clip_not_fetched"
    assert "open internet" in error["message"] or "malformed" in error["message"]
    assert (host.asked, service.jobs) == ([], [])


@pytest.mark.parametrize("target", ["http://169.254.169.254/latest/", "http://10.0.0.1/"])
def test_a_redirect_leads_to_no_private_address(host: Host, tmp_path: Path, target: str) -> None:
    service = ReadingService()
    response = post(tmp_path, service, {"clip_url": host.url(f"/to/{target}")})
    assert response.status_code == 422
    assert "not the open internet" in response.json()["error"]["message"]
    assert service.jobs == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"clip_url": "ftp://clips.test/clip"}, "must begin with https:// or http://"),
        ({"clip_url": "file:///etc/passwd"}, "must begin with https:// or http://"),
        ({"clip_url": "https://name:secret@clips.test/"}, "user name or password"),
        ({"clip_url": "https://a.test/", "duration_seconds": "1", "start_seconds": "2"}, "got 2"),
        ({"clip_url": "data:video/mp4;base64"}, "has no comma"),
        ({"clip_url": "data:video/mp4;base64,A"}, "is not base64"),
        ({"clip_url": "data:video/mp4;base64,"}, "is empty"),
        ({"clip_url": ""}, "clip: missing; send a video or its clip_url"),
    ],
)
def test_what_is_no_address_of_a_clip_is_refused(
    tmp_path: Path, fields: dict[str, str], words: str
) -> None:
    service = ReadingService()
    response = post(tmp_path, service, fields)
    assert response.status_code == 422, response.text
    assert words in response.json()["error"]["message"]
    assert service.jobs == []


def test_a_clip_and_its_address_are_one_too_many(host: Host, tmp_path: Path) -> None:
    response = post(tmp_path, ReadingService(), {"clip_url": host.url("/clip")}, clip=CONTENT)
    assert response.status_code == 422
    assert "got an address and a clip" in response.json()["error"]["message"]
    assert host.asked == []


def test_fetching_can_be_switched_off(host: Host, tmp_path: Path) -> None:
    settings = Settings(clip_urls=False)
    fields = {"clip_url": host.url("/clip")}
    response = post(tmp_path, ReadingService(), fields, settings=settings)
    assert response.status_code == 422
    assert "fetches no addresses" in response.json()["error"]["message"]
    assert host.asked == []


def test_a_clip_that_is_too_large_is_refused(host: Host, tmp_path: Path) -> None:
    response = post(tmp_path, ReadingService(), {"clip_url": host.url("/large")})
    assert response.status_code == 413
    assert f"limit of {MAX_BYTES} bytes" in response.json()["error"]["message"]
    settings = Settings()
    large = {"clip_url": "data:," + "x" * MAX_DATA_URI_BYTES}
    response = post(tmp_path, ReadingService(), large, settings=settings)
    assert response.status_code == 400
    assert f"more than {MAX_DATA_URI_BYTES} bytes" in response.json()["error"]["message"]


def test_fetched_bytes_count_among_those_of_all_uploads(host: Host, tmp_path: Path) -> None:
    settings = Settings(max_upload_bytes=MAX_BYTES, max_uploads_bytes=50_000)
    response = post(tmp_path, ReadingService(), {"clip_url": host.url("/clip")}, settings=settings)
    assert response.status_code == 429


def test_grpc_takes_an_address_too(host: Host, tmp_path: Path) -> None:
    async def call(stub: FoleyServiceStub, address: str) -> tuple[grpc.StatusCode, str]:
        message = GenerateRequest(options=GenerateOptions(clip_url=address))
        answer = stub.Generate(iter([message]), wait_for_ready=True)
        try:
            async for _ in answer:
                pass
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
        return grpc.StatusCode.OK, ""

    async def run() -> None:
        settings = Settings(grpc_port=find_free_port("::1"), grpc_host="::1")
        service, scratch = ReadingService(), Scratch(tmp_path)
        server = make_server(settings, service, scratch)
        async with grpc.aio.insecure_channel(f"[::1]:{settings.grpc_port}") as channel:
            stub = FoleyServiceStub(channel)
            assert await call(stub, DATA_URI) == (grpc.StatusCode.OK, "")
            assert service.clips == [CONTENT]
            code, words = await call(stub, host.url("/clip"))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert "not the open internet" in words
            assert host.asked == []
        async with asyncio.timeout(scale(5)):
            await server.stop()
        scratch.close()

    asyncio.run(run())

"""Receiving a clip and sending a result."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from foley.types import Stage
from foley.v1 import foley_pb2 as proto
from foley.v1.foley_pb2 import GenerateOptions, GenerateRequest
from foley.v1.foley_pb2_grpc import FoleyServiceStub
from runners.auth import ApiKeys
from runners.grpc.boundary import address_of
from runners.grpc.jobs import JobServicer
from runners.grpc.server import GrpcServer
from runners.grpc.servicer import FoleyServicer
from runners.jobs import intake
from runners.jobs.cancellation import CancellationRegistry
from runners.jobs.clip_url import ClipLoader
from runners.jobs.ending import Ending
from runners.jobs.intake import make_intake
from runners.jobs.job import GenerationJob
from runners.jobs.outputs import JobResult, PieceFile
from runners.jobs.scratch import Scratch
from runners.messages import FinishedPiece, ProgressUpdate
from runners.process import find_free_port
from runners.settings import Settings
from tests.fake_service import FakeService
from tests.grpc.test_server import ready
from tests.patience import is_within, scale

NUM_BYTES = 40_000_000
TIMEOUT_SECONDS = 2.0
NUM_PIECES = 40
PIECE_BYTES = 1_200_000  # 8 s of 24 bits


def make_server(
    settings: Settings,
    service: FakeService,
    scratch: Scratch,
    keys: ApiKeys | None = None,
    jobs: JobServicer | None = None,
) -> GrpcServer:
    """Return a server with a real servicer, scratch folder and intake in front of a service."""
    keys = keys or ApiKeys([])
    requests = scratch.folder.parent / "requests"
    requests.mkdir(exist_ok=True)
    servicer = FoleyServicer(
        settings,
        service,  # type: ignore[arg-type]
        scratch,
        make_intake(settings),
        ClipLoader(settings),
        CancellationRegistry(requests),
        keys,
        Ending(30),
    )
    return GrpcServer(servicer, settings, keys, jobs=jobs, check_ready=ready)


async def read_all(call: grpc.aio.StreamStreamCall) -> None:
    while await call.read():
        pass


@pytest.mark.long
def test_a_caller_who_stops_reading_does_not_hold_files(tmp_path: Path) -> None:
    async def run() -> None:
        timeout_seconds = scale(TIMEOUT_SECONDS)
        settings = Settings(
            request_timeout_seconds=timeout_seconds,
            grpc_port=find_free_port("::1"),
            grpc_host="::1",
        )
        service, scratch = FakeService(NUM_BYTES), Scratch(tmp_path)
        server = make_server(settings, service, scratch)
        parts = [GenerateRequest(options=GenerateOptions()), GenerateRequest(chunk=b"clip")]
        async with grpc.aio.insecure_channel(f"[::1]:{settings.grpc_port}") as channel:
            call = FoleyServiceStub(channel).Generate(iter(parts), wait_for_ready=True)
            while (await call.read()).WhichOneof("event") != "chunk":
                pass
            started = time.monotonic()
            assert len([path for path in scratch.folder.iterdir() if path.is_dir()]) == 1
            while list(scratch.folder.iterdir()):
                assert is_within(time.monotonic() - started - timeout_seconds, 1)
                await asyncio.sleep(0.05)
            with pytest.raises(grpc.RpcError):
                await read_all(call)
            assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            # The connection serves others.
            other = FoleyServiceStub(channel).Generate(iter(parts))
            received = 0
            async for message in other:
                received += len(message.chunk.data)
            assert received == NUM_BYTES
        async with asyncio.timeout(scale(2)):
            await server.stop()
        scratch.close()

    asyncio.run(run())


class ServiceOfPieces(FakeService):
    """Hands out pieces of a long sound as fast as they are taken."""

    def __init__(self) -> None:
        super().__init__()
        self.has_handed_out_all = asyncio.Event()

    async def run(self, job: GenerationJob, *given: Any) -> JobResult:
        *_, on_update, on_sound = given
        on_update(ProgressUpdate(stage=Stage.ENCODE))
        for number in range(1, NUM_PIECES + 1):
            path = job.folder / f"piece-{number}.wav"
            path.write_bytes(bytes([number]) * PIECE_BYTES)
            piece = FinishedPiece(
                variation=1,
                number=number,
                seed=1,
                start_seconds=8.0 * (number - 1),
                duration_seconds=8.0,
                sample_rate=48_000,
            )
            await on_sound(PieceFile(piece=piece, path=path))
        self.has_handed_out_all.set()
        return await super().run(job)


def test_pieces_wait_as_files_for_a_caller_who_reads_slowly(tmp_path: Path) -> None:
    async def run() -> None:
        settings = Settings(grpc_port=find_free_port("::1"), grpc_host="::1")
        service, scratch = ServiceOfPieces(), Scratch(tmp_path)
        server = make_server(settings, service, scratch)
        parts = [GenerateRequest(options=GenerateOptions(pieces=True))]
        parts.append(GenerateRequest(chunk=b"clip"))
        async with grpc.aio.insecure_channel(f"[::1]:{settings.grpc_port}") as channel:
            call = FoleyServiceStub(channel).Generate(iter(parts), wait_for_ready=True)
            while (await call.read()).WhichOneof("event") != "sound":
                pass
            async with asyncio.timeout(scale(20)):
                await service.has_handed_out_all.wait()
            # The rest is in no memory but the connection's, which holds a few.
            assert len(list(scratch.folder.glob("*/piece-*"))) > NUM_PIECES // 2
            numbers = [1]
            while message := await call.read():
                if message.WhichOneof("event") == "sound":
                    assert message.sound.data == bytes([message.sound.number]) * PIECE_BYTES
                    numbers.append(message.sound.number)
            assert numbers == list(range(1, NUM_PIECES + 1))
        async with asyncio.timeout(scale(5)):
            await server.stop()
        assert not list(scratch.folder.glob("*/piece-*"))
        scratch.close()

    asyncio.run(run())


@pytest.mark.long
def test_calls_that_dribble_shut_nobody_out_and_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    window_seconds = scale(2)  # all calls begin within it
    monkeypatch.setattr(intake, "WINDOW_SECONDS", window_seconds)

    async def dribble() -> AsyncIterator[GenerateRequest]:
        yield GenerateRequest(options=GenerateOptions())
        while True:
            yield GenerateRequest(chunk=b"x")
            await asyncio.sleep(window_seconds / 4)

    async def run() -> None:
        settings = Settings(max_concurrency=1, grpc_port=find_free_port("::1"), grpc_host="::1")
        service, scratch = FakeService(), Scratch(tmp_path)
        server = make_server(settings, service, scratch)
        async with grpc.aio.insecure_channel(f"[::1]:{settings.grpc_port}") as channel:
            stub = FoleyServiceStub(channel)
            slow = [stub.Generate(dribble(), wait_for_ready=True) for _ in range(20)]
            async with asyncio.timeout(scale(10)):
                while len(list(scratch.folder.iterdir())) < len(slow):
                    await asyncio.sleep(0.02)
            parts = [GenerateRequest(options=GenerateOptions()), GenerateRequest(chunk=b"clip")]
            received = 0
            async for message in stub.Generate(iter(parts)):
                received += len(message.chunk.data)
            assert received == service.num_bytes
            # A client that writes while its call is ended may see INTERNAL instead: the
            # server says why.
            ended = [await call.code() for call in slow]
            assert grpc.StatusCode.DEADLINE_EXCEEDED in ended
            assert grpc.StatusCode.OK not in ended
            assert list(scratch.folder.iterdir()) == []
        async with asyncio.timeout(scale(5)):
            await server.stop()
        scratch.close()

    with capture_logs() as logs:
        asyncio.run(run())
    codes = [entry.get("code") for entry in logs if entry["event"] == "request"]
    assert codes.count("upload_too_slow") == 20


async def send_bytes(
    channel: grpc.aio.Channel, path: str, data: bytes, *, is_stream: bool, key: str = ""
) -> grpc.aio.AioRpcError:
    """Send a message of these bytes, and return the error of the call."""
    metadata = (("x-api-key", key),) if key else ()
    begin = channel.stream_stream if is_stream else channel.unary_stream
    call = begin(path)(iter([data]) if is_stream else data, metadata=metadata, wait_for_ready=True)
    with pytest.raises(grpc.RpcError) as caught:
        async for _ in call:
            pass
    assert isinstance(caught.value, grpc.aio.AioRpcError)
    return caught.value


def test_a_message_that_cannot_be_parsed_is_the_callers_mistake(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key, settings = "k" * 32, Settings(grpc_port=find_free_port("::1"), grpc_host="::1")
    methods = [
        (f"/{service.full_name}/{method.name}", method.client_streaming)
        for service in proto.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]
    assert len(methods) == 10

    async def submit(_owner: str, _caller: str, read: Any, **_: Any) -> None:
        await read(tmp_path, None, None)

    async def run() -> None:
        scratch, keys = Scratch(tmp_path), ApiKeys([key])
        reception = SimpleNamespace(jobs=None, submit=submit)
        jobs = JobServicer(settings, reception, keys)  # type: ignore[arg-type]
        server = make_server(settings, FakeService(), scratch, keys, jobs)
        async with grpc.aio.insecure_channel(f"[::1]:{settings.grpc_port}") as channel:
            for path, is_stream in [*methods, ("/grpc.health.v1.Health/Check", False)]:
                for data in (b"\xff\xff\xff\xff", b"\x0a\xff"):
                    error = await send_bytes(channel, path, data, is_stream=is_stream, key=key)
                    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, path
                    name = path.rpartition("/")[2]
                    words = f"a message to {name} cannot be parsed as protobuf"
                    assert str(error.details()).startswith(words)
                    trailing = dict(error.trailing_metadata() or ())
                    assert trailing["foley-error-code"] == "invalid_request"
                if "foley" in path:
                    error = await send_bytes(channel, path, data, is_stream=is_stream)
                    assert error.code() is grpc.StatusCode.UNAUTHENTICATED, path
        await server.stop()
        scratch.close()

    with capture_logs() as logs:
        asyncio.run(run())
    assert [entry for entry in logs if entry["event"] != "request"] == [
        {"event": "grpc_listening", "host": "::1", "port": settings.grpc_port, "log_level": "info"}
    ]
    assert caplog.records == []


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.1:50000", "192.0.2.1"),
        ("ipv6:%5B2001:db8::1%5D:50000", "2001:db8::1"),
        ("ipv6:[::1]:50000", "::1"),
        ("unix:", ""),
    ],
)
def test_the_address_of_a_peer_is_read(peer: str, address: str) -> None:
    assert address_of(peer) == address

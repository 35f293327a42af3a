"""Sending a result."""

import asyncio
import time
from pathlib import Path

import grpc
import pytest

from foley.v1.foley_pb2 import GenerateOptions, GenerateRequest
from foley.v1.foley_pb2_grpc import FoleyServiceStub
from runners.auth import ApiKeys
from runners.grpc.server import GrpcServer
from runners.grpc.servicer import FoleyServicer
from runners.jobs.cancellation import CancellationRegistry
from runners.jobs.intake import make_intake
from runners.jobs.scratch import Scratch
from runners.process import find_free_port
from runners.settings import Settings
from tests.fake_service import FakeService
from tests.grpc.test_server import ready
from tests.patience import is_within, scale

NUM_BYTES = 40_000_000
TIMEOUT_SECONDS = 2.0


async def read_all(call: grpc.aio.StreamStreamCall) -> None:
    while await call.read():
        pass


def test_a_caller_who_stops_reading_does_not_hold_files(tmp_path: Path) -> None:
    async def run() -> None:
        timeout_seconds = scale(TIMEOUT_SECONDS)
        settings = Settings(
            request_timeout_seconds=timeout_seconds,
            grpc_port=find_free_port("::1"),
            grpc_host="::1",
        )
        service, scratch = FakeService(NUM_BYTES), Scratch(tmp_path)
        servicer = FoleyServicer(
            settings,
            service,  # type: ignore[arg-type]
            scratch,
            make_intake(settings),
            CancellationRegistry(tmp_path),
            ApiKeys([]),
        )
        server = GrpcServer(servicer, settings, check_ready=ready)
        parts = [GenerateRequest(options=GenerateOptions()), GenerateRequest(chunk=b"clip")]
        async with grpc.aio.insecure_channel(f"[::1]:{settings.grpc_port}") as channel:
            call = FoleyServiceStub(channel).Generate(iter(parts), wait_for_ready=True)
            while (await call.read()).WhichOneof("event") != "chunk":
                pass
            started = time.monotonic()
            assert len(list(scratch.folder.iterdir())) == 1
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

"""The port that the server listens on."""

import asyncio
import socket
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from foley.errors import NotReadyError
from foley.v1.foley_pb2 import GetModelRequest
from foley.v1.foley_pb2_grpc import FoleyServiceServicer, FoleyServiceStub
from runners.auth import ApiKeys
from runners.grpc import server as server_module
from runners.grpc.server import GrpcServer
from runners.jobs.run import GenerationService
from runners.messages import ModelStatus
from runners.process import find_free_port
from runners.settings import Settings
from tests.patience import Deadline, scale

OPEN = ApiKeys([])


async def ready() -> None:
    pass


async def wait_for_check(server: GrpcServer, words: str) -> None:
    """Wait until the server's check fails with these words; with none, until it succeeds."""
    deadline = Deadline(5)
    while True:
        try:
            server.check()
            reason = ""
        except NotReadyError as error:
            reason = str(error)
        if words in reason and bool(words) == bool(reason):
            return
        assert not deadline.is_over(), reason
        await asyncio.sleep(0.05)


def test_a_port_in_use_is_reported_and_taken_once_it_is_free() -> None:
    async def run() -> None:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            settings = Settings(grpc_port=port, grpc_host="127.0.0.1")
            server = GrpcServer(FoleyServiceServicer(), settings, OPEN, check_ready=ready)
            await wait_for_check(server, f"port {port} of gRPC is taken")
        await wait_for_check(server, "")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True)
            assert answer.status in (1, 2)
        await server.stop()

    asyncio.run(run())


def test_health_is_not_serving_once_the_server_stops() -> None:
    seen: list[int] = []

    async def run() -> None:
        server = GrpcServer(
            FoleyServiceServicer(),
            Settings(grpc_port=find_free_port("::1"), grpc_host="::1"),
            OPEN,
            check_ready=ready,
        )
        async with grpc.aio.insecure_channel(f"[::1]:{server._port}") as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(), wait_for_ready=True
            )
            async for answer in watch:
                seen.append(answer.status)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    server.begin_stop()
            async with asyncio.timeout(scale(2)):  # a watcher does not hold it up
                await server.stop()

    asyncio.run(run())
    known = health_pb2.HealthCheckResponse
    assert seen[-2:] == [known.SERVING, known.NOT_SERVING]


def frame(kind: int, payload: bytes = b"") -> bytes:
    """An HTTP/2 frame of the connection."""
    return len(payload).to_bytes(3, "big") + bytes([kind, 0]) + bytes(4) + payload


def test_keep_alive_pings_do_not_end_an_idle_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pings come faster than 10 s, and the least interval of the server is shorter as well."""
    assert server_module.MIN_PING_MS < 10_000
    monkeypatch.setattr(server_module, "MIN_PING_MS", 1)
    kinds: list[int] = []
    settings, ping, goaway, num_pings = 4, 6, 7, 8

    async def run() -> None:
        port = find_free_port()
        options = Settings(grpc_port=port, grpc_host="127.0.0.1")
        server = GrpcServer(FoleyServiceServicer(), options, OPEN, check_ready=ready)
        await wait_for_check(server, "")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(settings))
        for number in range(num_pings):
            writer.write(frame(ping, number.to_bytes(8, "big")))
            while not kinds or kinds[-1] not in (ping, goaway):
                head = await reader.readexactly(9)
                await reader.readexactly(int.from_bytes(head[:3], "big"))
                kinds.append(head[3])
            if kinds[-1] == goaway:
                break
            kinds.append(-1)  # wait for the answer to the next ping
            await asyncio.sleep(0.02)  # longer than the least interval
        writer.close()
        await server.stop()

    asyncio.run(run())
    assert goaway not in kinds
    assert kinds.count(ping) == num_pings


def test_an_answer_that_comes_as_the_server_ends_does_not_keep_it() -> None:
    """Python 3.11's `asyncio.wait_for` forgets that it was cancelled then."""

    async def run() -> None:
        asked: asyncio.Queue[asyncio.Future[ModelStatus]] = asyncio.Queue()

        class Runner:
            async def status(self) -> ModelStatus:
                answer = asyncio.get_running_loop().create_future()
                asked.put_nowait(answer)
                return await answer

        runner: Any = Runner()
        service = GenerationService(
            Settings(),
            runner,
            scratch=None,
            sandbox=None,
            marks=None,  # type: ignore[arg-type]
        )
        options = Settings(grpc_port=find_free_port(), grpc_host="127.0.0.1")
        server = GrpcServer(FoleyServiceServicer(), options, OPEN, check_ready=service.ask_model)
        (await asked.get()).set_result(ModelStatus(state="ready"))
        server.begin_stop()
        async with asyncio.timeout(scale(5)):
            await server.stop()

    asyncio.run(run())


def test_a_call_that_does_not_end_is_cut_off_within_the_grace_period(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "find_grace_seconds", lambda: 0.5)

    class Servicer(FoleyServiceServicer):
        async def GetModel(self, request: object, context: object) -> None:  # noqa: N802
            called.set()
            await asyncio.Event().wait()

    called = asyncio.Event()

    async def run() -> None:
        port = find_free_port()
        options = Settings(grpc_port=port, grpc_host="127.0.0.1")
        server = GrpcServer(Servicer(), options, OPEN, check_ready=ready)  # type: ignore[arg-type]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            calling = FoleyServiceStub(channel).GetModel(GetModelRequest(), wait_for_ready=True)
            await called.wait()
            async with asyncio.timeout(scale(10)):
                await server.stop()
            with pytest.raises(grpc.RpcError):
                await calling

    asyncio.run(run())

"""The gRPC server of one API process, beside its HTTP server and in the same event loop."""

import asyncio
import contextlib
import ipaddress
from collections.abc import Awaitable, Callable

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from runners.rpc import SERVICE
from runners.rpc.foley_pb2 import DESCRIPTOR
from runners.rpc.foley_pb2_grpc import add_FoleyServiceServicer_to_server
from runners.rpc.servicer import FoleyServicer

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0  # how often readiness is looked at, and a port that was taken
DRAIN_SECONDS = 25.0  # how long calls in flight may take to end
MAX_MESSAGE_BYTES = 4 * 1024 * 1024


class RpcServer:
    """Serves `FoleyService`, health and reflection.

    Args:
        servicer: answers the calls.
        address: host and port.
        shared: whether other processes of this service listen there too.
        ready: raises while requests cannot be served.
    """

    def __init__(
        self,
        servicer: FoleyServicer,
        address: tuple[str, int],
        *,
        shared: bool,
        ready: Callable[[], Awaitable[object]],
    ) -> None:
        self._host, self._port = address
        self._ready = ready
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", int(shared)),
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ]
        )
        add_FoleyServiceServicer_to_server(servicer, self._server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        assert DESCRIPTOR.services_by_name[SERVICE.rpartition(".")[2]].full_name == SERVICE
        reflection.enable_server_reflection(names, self._server)
        self.listening = False
        self._running = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Take no new calls, and let those in flight end, within bounds."""
        self._running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._running
        await self._health.enter_graceful_shutdown()
        await self._server.stop(DRAIN_SECONDS)

    async def _run(self) -> None:
        await self._set_health(serving=False)
        await self._listen()
        serving = False
        while True:
            try:
                await self._ready()
                now_serving = True
            except Exception:  # noqa: BLE001 - whatever it is, /readyz tells it
                now_serving = False
            if now_serving != serving:
                serving = now_serving
                await self._set_health(serving=serving)
            await asyncio.sleep(LOOK_SECONDS)

    async def _listen(self) -> None:
        """Take the port; where an earlier service has not yet left it, as soon as it does."""
        host = f"[{self._host}]" if _is_v6(self._host) else self._host
        told = False
        while not self.listening:
            try:
                self._server.add_insecure_port(f"{host}:{self._port}")
                self.listening = True
            except RuntimeError as error:
                if not told:
                    log.error("grpc_port_taken", port=self._port, reason=str(error))
                told = True
                await asyncio.sleep(LOOK_SECONDS)
        await self._server.start()
        log.info("grpc_listening", host=self._host, port=self._port)

    async def _set_health(self, *, serving: bool) -> None:
        known = health_pb2.HealthCheckResponse
        status = known.SERVING if serving else known.NOT_SERVING
        for name in ("", SERVICE):
            await self._health.set(name, status)


def _is_v6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:  # a name
        return False

"""The gRPC server of one API process, beside its HTTP server and in the same event loop."""

import asyncio
import ipaddress
import os
import socket
from collections.abc import Awaitable, Callable

import click
import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from foley.errors import NotReadyError
from foley.v1.foley_pb2_grpc import add_FoleyServiceServicer_to_server
from runners.grpc import SERVICE
from runners.grpc.servicer import FoleyServicer
from runners.process import on_end_asked
from runners.settings import Settings

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0  # how often readiness is looked at, and a port that was taken
DRAIN_SECONDS = 25.0  # how long calls in flight may take to end
LAST_WORD_SECONDS = 0.2  # how long the last state may take to reach those who watch
MAX_MESSAGE_BYTES = 4 * 1024 * 1024


class RpcServer:
    """Serves `FoleyService`, health and reflection; needs a running event loop.

    Args:
        servicer: answers the calls.
        settings: host and port.
        ready: raises while requests cannot be served.
    """

    def __init__(
        self, servicer: FoleyServicer, settings: Settings, *, ready: Callable[[], Awaitable[object]]
    ) -> None:
        self._host = settings.grpc_host or _http_host()
        self._port = settings.grpc_port
        self._ready = ready
        self._listening = False
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", int(settings.api_workers > 1)),
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ]
        )
        add_FoleyServiceServicer_to_server(servicer, self._server)
        self._health = _Health()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self._running = asyncio.create_task(self._run())
        self._stopping: asyncio.Task[None] | None = None
        # HTTP's connections are drained before anybody is told of the end.
        on_end_asked(self.begin_stop)

    def check(self) -> None:
        """Raise what says why nothing can be served here."""
        if not self._listening:
            raise NotReadyError(
                f"port {self._port} of gRPC is taken; set FOLEY_GRPC_PORT to another, or to 0"
            )

    def begin_stop(self) -> None:
        """Take no new calls from now on."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop())

    async def stop(self) -> None:
        """Let the calls in flight end, within bounds."""
        self.begin_stop()
        assert self._stopping is not None
        await self._stopping

    async def _stop(self) -> None:
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        await self._health.end()
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
        while not self._listening:
            try:
                self._server.add_insecure_port(f"{host}:{self._port}")
                self._listening = True
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


class _Health(health.aio.HealthServicer):
    """The library's, whose watchers would hold the server until it stops draining."""

    def __init__(self) -> None:
        super().__init__()
        self._ended = asyncio.Event()

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> None:
        """Tell every change, up to the end."""
        watching = asyncio.create_task(super().Watch(request, context))
        ending = asyncio.create_task(self._ended.wait())
        try:
            await asyncio.wait({watching, ending}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({watching}, timeout=LAST_WORD_SECONDS)
        finally:
            watching.cancel()
            ending.cancel()
            await asyncio.gather(watching, ending, return_exceptions=True)

    async def end(self) -> None:
        """Tell that nothing is served any more, and let the watchers go."""
        await self.enter_graceful_shutdown()
        self._ended.set()


def _http_host() -> str:
    """The address that this process serves HTTP on: BentoML gives its workers the socket only."""
    context = click.get_current_context(silent=True)
    descriptor = context.params.get("fd") if context else None
    if descriptor is None:
        return "127.0.0.1"
    with socket.socket(fileno=os.dup(descriptor)) as listener:
        host: str = listener.getsockname()[0]
    return host


def _is_v6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:  # a name
        return False

"""The gRPC server of one API process, in the same event loop as its HTTP server."""

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from foley.errors import NotReadyError
from foley.v1.foley_pb2_grpc import (
    add_FoleyServiceServicer_to_server,
    add_JobServiceServicer_to_server,
)
from runners.auth import ApiKeys
from runners.grpc import JOB_SERVICE, SERVICE
from runners.grpc.jobs import JobServicer
from runners.grpc.malformed import MessageCheck
from runners.grpc.servicer import FoleyServicer
from runners.jobs.ending import find_last_seconds
from runners.process import call_on_stop_signal, find_grace_seconds, find_http_host
from runners.settings import Settings

log = structlog.get_logger(__name__)

POLL_SECONDS = 1.0  # between two checks of readiness, or two tries to take the port
LAST_STATUS_SECONDS = 0.2  # how long the last health status may take to reach its watchers
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
MIN_PING_MS = 5_000  # proxies and clients commonly send a keep-alive ping every 10 s


class GrpcServer:
    """Serves `FoleyService`, health and reflection; needs a running event loop.

    Args:
        servicer: has the methods of `FoleyService`.
        settings: host, port and number of API processes, which share the port.
        keys: one of them must come with each call of either.
        jobs: has the methods of `JobService`; None where the service takes no jobs.
        check_ready: returns when requests can be served, and raises the reason when they cannot.
    """

    def __init__(
        self,
        servicer: FoleyServicer,
        settings: Settings,
        keys: ApiKeys,
        *,
        jobs: JobServicer | None = None,
        check_ready: Callable[[], Awaitable[object]],
    ) -> None:
        self._host = settings.grpc_host or find_http_host()
        self._port = settings.grpc_port
        self._check_ready = check_ready
        self._listening = False
        self._server = grpc.aio.server(
            interceptors=[MessageCheck(keys)],
            options=[
                ("grpc.so_reuseport", int(settings.api_workers > 1)),
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                # Without these, the third ping within minutes ends the connection and its calls.
                ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_MS),
                ("grpc.keepalive_permit_without_calls", 1),
            ],
        )
        add_FoleyServiceServicer_to_server(servicer, self._server)
        self._services = [SERVICE]
        self._jobs = jobs
        if jobs is not None:
            add_JobServiceServicer_to_server(jobs, self._server)
            self._services.append(JOB_SERVICE)
        self._health = _HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self._running = asyncio.create_task(self._run())
        self._stopping: asyncio.Task[None] | None = None
        # Shutdown hooks run only after HTTP's connections are drained, which is too late for gRPC.
        call_on_stop_signal(self.begin_stop)

    def check(self) -> None:
        """Return if the server listens.

        Raises:
            NotReadyError: another process uses its port.
        """
        if not self._listening:
            raise NotReadyError(
                f"port {self._port} of gRPC is taken; set FOLEY_GRPC_PORT to another, or to 0"
            )

    def begin_stop(self) -> None:
        """Stop taking calls, and begin to drain the active ones."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop())

    async def stop(self) -> None:
        """Stop, and return when the active calls have ended or the time to drain them is over."""
        self.begin_stop()
        assert self._stopping is not None
        await self._stopping

    async def _stop(self) -> None:
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        await self._health.end()
        if self._jobs is not None:
            self._jobs.end_watches()
        grace_seconds = find_grace_seconds()
        # Work is cut off earlier. What is left then is a caller who does not read.
        await self._server.stop(grace_seconds - find_last_seconds(grace_seconds) / 2)

    async def _run(self) -> None:
        await self._set_health(serving=False)
        await self._listen()
        serving = False
        while True:
            try:
                await self._check_ready()
                now_serving = True
            except Exception:  # noqa: BLE001 - /readyz has the reason
                now_serving = False
            if now_serving != serving:
                serving = now_serving
                await self._set_health(serving=serving)
            await asyncio.sleep(POLL_SECONDS)

    async def _listen(self) -> None:
        """Take the port, as soon as an earlier process has left it."""
        host = f"[{self._host}]" if _is_v6(self._host) else self._host
        is_logged = False
        while not self._listening:
            try:
                self._server.add_insecure_port(f"{host}:{self._port}")
                self._listening = True
            except RuntimeError as error:
                if not is_logged:
                    log.error("grpc_port_taken", port=self._port, reason=str(error))
                is_logged = True
                await asyncio.sleep(POLL_SECONDS)
        await self._server.start()
        log.info("grpc_listening", host=self._host, port=self._port)

    async def _set_health(self, *, serving: bool) -> None:
        statuses = health_pb2.HealthCheckResponse
        status = statuses.SERVING if serving else statuses.NOT_SERVING
        for name in ("", *self._services):
            await self._health.set(name, status)


class _HealthServicer(health.aio.HealthServicer):  # type: ignore[misc]  # it has no types
    """The library's servicer, whose watchers do not hold up the server while it drains here."""

    def __init__(self) -> None:
        super().__init__()
        self._ended = asyncio.Event()

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> None:
        """Send every change of a service's status until the server ends."""
        watching = asyncio.create_task(super().Watch(request, context))
        ending = asyncio.create_task(self._ended.wait())
        try:
            await asyncio.wait({watching, ending}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({watching}, timeout=LAST_STATUS_SECONDS)
        finally:
            watching.cancel()
            ending.cancel()
            await asyncio.gather(watching, ending, return_exceptions=True)

    async def end(self) -> None:
        """Set all services to NOT_SERVING, and end the calls of their watchers."""
        await self.enter_graceful_shutdown()
        self._ended.set()


def _is_v6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:  # a name
        return False

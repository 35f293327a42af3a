"""Health for load balancers: 200 ready, 204 loading, 503 if the model could not be loaded.

`/readyz` has the same for orchestrators: 503 with a reason until it is 200.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web
from starlette.responses import Response

from foley.errors import ConfigError, FoleyError, NotReadyError
from runners.settings import Settings

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.5
CheckReady = Callable[[], Awaitable[object]]


class HealthCheck:
    """Answers load balancers on the API's port, and on a port of its own where one is set.

    Args:
        check_ready: returns when requests can be served, and raises the reason when they cannot.
        settings: path, port and address.
    """

    def __init__(self, check_ready: CheckReady, settings: Settings) -> None:
        self._check_ready = check_ready
        self._settings = settings
        self._created = time.monotonic()
        self._waiting: asyncio.Task[None] | None = None
        self._listener: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen on the port of its own, and begin to wait until the service is ready.

        Raises:
            ConfigError: the port is in use.
        """
        self._waiting = asyncio.create_task(self._log_when_ready())
        port = self._settings.health_port
        if port is None:
            return
        application = web.Application()
        application.router.add_get(self._settings.health_path, self._respond_on_own_port)
        # The server around this one handles the signals.
        self._listener = web.AppRunner(application, handle_signals=False, access_log=None)
        await self._listener.setup()
        # Every API worker listens, and the kernel distributes the connections.
        site = web.TCPSite(
            self._listener, self._settings.health_host, port, reuse_port=True, shutdown_timeout=1
        )
        try:
            await site.start()
        except OSError as error:
            raise ConfigError(
                f"health: port {port} cannot be listened on ({error.strerror}); choose another in "
                "FOLEY_HEALTH_PORT"
            ) from error

    async def stop(self) -> None:
        """Stop listening and waiting."""
        if self._waiting is not None:
            self._waiting.cancel()
            await asyncio.gather(self._waiting, return_exceptions=True)
        if self._listener is not None:
            await self._listener.cleanup()

    async def status(self) -> int:
        """Return the HTTP status for a load balancer: 200, 204 or 503."""
        try:
            await self._check_ready()
        except NotReadyError:
            return 204
        except FoleyError:
            return 503
        return 200

    async def respond(self) -> Response:
        """Return the response on the API's own port; it has no body."""
        return Response(status_code=await self.status())

    async def _respond_on_own_port(self, _request: web.Request) -> web.Response:
        return web.Response(status=await self.status())

    async def _log_when_ready(self) -> None:
        """Log the time that the start took, once requests can be served."""
        while True:
            try:
                await self._check_ready()
                break
            except NotReadyError:
                await asyncio.sleep(POLL_SECONDS)
            except FoleyError:  # the runner has logged the reason
                return
        seconds = {"api": round(time.monotonic() - self._created, 2)}
        if self._settings.container_started is not None:
            seconds["container"] = round(time.time() - self._settings.container_started, 2)
        log.info("service_ready", seconds_since_start=seconds)

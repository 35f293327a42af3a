"""Health as load balancers ask for it: 200 ready, 204 still loading, 503 it never will be.

`/readyz` tells the same to people and orchestrators: 503 with a reason until 200.
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
IsReady = Callable[[], Awaitable[object]]


class Health:
    """Answers the load balancer, on a port of its own too where one is set.

    Args:
        is_ready: returns when requests can be served, else raises what says why not.
        settings: path, port and address.
    """

    def __init__(self, is_ready: IsReady, settings: Settings) -> None:
        self._is_ready = is_ready
        self._settings = settings
        self._created = time.monotonic()
        self._waiting: asyncio.Task[None] | None = None
        self._listener: web.AppRunner | None = None

    async def start(self) -> None:
        """Begin to listen, and to wait for the moment to be logged as the end of the start.

        Raises:
            ConfigError: the port is taken.
        """
        self._waiting = asyncio.create_task(self._announce())
        port = self._settings.health_port
        if port is None:
            return
        application = web.Application()
        application.router.add_get(self._settings.health_path, self._answer_apart)
        # Signals belong to the server around this one.
        self._listener = web.AppRunner(application, handle_signals=False, access_log=None)
        await self._listener.setup()
        # Every API worker listens, and the kernel shares the connections out.
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
        """The HTTP status of the answer."""
        try:
            await self._is_ready()
        except NotReadyError:
            return 204
        except FoleyError:
            return 503
        return 200

    async def answer(self) -> Response:
        """The answer on the API's own port; it has no body."""
        return Response(status_code=await self.status())

    async def _answer_apart(self, _request: web.Request) -> web.Response:
        return web.Response(status=await self.status())

    async def _announce(self) -> None:
        """Log once when requests can be served."""
        while True:
            try:
                await self._is_ready()
                break
            except NotReadyError:
                await asyncio.sleep(POLL_SECONDS)
            except FoleyError:  # the runner's log says what is wrong
                return
        seconds = {"api": round(time.monotonic() - self._created, 2)}
        if self._settings.container_started is not None:
            seconds["container"] = round(time.time() - self._settings.container_started, 2)
        log.info("service_ready", seconds_since_start=seconds)

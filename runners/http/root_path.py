"""The path below which a proxy serves the service, where the proxy passes that path on."""

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class RootPath:
    """ASGI middleware that takes a path off the requests; others are served as they are.

    Args:
        app: the application inside.
        root_path: such as /foley.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        root = self._root_path
        if scope["type"] == "http" and scope["path"] == root:
            # Relative, since the proxy may serve this path below another one.
            await RedirectResponse(f"{root.rpartition('/')[2]}/")(scope, receive, send)
            return
        if scope["type"] == "http" and scope["path"].startswith(f"{root}/"):
            scope = {
                **scope,
                "path": scope["path"].removeprefix(root),
                "raw_path": scope["raw_path"].removeprefix(root.encode()),
            }
        await self._app(scope, receive, send)

"""The unix socket between the API's processes and the GPU process carries JSON and no pickle.

BentoML 1.4.39 sends pickle between two services of one server, and a service that reads a pickle
runs the code in it. Every process that can open the socket could so run code beside the model.
BentoML sends JSON to a dependency with an address, so the dependency gets its socket's address.
"""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from bentoml.container import BentoMLContainer
from starlette.types import ASGIApp, Receive, Scope, Send

_JSON = b"application/json"


def use_json(dependency: Any) -> None:
    """Make a dependency of this process's service send JSON.

    Nothing changes where both services are in one process.

    Args:
        dependency: made by `bentoml.depends`, before its first use.
    """
    addresses = BentoMLContainer.remote_runner_mapping.get()
    dependency.url = addresses.get(dependency.on.name)


class KeptSocket:
    """A second name of the dependency's socket, through which calls pass after SIGTERM.

    The launcher removes the folder of its sockets at once, while uploads are still received.

    Args:
        dependency: after `use_json`; its calls go through the second name from now on.
    """

    def __init__(self, dependency: Any) -> None:
        self._folder: Path | None = None
        address = urlsplit(dependency.url or "")
        if address.scheme != "file":
            return
        socket = Path(unquote(address.path))
        self._folder = socket.parent.with_name(socket.parent.name + "-kept")
        self._folder.mkdir(mode=0o700, exist_ok=True)  # each API process comes here
        kept = self._folder / "runner.sock"
        with contextlib.suppress(FileExistsError):
            kept.hardlink_to(socket)
        dependency.url = kept.as_uri()

    def remove(self) -> None:
        """Remove the second name; for the last process that uses it."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


class JsonOnlyMiddleware:
    """ASGI middleware that refuses every body that is declared as anything but JSON, with 415.

    Args:
        app: BentoML's application, which would unpickle a body.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection. A request without a content type is read as JSON."""
        if scope["type"] == "http" and not _is_json(scope):
            body = json.dumps({"error": "this socket takes application/json alone"}).encode()
            headers = [(b"content-type", _JSON), (b"content-length", b"%d" % len(body))]
            await send({"type": "http.response.start", "status": 415, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        await self._app(scope, receive, send)


def _is_json(scope: Scope) -> bool:
    types = [value for name, value in scope["headers"] if name.lower() == b"content-type"]
    return all(value.partition(b";")[0].strip() == _JSON for value in types)

"""The address at which the browser sees the page, which a proxy in front of the service chooses.

A proxy may serve the page below any path, with or without saying so in a header. The browser knows:
it tells by `Referer` with each request, and by `location` to a script of the page.
"""

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Gradio takes this header for its own address. It is set here for each request.
GRADIO_SERVER = "x-gradio-server"
_CONFIG = b"window.gradio_config ="
_END_OF_SCRIPT = b"</script>"
_TAKE_ROOT_FROM_ADDRESS = (
    b"<script>window.gradio_config.root ="
    b' location.origin + location.pathname.replace(/\\/[^/]*$/, "");</script>'
)


class PublicUrl:
    """ASGI middleware that tells Gradio the address at which the browser sees the page.

    Args:
        app: Gradio's application.
        prefix: path below which it is served: empty, or such as /ui.
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        scope = {**scope, "headers": list(scope["headers"])}
        headers = MutableHeaders(scope=scope)
        is_page = scope["path"] in (self._prefix, f"{self._prefix}/")
        if is_page:  # a link on another site may have led here
            del headers["referer"]
        public_url = find_public_url(headers, self._prefix)
        for name in ("x-forwarded-host", "x-forwarded-proto"):
            del headers[name]  # they say less, and Gradio would prefer them
        headers[GRADIO_SERVER] = public_url
        await self._app(scope, receive, _RootedPage(send).send if is_page else send)


def find_public_url(headers: Headers, prefix: str) -> str:
    """Return the page's address in the browser, without a slash at the end.

    Args:
        headers: of a request that the page makes.
        prefix: path below which the page is served: empty, or such as /ui.
    """
    referrer = urlsplit(headers.get("referer", ""))
    folder = referrer.path.rpartition("/")[0]
    if referrer.scheme in ("http", "https") and referrer.netloc and folder.endswith(prefix):
        return f"{referrer.scheme}://{referrer.netloc}{folder}"
    host = headers.get("x-forwarded-host", headers.get("host", "")).partition(",")[0].strip()
    scheme = headers.get("x-forwarded-proto", "http").partition(",")[0].strip()
    return f"{scheme}://{host}{prefix}"


class _RootedPage:
    """Passes a page on with a script that takes its address from the browser."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message = {}
        self._body = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._body += message.get("body", b"")
        if message.get("more_body", False):
            return
        before, config, after = self._body.partition(_CONFIG)
        values, end, rest = after.partition(_END_OF_SCRIPT)
        if config and end:
            self._body = b"".join((before, config, values, end, _TAKE_ROOT_FROM_ADDRESS, rest))
            MutableHeaders(scope=self._start)["content-length"] = str(len(self._body))
        await self._send(self._start)
        await self._send({**message, "body": self._body})
